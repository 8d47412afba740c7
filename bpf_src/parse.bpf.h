/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Headers of the captured bytes, into the record's head. Only the first PARSE_BYTES of the record's data are looked at, the
 * smallest room a record has; what lies beyond, or is not there, stays unknown rather than guessed.
 */
#ifndef PTRACE_PARSE_BPF_H
#define PTRACE_PARSE_BPF_H

#include "packet.bpf.h"
#include "protocols.bpf.h"
#include "records.h"

#define PARSE_BYTES 128
#define PARSE_VLANS_MAX 3
#define PARSE_EXTENSIONS_MAX 8

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/*
 * The parser's position lives in the record, transport_offset, and so does the number of bytes there are,
 * captured_length: the verifier knows nothing of what is read back from there, so that all ways through the headers
 * meet in one state instead of multiplying (190,000 instructions to verify became few thousand).
 */
static __always_inline __u32 position(const struct ptrace_event *record)
{
	return *(volatile __u16 *)&record->transport_offset;
}

static __always_inline void advance(struct ptrace_event *record, __u32 bytes)
{
	*(volatile __u16 *)&record->transport_offset = position(record) + bytes;
}

/* Returns the header of `length` bytes at the position, NULL if the bytes end before it does. */
static __always_inline void *header(struct ptrace_event *record, __u32 length)
{
	__u32 offset = position(record);

	if (offset + length > *(volatile __u16 *)&record->captured_length)
		return 0;
	asm volatile("" : "+r"(offset));
	if (offset > PARSE_BYTES - length)
		return 0;
	return (void *)(record + 1) + offset;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP;
}

static __always_inline void parse_tcp(struct ptrace_event *record)
{
	struct tcphdr *tcp = header(record, sizeof(*tcp));

	if (!tcp)
		return;
	record->tcp_sequence = bpf_ntohl(tcp->sequence);
	record->tcp_acknowledgement = bpf_ntohl(tcp->acknowledgement);
	record->tcp_flags = tcp->flags;
	record->flags |= PTRACE_EVENT_TCP;
}

static __always_inline void parse_icmp(struct ptrace_event *record, __u8 request, __u8 reply)
{
	struct icmphdr *icmp = header(record, sizeof(*icmp));

	if (!icmp)
		return;
	record->icmp_type = icmp->type;
	record->icmp_code = icmp->code;
	if (icmp->type == request || icmp->type == reply) {
		record->icmp_id = bpf_ntohs(icmp->id);
		record->icmp_sequence = bpf_ntohs(icmp->sequence);
	}
	record->flags |= PTRACE_EVENT_ICMP;
}

static __always_inline void parse_transport(struct ptrace_event *record, __u8 protocol)
{
	__u16 *ports;

	if (has_ports(protocol)) {
		ports = header(record, 4);
		if (ports) {
			record->source_port = bpf_ntohs(ports[0]);
			record->destination_port = bpf_ntohs(ports[1]);
			record->flags |= PTRACE_EVENT_PORTS;
		}
	}
	if (protocol == IPPROTO_TCP)
		parse_tcp(record);
	else if (protocol == IPPROTO_ICMP)
		parse_icmp(record, ICMP_ECHO, ICMP_ECHOREPLY);
	else if (protocol == IPPROTO_ICMPV6)
		parse_icmp(record, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY);
}

static __always_inline void set_mapped(__u8 *address, __be32 ipv4)
{
	__builtin_memset(address, 0, 10);
	address[10] = address[11] = 0xff;
	*(__be32 *)(address + 12) = ipv4;
}

/* Parses the header; returns whether the transport header is what follows at the position. */
static __always_inline bool parse_ipv4(struct ptrace_event *record)
{
	struct iphdr *ip = header(record, sizeof(*ip));
	__u32 fragment, header_length;

	if (!ip || ip->version_ihl >> 4 != 4)
		return false;
	header_length = (ip->version_ihl & 15) * 4;
	if (header_length < sizeof(*ip))
		return false;
	fragment = bpf_ntohs(ip->fragment);
	record->ttl = ip->ttl;
	record->tos = ip->tos;
	record->ip_id = bpf_ntohs(ip->id);
	record->l4_protocol = ip->protocol;
	set_mapped(record->source, ip->source);
	set_mapped(record->destination, ip->destination);
	record->flags |= PTRACE_EVENT_IP;
	if (fragment & (IP_MF | IP_OFFSET)) {
		record->flags |= PTRACE_EVENT_FRAGMENT;
		record->fragment_offset = (fragment & IP_OFFSET) * 8;
	}
	advance(record, header_length);
	return !(fragment & IP_OFFSET); /* only the first fragment has it */
}

static __always_inline bool is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT || protocol == IPPROTO_AH || protocol == IPPROTO_MH;
}

