/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs of others, to be traced. What they do to a UDP datagram depends on its port; they let pass what is none. */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETH_P_IP 0x0800
#define IPPROTO_UDP 17

enum port { PASSED = 7100, DROPPED, REWRITTEN, SENT_BACK, REDIRECTED, SHOT, TC_REDIRECTED, REWRITTEN_TO };

enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2 };

const volatile __u32 target_ifindex;

struct udphdr {
	__be16 source, destination, length;
	__sum16 checksum;
};

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

static __always_inline struct headers *datagram(void *data, void *end)
{
	struct headers *headers = data;

	if (data + sizeof(*headers) > end || headers->ethernet.protocol != bpf_htons(ETH_P_IP) ||
	    headers->ip.version_ihl != 0x45 || headers->ip.protocol != IPPROTO_UDP)
		return 0;
	return headers;
}

#define HEADERS(context) datagram((void *)(long)(context)->data, (void *)(long)(context)->data_end)

static __always_inline void swap_addresses(struct headers *headers)
{
	struct ethhdr *ethernet = (void *)headers;
	__u8 address[6];

	__builtin_memcpy(address, ethernet->source, 6);
	__builtin_memcpy(ethernet->source, ethernet->destination, 6);
	__builtin_memcpy(ethernet->destination, address, 6);
}

SEC("xdp")
int traced_xdp(struct xdp_md *context)
{
	struct headers *headers = HEADERS(context);

	if (!headers)
		return XDP_PASS;
	switch (bpf_ntohs(headers->udp.destination)) {
	case DROPPED:
		return XDP_DROP;
	case REWRITTEN: /* another port, and so another content */
		headers->udp.destination = bpf_htons(REWRITTEN_TO);
		headers->udp.checksum = 0;
		return XDP_PASS;
	case SENT_BACK:
		swap_addresses(headers);
		return XDP_TX;
	case REDIRECTED:
		return bpf_redirect(target_ifindex, 0);
	}
	return XDP_PASS;
}

SEC("xdp")
int a_name_longer_than_the_kernel_keeps(struct xdp_md *context)
{
	return XDP_PASS;
}

/* The kernel does not trust a context of another type, and hands a tracer five arguments. */
SEC("xdp")
int traced_untyped(void *context)
{
	return XDP_PASS;
}

SEC("tc")
int traced_tc(struct __sk_buff *skb)
{
	struct headers *headers = HEADERS(skb);

	if (!headers)
		return TC_ACT_OK;
	switch (bpf_ntohs(headers->udp.destination)) {
	case SHOT:
		return TC_ACT_SHOT;
	case TC_REDIRECTED:
		return bpf_redirect(target_ifindex, 0);
	}
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";
