/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the packet inside a tunnel begins: behind the outer headers, VLAN tags, IPv4 options, IPv6 extension headers
 * and the tunnel's own header and options.
 *
 * Included by filter.bpf.h once for its hook, which defines PACKET_LOAD(offset, size): bytes of the outer packet as a
 * number, negative where it has none.
 */
#ifndef PTRACE_TUNNEL_BPF_H
#define PTRACE_TUNNEL_BPF_H

/* Bits of filter_tunnels. */
#define TUNNEL_VXLAN (1 << 0)
#define TUNNEL_GENEVE (1 << 1)
#define TUNNEL_GRE (1 << 2)
#define TUNNEL_IPIP (1 << 3) /* IPv4 or IPv6 in either */

/* What tunnel_find() returns: an offset, and whether an Ethernet header is there. -1: no tunnel, or another kind. */
#define TUNNEL_LINK_HEADER (1L << 32)
#define TUNNEL_NONE (-1L)

#define TUNNEL_EXTENSIONS_MAX 6
#define VLANS_MAX 2
#define ETH_P_TEB 0x6558
#define GRE_CHECKSUM 0x8000
#define GRE_ROUTING 0x4000
#define GRE_KEY 0x2000
#define GRE_SEQUENCE 0x1000
#define GRE_VERSION 0x0007

/* Kinds of tunnels whose inner packet the inner filter is for. */
const volatile __u32 filter_tunnels = 0;
/* UDP ports; the second of VXLAN is what Linux took before IANA gave one (RFC 7348). */
const volatile __u16 filter_vxlan_ports[2] = {4789, 8472};
const volatile __u16 filter_geneve_port = 6081;

static __always_inline long tunnel_inside(long offset, long protocol)
{
	if (protocol == ETH_P_TEB)
		return offset | TUNNEL_LINK_HEADER;
	return protocol == ETH_P_IP || protocol == ETH_P_IPV6 ? offset : TUNNEL_NONE;
}

#endif

/* In a UDP datagram at `offset`. */
static __always_inline long tunnel_in_udp(PACKET_ARGUMENTS, long offset)
{
	long port = PACKET_LOAD(offset + 2, 2);

	if ((filter_tunnels & TUNNEL_VXLAN) && (port == filter_vxlan_ports[0] || port == filter_vxlan_ports[1]))
		return (offset + 16) | TUNNEL_LINK_HEADER;
	if ((filter_tunnels & TUNNEL_GENEVE) && port == filter_geneve_port) {
		long options = PACKET_LOAD(offset + 8, 1);

		if (options < 0)
			return TUNNEL_NONE;
		return tunnel_inside(offset + 16 + (options & 0x3f) * 4, PACKET_LOAD(offset + 10, 2));
	}
	return TUNNEL_NONE;
}

/* In a GRE header at `offset` (RFC 2784, RFC 2890). */
static __always_inline long tunnel_in_gre(PACKET_ARGUMENTS, long offset)
{
	long flags = PACKET_LOAD(offset, 2), inside = offset + 4;

	if (flags < 0 || (flags & (GRE_ROUTING | GRE_VERSION)))
		return TUNNEL_NONE;
	if (flags & GRE_CHECKSUM)
		inside += 4;
	if (flags & GRE_KEY)
		inside += 4;
	if (flags & GRE_SEQUENCE)
		inside += 4;
	return tunnel_inside(inside, PACKET_LOAD(offset + 2, 2));
}

/* Steps over IPv6 extension headers. Returns the protocol behind them, -1 in a fragment that is not the first. */
static __always_inline long tunnel_skip_extensions(PACKET_ARGUMENTS, long protocol, long *offset)
{
	for (__u32 i = 0; i < TUNNEL_EXTENSIONS_MAX; i++) {
		long next, length;

		if (protocol != 0 && protocol != 43 && protocol != 44 && protocol != 60)
			return protocol;
		next = PACKET_LOAD(*offset, 1);
		length = PACKET_LOAD(*offset + 1, 1);
		if (protocol == 44) {
			length = 0;
			if (PACKET_LOAD(*offset + 2, 2) & 0xfff8)
				return -1;
		}
		if (next < 0 || length < 0)
			return -1;
		protocol = next;
		*offset += (length + 1) * 8;
	}
	return -1;
}

/* Returns the offset of the header behind the link header, if there is one, and sets its EtherType (0: unknown). */
static __always_inline long packet_network(PACKET_ARGUMENTS, bool link_header, long *protocol)
{
	long offset = link_header ? ETH_HLEN : 0, version;

	if (link_header) {
		*protocol = PACKET_LOAD(12, 2);
		for (__u32 i = 0; i < VLANS_MAX && (*protocol == ETH_P_8021Q || *protocol == ETH_P_8021AD); i++) {
			*protocol = PACKET_LOAD(offset + 2, 2);
			offset += 4;
		}
		return offset;
	}
	version = PACKET_LOAD(0, 1) >> 4;
	*protocol = version == 4 ? ETH_P_IP : version == 6 ? ETH_P_IPV6 : 0;
	return offset;
}

/* Returns where the inner packet of one of the wanted tunnels begins. A function of its own, verified once. */
__weak __noinline long tunnel_find(PACKET_ARGUMENTS, bool link_header)
{
	long protocol = 0, offset, version;

	if (!filter_tunnels)
		return TUNNEL_NONE;
	offset = packet_network(PACKET_PASS, link_header, &protocol);
	if (protocol != ETH_P_IP && protocol != ETH_P_IPV6)
		return TUNNEL_NONE;
	version = PACKET_LOAD(offset, 1);
	if (version >> 4 == 4) {
		if (PACKET_LOAD(offset + 6, 2) & 0x1fff)
			return TUNNEL_NONE;
		protocol = PACKET_LOAD(offset + 9, 1);
		offset += (version & 0x0f) * 4;
	} else if (version >> 4 == 6) {
		protocol = PACKET_LOAD(offset + 6, 1);
		offset += 40;
		protocol = tunnel_skip_extensions(PACKET_PASS, protocol, &offset);
	} else {
		return TUNNEL_NONE;
	}
	if (protocol == 17)
		return tunnel_in_udp(PACKET_PASS, offset);
	if (protocol == 47 && (filter_tunnels & TUNNEL_GRE))
		return tunnel_in_gre(PACKET_PASS, offset);
	if ((protocol == 4 || protocol == 41) && (filter_tunnels & TUNNEL_IPIP))
		return offset;
	return TUNNEL_NONE;
}
