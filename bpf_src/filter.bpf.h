/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The place of the packet filter. A pcap-filter expression becomes eBPF when a capture starts and is put in place of the
 * stubs below (packet_tracer/filter/patch.py); a stub that was left alone accepts every packet.
 *
 * A filter is called with numbers only, or with the context: the verifier then checks it by itself, as a global
 * function, and what it knows there does not multiply with what it knows of the caller. It comes in two parts. The
 * first reads the linear part of the packet. Where that is not enough it calls the second, which reads each value
 * through filter_load(), filter_tc_load() or filter_xdp_load() and so sees the bytes in pages as well, and a VLAN tag that
 * lies beside the packet as if it lay in it.
 *
 * A file of TC programs defines HOOK_TC, one of XDP programs HOOK_XDP, before it includes anything of ours.
 */
#ifndef PTRACE_FILTER_BPF_H
#define PTRACE_FILTER_BPF_H

#include "filter_read.bpf.h"
#include "predicates.bpf.h"

/* `metadata` of the stubs; see packet_tracer/filter/stubs.py. */
#define METADATA_IFINDEX_SHIFT 32
#define METADATA_IFINDEX_MASK 0x0fffffffULL
#define METADATA_TYPE_SHIFT 60
#define PACKET_OUTGOING 4

/* An expression was given, for the packet or for one inside a tunnel: without one not even the stubs are called. */
const volatile bool filter_enabled = false;
/* It is for the packet inside one of filter_tunnels, which there must be; both expressions must accept. */
const volatile bool filter_inner = false;
/* It asks for what lies beside the bytes: VLAN tag, packet type, interface. */
const volatile bool filter_reads_metadata = false;
/*
 * The expression decides first: it asks for the bytes alone, and nothing else decides at less cost. Most packets are nobody's
 * business, and there are thousands of functions.
 */
const volatile bool filter_first = false;
/* Never set, and unknown to the compiler: keeps what only a patched-in filter calls in the program. */
const volatile bool filter_keep = false;

#define FILTER_STUB(name, ...)                  \
	__weak __noinline int name(__VA_ARGS__) \
	{                                       \
		return 1;                       \
	}

static __always_inline __u64 filter_metadata(__u32 tag, __u32 ifindex, __u32 packet_type)
{
	return tag | (ifindex & METADATA_IFINDEX_MASK) << METADATA_IFINDEX_SHIFT |
	       (__u64)packet_type << METADATA_TYPE_SHIFT;
}

#if defined(HOOK_TC) || defined(HOOK_XDP)

#define PACKET_ARGUMENTS FILTER_CONTEXT *ctx, __u32 base
#define PACKET_PASS ctx, base
#define PACKET_LOAD(offset, size) filter_context_load(ctx, base + (offset), size, 0)
#define PACKET_COPY(offset, to, size) filter_read(ctx, base + (offset), to, size)
#include "tunnel.bpf.h"
#include "addresses.bpf.h"

#endif

#ifdef HOOK_TC

FILTER_STUB(pcap_filter_tc_l2, struct __sk_buff *ctx, __u64 metadata)
FILTER_STUB(pcap_filter_tc_l3, struct __sk_buff *ctx, __u64 metadata)
FILTER_STUB(pcap_filter_tc_inner_l2, struct __sk_buff *ctx, __u64 offset)
FILTER_STUB(pcap_filter_tc_inner_l3, struct __sk_buff *ctx, __u64 offset)

/* The same for the packet in a tunnel. `start`: of the outer packet. */
static __always_inline bool filter_tc_inner(struct __sk_buff *ctx, __u32 start, bool link_header)
{
	long found = tunnel_find(ctx, start, link_header);

	if (found == TUNNEL_NONE)
		return false;
	if (found & TUNNEL_LINK_HEADER)
		return pcap_filter_tc_inner_l2(ctx, start + (__u32)found);
	return pcap_filter_tc_inner_l3(ctx, start + (__u32)found);
}

