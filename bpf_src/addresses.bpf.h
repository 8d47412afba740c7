/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether one of a packet's addresses is in a set of prefixes: thousands of them, one look-up in a trie for each address.
 * IPv4, IPv6, and the protocol addresses of ARP.
 *
 * Included by filter.bpf.h once for its hook, which defines PACKET_LOAD(offset, size) and PACKET_COPY(offset, to, size).
 */
#ifndef PTRACE_ADDRESSES_BPF_H
#define PTRACE_ADDRESSES_BPF_H

#define ADDRESSES4_OFFSET 12
#define ADDRESSES6_OFFSET 8
#define ARP_SENDER_OFFSET 14
#define ARP_TARGET_OFFSET 24

/* A set was given: only packets to or from one of its prefixes pass. */
const volatile bool filter_addresses = false;

struct address4_key {
	__u32 length; /* of the prefix, in bits */
	__u8 address[4];
};

struct address6_key {
	__u32 length;
	__u8 address[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address4_key);
	__type(value, __u8);
} addresses4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address6_key);
	__type(value, __u8);
} addresses6 SEC(".maps");

#endif

static __always_inline bool address4_listed(PACKET_ARGUMENTS, __u32 offset)
{
	struct address4_key key = {.length = 32};

	return !PACKET_COPY(offset, key.address, sizeof(key.address)) && bpf_map_lookup_elem(&addresses4, &key);
}

static __always_inline bool address6_listed(PACKET_ARGUMENTS, __u32 offset)
{
	struct address6_key key = {.length = 128};

	return !PACKET_COPY(offset, key.address, sizeof(key.address)) && bpf_map_lookup_elem(&addresses6, &key);
}

/* Returns 1 if the packet is to or from an address of the set. A function of its own, verified once. */
__weak __noinline int addresses_listed(PACKET_ARGUMENTS, bool link_header)
{
	long protocol = 0, offset;

	if (!filter_addresses)
		return 1;
	offset = packet_network(PACKET_PASS, link_header, &protocol);
	if (protocol == ETH_P_ARP)
		return address4_listed(PACKET_PASS, offset + ARP_SENDER_OFFSET) ||
		       address4_listed(PACKET_PASS, offset + ARP_TARGET_OFFSET);
	if (protocol == ETH_P_IP)
		return address4_listed(PACKET_PASS, offset + ADDRESSES4_OFFSET) ||
		       address4_listed(PACKET_PASS, offset + ADDRESSES4_OFFSET + 4);
	if (protocol == ETH_P_IPV6)
		return address6_listed(PACKET_PASS, offset + ADDRESSES6_OFFSET) ||
		       address6_listed(PACKET_PASS, offset + ADDRESSES6_OFFSET + 16);
	return 0;
}
