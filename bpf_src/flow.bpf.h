/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet's protocols, addresses and ports, read out of it one header at a time: nothing else of the packet is copied. What is
 * not there stays zero.
 */
#ifndef PTRACE_FLOW_BPF_H
#define PTRACE_FLOW_BPF_H

#include "filter_read.bpf.h"
#include "parse.bpf.h"
#include "records.h"

/* Where the next header is, and in `l4_protocol` what it is said to be. */
struct cursor {
	__u64 data; /* address of the first byte */
	__u64 data_end;
	__u64 shared;
	__u32 offset;
	__u8 l4_protocol;
};

/*
 * Copies `size` bytes, a multiple of four, at the cursor: in one go from the linear part, else by words from wherever they
 * lie. Returns whether they are all there.
 */
static __always_inline bool take(const struct cursor *cursor, void *to, const __u32 size)
{
	__u32 *words = to;

	if (!filter_copy(cursor->data, cursor->data_end, cursor->offset, to, size))
		return true;
#pragma unroll
	for (__u32 at = 0; at < size; at += 4) {
		long word = filter_load(cursor->data, cursor->data_end, cursor->shared,
					4ULL << 32 | (cursor->offset + at), 0);

		if (word < 0)
			return false;
		words[at / 4] = bpf_htonl(word);
	}
	return true;
}

static __always_inline __u32 take_type(const struct cursor *cursor, __u32 offset)
{
	long type = filter_load(cursor->data, cursor->data_end, cursor->shared, 2ULL << 32 | offset, 0);

	return type < 0 ? 0 : type;
}

/* Steps over Ethernet and VLAN headers; returns the EtherType, 0 if the bytes end before it. */
static __always_inline __u32 flow_link(struct cursor *cursor)
{
	__u32 type = take_type(cursor, ETH_HLEN - 2);

	cursor->offset = ETH_HLEN;
#pragma unroll
	for (int i = 0; i < PARSE_VLANS_MAX; i++) {
		if (type != ETH_P_8021Q && type != ETH_P_8021AD)
			break;
		type = take_type(cursor, cursor->offset + 2);
		cursor->offset += sizeof(struct vlan_hdr);
	}
	return type;
}

/* Returns whether the transport header is what follows. */
static __noinline int flow_ipv4(struct cursor *cursor, struct ptrace_count_key *key)
{
	struct iphdr ip;

	if (!take(cursor, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4 || (ip.version_ihl & 15) < 5)
		return 0;
	set_mapped(key->source, ip.source);
	set_mapped(key->destination, ip.destination);
	key->flags |= PTRACE_COUNT_ADDRESSES;
	key->l4_protocol = ip.protocol;
	cursor->offset += (ip.version_ihl & 15) * 4;
	return !(bpf_ntohs(ip.fragment) & IP_OFFSET); /* only the first fragment has it */
}

/* Looks at what follows: 1 where it is the transport header, -1 where that can't be had, 0 where an extension was stepped over. */
static __noinline int flow_extension(struct cursor *cursor)
{
	__u8 protocol = cursor->l4_protocol, extension[8] __attribute__((aligned(4)));

	if (!is_extension(protocol))
		return 1;
	if (!take(cursor, extension, sizeof(extension)))
		return -1;
	cursor->l4_protocol = extension[0];
	if (protocol == IPPROTO_FRAGMENT) {
		cursor->offset += 8;
		return bpf_ntohs(*(__u16 *)(extension + 2)) & ~7 ? -1 : 0;
	}
	cursor->offset += protocol == IPPROTO_AH ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8;
	return 0;
}

static __noinline int flow_ipv6(struct cursor *cursor, struct ptrace_count_key *key)
{
	struct ipv6hdr ip;
	int found = 0;

	if (!take(cursor, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
		return 0;
	__builtin_memcpy(key->source, ip.source, sizeof(key->source));
	__builtin_memcpy(key->destination, ip.destination, sizeof(key->destination));
	key->flags |= PTRACE_COUNT_ADDRESSES;
	cursor->l4_protocol = ip.next_header;
	cursor->offset += sizeof(ip);
#pragma unroll
	for (int i = 0; i < PARSE_EXTENSIONS_MAX; i++) {
		found = flow_extension(cursor);
		if (found)
			break;
	}
	key->l4_protocol = cursor->l4_protocol;
	return found > 0;
}

/* RFC 826 for Ethernet and IPv4. */
struct arp_ipv4 {
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_hardware[6];
	__be32 sender;
	__u8 target_hardware[6];
	__be32 target;
} __attribute__((packed));

static __noinline int flow_arp(struct cursor *cursor, struct ptrace_count_key *key)
{
	struct arp_ipv4 arp __attribute__((aligned(4)));

	if (!take(cursor, &arp, sizeof(arp)) || arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return 0;
	set_mapped(key->source, arp.sender);
	set_mapped(key->destination, arp.target);
	key->flags |= PTRACE_COUNT_ADDRESSES;
	return 0;
}

/* Sets what the packet's headers tell of it. The view must be complete. */
static __always_inline void find_flow(const struct packet_view *view, struct ptrace_count_key *key)
{
	__u16 ports[2] __attribute__((aligned(4)));
	struct cursor cursor = {};
	__u64 head = (__u64)view->head;
	int transport = 0;

	cursor.data = head + view->start;
	cursor.data_end = head + view->linear_end;
	cursor.shared = head + view->end;
	key->protocol = view->link_header ? flow_link(&cursor) : view->protocol;
	if (key->protocol == ETH_P_IP)
		transport = flow_ipv4(&cursor, key);
	else if (key->protocol == ETH_P_IPV6)
		transport = flow_ipv6(&cursor, key);
	else if (key->protocol == ETH_P_ARP)
		flow_arp(&cursor, key);
	if (!transport || !has_ports(key->l4_protocol) || !take(&cursor, ports, sizeof(ports)))
		return;
	key->source_port = bpf_ntohs(ports[0]);
	key->destination_port = bpf_ntohs(ports[1]);
	key->flags |= PTRACE_COUNT_PORTS;
}

#endif