/* Returns whether the filter accepts the packet of a TC program. `view` is its view, at POSITION_AT_LINK. */
static __always_inline bool filter_tc(struct __sk_buff *ctx, const struct packet_view *view, bool egress)
{
	__u32 start = view->link_header ? 0 : view->start - view->data;
	__u64 metadata = 0;
	bool accepted;

	if (filter_keep)
		return filter_tc_load(ctx, 0, 1, 0) > 0;
	if (!match_length(view->length) || !match_drop_reason(false, 0))
		return false;
	if (!view->link_header && view->start < view->data)
		return true; /* its header was pulled off: not at TC */
	if (filter_addresses && !addresses_listed(ctx, start, view->link_header))
		return false;
	if (!filter_enabled)
		return true;
	if (filter_reads_metadata) {
		__u32 tag = 0;

		if (view->link_header && ctx->vlan_present)
			tag = bpf_ntohs(ctx->vlan_proto) << 16 | (ctx->vlan_tci & 0xffff);
		metadata = filter_metadata(tag, ctx->ifindex, egress ? PACKET_OUTGOING : ctx->pkt_type);
	}
	accepted = view->link_header ? pcap_filter_tc_l2(ctx, metadata) : pcap_filter_tc_l3(ctx, metadata | start);
	if (!filter_inner || !accepted)
		return accepted;
	return filter_tc_inner(ctx, start, view->link_header);
}

#elif defined(HOOK_XDP)

FILTER_STUB(pcap_filter_xdp_l2, struct xdp_md *ctx, __u64 metadata)
FILTER_STUB(pcap_filter_xdp_l3, struct xdp_md *ctx, __u64 metadata)
FILTER_STUB(pcap_filter_xdp_inner_l2, struct xdp_md *ctx, __u64 offset)
FILTER_STUB(pcap_filter_xdp_inner_l3, struct xdp_md *ctx, __u64 offset)

/* The same for the packet in a tunnel. */
static __always_inline bool filter_xdp_inner(struct xdp_md *ctx, bool link_header)
{
	long found = tunnel_find(ctx, 0, link_header);

	if (found == TUNNEL_NONE)
		return false;
	return found & TUNNEL_LINK_HEADER ? pcap_filter_xdp_inner_l2(ctx, (__u32)found)
					  : pcap_filter_xdp_inner_l3(ctx, found);
}

/* Returns whether the filter accepts the packet of an XDP program at a device with or without a link header. */
static __always_inline bool filter_xdp(struct xdp_md *ctx, bool link_header)
{
	__u64 metadata = 0;
	bool accepted;

	if (filter_keep)
		return filter_xdp_load(ctx, 0, 1, 0) > 0 && filter_xdp_length(ctx) > 0;
	if ((filter_length && !match_length(filter_xdp_length(ctx))) || !match_drop_reason(false, 0))
		return false;
	if (filter_addresses && !addresses_listed(ctx, 0, link_header))
		return false;
	if (!filter_enabled)
		return true;
	if (filter_reads_metadata)
		metadata = filter_metadata(0, ctx->ingress_ifindex, 0);
	accepted = link_header ? pcap_filter_xdp_l2(ctx, metadata) : pcap_filter_xdp_l3(ctx, metadata);
	if (!filter_inner || !accepted)
		return accepted;
	return filter_xdp_inner(ctx, link_header);
}

#else

FILTER_STUB(pcap_filter_l2, __u64 data, __u64 data_end, __u64 shared, __u64 length, __u64 metadata)
FILTER_STUB(pcap_filter_l3, __u64 data, __u64 data_end, __u64 shared, __u64 length, __u64 metadata)
FILTER_STUB(pcap_filter_inner_l2, __u64 data, __u64 data_end, __u64 shared, __u64 length, __u64 metadata)
FILTER_STUB(pcap_filter_inner_l3, __u64 data, __u64 data_end, __u64 shared, __u64 length, __u64 metadata)

#define PACKET_ARGUMENTS __u64 data, __u64 data_end, __u64 shared
#define PACKET_PASS data, data_end, shared
#define PACKET_LOAD(offset, size) filter_load(data, data_end, shared, (__u64)(size) << 32 | (__u32)(offset), 0)
#define PACKET_COPY(offset, to, size) filter_copy(data, data_end, offset, to, size)
#include "tunnel.bpf.h"
#include "addresses.bpf.h"

