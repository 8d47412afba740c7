/* SPDX-License-Identifier: GPL-2.0-only */
/* One program of each kind that the loader attaches; each counts what it sees of one network namespace. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

enum slot { TP_BTF, RAW_TP, XDP, TC, NETFILTER, CGROUP, TRACEPOINT, SLOTS };

const volatile __u32 netns_inode;
const volatile __s16 offset = 7;
const volatile __u8 name[8];
__u64 tally = 5;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static void count(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &slot);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("tp_btf/netif_receive_skb")
int on_receive(__u64 *context)
{
	struct sk_buff *skb = (void *)context[0];

	if (BPF_CORE_READ(skb, dev, nd_net.net, ns.inum) == netns_inode)
		count(TP_BTF);
	return 0;
}

SEC("raw_tp/netif_receive_skb")
int on_receive_raw(__u64 *context)
{
	struct sk_buff *skb = (void *)context[0];

	if (BPF_CORE_READ(skb, dev, nd_net.net, ns.inum) == netns_inode)
		count(RAW_TP);
	return 0;
}

SEC("tp/net/netif_receive_skb")
int on_receive_classic(void *context)
{
	count(TRACEPOINT);
	return 0;
}

SEC("xdp.frags")
int on_xdp(struct xdp_md *context)
{
	count(XDP);
	return XDP_PASS;
}

SEC("tc")
int on_tc(struct __sk_buff *skb)
{
	count(TC);
	return TCX_NEXT;
}

SEC("netfilter")
int on_netfilter(void *context)
{
	count(NETFILTER);
	return NF_ACCEPT;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	count(CGROUP);
	return 1;
}

/* Patched by the tests: one with room for 32 bits, one for 64. */
__weak __noinline __u64 small_constant(void)
{
	return 0;
}

__weak __noinline __u64 large_constant(void)
{
	return 0x1122334455667788;
}

struct answer {
	__u64 small;
	__u64 large;
	__s64 offset;
	__u64 tally;
	__u8 name[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

SEC("xdp")
int answer(struct xdp_md *context)
{
	struct answer *answer;
	__u32 first = 0;

	answer = bpf_map_lookup_elem(&answers, &first);
	if (!answer)
		return XDP_ABORTED;
	answer->small = small_constant();
	answer->large = large_constant();
	answer->offset = offset;
	answer->tally = tally++;
	for (int i = 0; i < 8; i++)
		answer->name[i] = name[i];
	return XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