/* Steps over one extension header; returns false where no transport header follows that could be looked at. */
static __always_inline bool parse_extension(struct ptrace_event *record, __u8 protocol)
{
	__u8 *extension = header(record, 8);
	bool more = true;

	if (!extension)
		return false;
	if (protocol == IPPROTO_FRAGMENT) {
		__u32 fragment = bpf_ntohs(*(__u16 *)(extension + 2));

		record->flags |= PTRACE_EVENT_FRAGMENT;
		record->fragment_offset = fragment & ~7;
		record->ip_id = bpf_ntohl(*(__u32 *)(extension + 4));
		more = record->fragment_offset == 0;
		advance(record, 8);
	} else if (protocol == IPPROTO_AH) {
		advance(record, (extension[1] + 2) * 4);
	} else {
		advance(record, (extension[1] + 1) * 8);
	}
	record->l4_protocol = extension[0];
	return more;
}

/*
 * Looks at what follows: 1 where it is the transport header, -1 where that can't be had, 0 where an extension was stepped over.
 * A function, so that the loop around it is short enough to be unrolled: before v5.12 the verifier refuses one that falls
 * through to its head, as the compiler may lay it out.
 */
static __noinline int next_extension(struct ptrace_event *record)
{
	__u8 protocol = *(volatile __u8 *)&record->l4_protocol;

	if (!is_extension(protocol))
		return 1;
	return parse_extension(record, protocol) ? 0 : -1;
}

static __always_inline bool parse_ipv6(struct ptrace_event *record)
{
	struct ipv6hdr *ip = header(record, sizeof(*ip));

	if (!ip || ip->version_class >> 4 != 6)
		return false;
	record->l4_protocol = ip->next_header;
	record->ttl = ip->hop_limit;
	record->tos = ip->version_class << 4 | ip->class_flow >> 4;
	__builtin_memcpy(record->source, ip->source, 16);
	__builtin_memcpy(record->destination, ip->destination, 16);
	record->flags |= PTRACE_EVENT_IP;
	advance(record, sizeof(*ip));

#pragma unroll
	for (int i = 0; i < PARSE_EXTENSIONS_MAX; i++) {
		int found = next_extension(record);

		if (found)
			return found > 0;
	}
	return false;
}

/* RFC 826 for Ethernet and IPv4; other hardware and protocol types keep their bytes only. */
static __always_inline void parse_arp(struct ptrace_event *record)
{
	__u8 *arp = header(record, 28);

	if (!arp || *(__u16 *)(arp + 2) != bpf_htons(ETH_P_IP) || arp[4] != 6 || arp[5] != 4)
		return;
	set_mapped(record->source, *(__be32 *)(arp + 14));
	set_mapped(record->destination, *(__be32 *)(arp + 24));
	record->arp_operation = arp[7];
	record->flags |= PTRACE_EVENT_ARP;
}

/* Steps over Ethernet and VLAN headers; returns the EtherType, 0 if the bytes end before it. */
static __always_inline __u32 parse_link(struct ptrace_event *record)
{
	struct ethhdr *ethernet = header(record, sizeof(*ethernet));
	__u32 protocol;

	if (!ethernet)
		return 0;
	protocol = bpf_ntohs(ethernet->protocol);
	advance(record, sizeof(*ethernet));
	for (int i = 0; i < PARSE_VLANS_MAX; i++) {
		struct vlan_hdr *vlan;

		if (protocol != ETH_P_8021Q && protocol != ETH_P_8021AD)
			break;
		vlan = header(record, sizeof(*vlan));
		if (!vlan)
			return 0;
		if (!(record->flags & PTRACE_EVENT_VLAN)) {
			record->vlan_tci = bpf_ntohs(vlan->tci);
			record->flags |= PTRACE_EVENT_VLAN;
		}
		protocol = bpf_ntohs(vlan->protocol);
		advance(record, sizeof(*vlan));
	}
	return protocol;
}

/*
 * Parses the `captured_length` bytes behind the record's head. `protocol` (an EtherType, host order) says what a packet
 * without link header is; with one, its own type counts.
 */
static __noinline __attribute__((unused)) int parse_packet(struct ptrace_event *record)
{
	__u32 protocol = record->protocol;
	bool transport = false;

	if (record->flags & PTRACE_EVENT_LINK_HEADER)
		protocol = parse_link(record);
	record->protocol = protocol;
	record->network_offset = position(record);
	if (protocol == ETH_P_IP)
		transport = parse_ipv4(record);
	else if (protocol == ETH_P_IPV6)
		transport = parse_ipv6(record);
	else if (protocol == ETH_P_ARP)
		parse_arp(record);
	if (transport)
		parse_transport(record, *(volatile __u8 *)&record->l4_protocol);
	else
		record->transport_offset = 0;
	return 0;
}

#endif