/* The filter on the packet in a tunnel. */
static __always_inline bool filter_skb_inner(__u64 data, __u64 data_end, __u64 shared, __u64 length,
					     bool link_header)
{
	long found = tunnel_find(data, data_end, shared, link_header);
	__u64 start = (__u32)found;

	if (found == TUNNEL_NONE || start > length)
		return false;
	if (found & TUNNEL_LINK_HEADER)
		return pcap_filter_inner_l2(data + start, data_end, shared, length - start, 0);
	return pcap_filter_inner_l3(data + start, data_end, shared, length - start, 0);
}

static __always_inline __u64 filter_skb_metadata(const struct packet_view *view, enum ptrace_direction direction)
{
	__u32 type = direction == PTRACE_DIRECTION_EGRESS ? PACKET_OUTGOING : READ_BITS(view->skb, pkt_type);
	__u32 tag = 0;

	if (view->link_header && metadata_vlan(view->skb))
		tag = bpf_ntohs(READ(view->skb, vlan_proto)) << 16 | READ(view->skb, vlan_tci);
	return filter_metadata(tag, view->ifindex, type);
}

/* Returns whether the expression accepts the bytes. `shared`: the skb_shared_info, 0 for none. */
static __always_inline bool filter_outer(__u64 data, __u64 data_end, __u64 shared, const struct packet_view *view,
					 __u64 metadata)
{
	if (view->link_header)
		return pcap_filter_l2(data, data_end, shared, view->length, metadata);
	return pcap_filter_l3(data, data_end, shared, view->length, metadata);
}

/* The same, and the one for the packet in a tunnel if there is one. */
static __always_inline bool filter_bytes(__u64 data, __u64 data_end, __u64 shared, const struct packet_view *view,
					 __u64 metadata)
{
	bool accepted = filter_outer(data, data_end, shared, view, metadata);

	if (!filter_inner || !accepted)
		return accepted;
	return filter_skb_inner(data, data_end, shared, view->length, view->link_header);
}

/* Returns whether the filter accepts the packet. The view must be complete: view_bytes(). */
static __always_inline bool filter_skb(const struct packet_view *view, enum ptrace_direction direction)
{
	__u64 head = (__u64)view->head, data, data_end, shared, metadata = 0;

	if (!match_length(view->length))
		return false;
	if (!filter_enabled && !filter_addresses)
		return true;
	if (!head)
		return false;
	data = head + view->start;
	data_end = head + view->linear_end;
	shared = head + view->end;
	if (filter_keep)
		return filter_load(data, data_end, shared, 0, 0) > 0;
	if (filter_addresses && !addresses_listed(data, data_end, shared, view->link_header))
		return false;
	if (!filter_enabled)
		return true;
	if (filter_reads_metadata)
		metadata = filter_skb_metadata(view, direction);
	return filter_bytes(data, data_end, shared, view, metadata);
}

/* The same where filter_first is set: nothing but the expression is asked. */
static __always_inline bool filter_expression(const struct packet_view *view)
{
	__u64 head = (__u64)view->head;

	return filter_outer(head + view->start, head + view->linear_end, head + view->end, view, 0);
}

/* The same for a packet before there is an skb. */
static __always_inline bool filter_buffer(const struct packet_view *view, __u64 data, __u64 data_end, __u64 shared)
{
	__u64 metadata = 0;

	if (!match_length(view->length) || !match_drop_reason(false, 0))
		return false;
	if (!filter_enabled && !filter_addresses)
		return true;
	if (filter_keep)
		return filter_load(data, data_end, shared, 0, 0) > 0;
	if (filter_addresses && !addresses_listed(data, data_end, shared, view->link_header))
		return false;
	if (!filter_enabled)
		return true;
	if (filter_reads_metadata)
		metadata = filter_metadata(0, view->ifindex, 0);
	return filter_bytes(data, data_end, shared, view, metadata);
}

#endif

#endif
