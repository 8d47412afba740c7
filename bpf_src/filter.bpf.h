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

#include "maps.bpf.h"
#include "packet.bpf.h"

#define VLAN_TAG_AT 12
#define VLAN_TAG_END 16
/* `metadata` of the stubs; see packet_tracer/filter/stubs.py. */
#define METADATA_IFINDEX_SHIFT 32
#define METADATA_IFINDEX_MASK 0x0fffffffULL
#define METADATA_TYPE_SHIFT 60
#define PACKET_OUTGOING 4
/* Above this direct access is not certain to reach. */
#define FILTER_OFFSET_MAX 0x3fff

/* An expression was given, for the packet or for one inside a tunnel: without one not even the stubs are called. */
const volatile bool filter_enabled = false;
/* It is for the packet inside one of filter_tunnels, which there must be; both expressions must accept. */
const volatile bool filter_inner = false;
/* It asks for what lies beside the bytes: VLAN tag, packet type, interface. */
const volatile bool filter_reads_metadata = false;
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

/* Returns the number that the bytes are in network order. */
static __always_inline long filter_number(const __u8 *bytes, __u32 size)
{
	if (size == 1)
		return bytes[0];
	if (size == 2)
		return bytes[0] << 8 | bytes[1];
	return (__u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

/* A part of `value` behind those that were read before it. */
#define FILTER_APPEND(value, byte) ((value) << 8 | (byte))

/*
 * Where the byte at `offset` really lies when the tag is not in the packet but is to be seen in it. Returns the offset in the
 * packet, or minus one minus the byte of the tag.
 */
static __always_inline long filter_position(__u32 offset, __u32 tag)
{
	if (!tag || offset < VLAN_TAG_AT)
		return offset;
	if (offset >= VLAN_TAG_END)
		return offset - (VLAN_TAG_END - VLAN_TAG_AT);
	return -1 - (long)((tag >> 8 * (VLAN_TAG_END - 1 - offset)) & 0xff);
}

/* True if a tag lies across or behind which the bytes move: they must then be read one by one. */
static __always_inline bool filter_meets_tag(__u32 offset, __u32 size, __u32 tag)
{
	return tag && offset < VLAN_TAG_END && offset + size > VLAN_TAG_AT;
}

#if defined(HOOK_TC) || defined(HOOK_XDP)

#ifdef HOOK_TC
#define FILTER_CONTEXT struct __sk_buff
#define filter_context_load filter_tc_load
#else
#define FILTER_CONTEXT struct xdp_md
#define filter_context_load filter_xdp_load
#endif

static __always_inline long filter_read(FILTER_CONTEXT *ctx, __u32 offset, __u8 *bytes, const __u32 size)
{
#ifdef HOOK_TC
	return bpf_skb_load_bytes(ctx, offset, bytes, size);
#else
	/* Before it, a buffer was all linear: 3f364222d032 (v5.18). */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_load_bytes))
		return bpf_xdp_load_bytes(ctx, offset, bytes, size);
	return -1;
#endif
}

static __always_inline long filter_read_number(FILTER_CONTEXT *ctx, __u32 offset, __u32 size)
{
	__u8 bytes[4] = {};
	long result;

	if (size == 1)
		result = filter_read(ctx, offset, bytes, 1);
	else if (size == 2)
		result = filter_read(ctx, offset, bytes, 2);
	else
		result = filter_read(ctx, offset, bytes, 4);
	return result ? -1 : filter_number(bytes, size);
}

/*
 * Returns the `size` (1, 2, 4) bytes at `offset` as a number, -1 where the packet has none there. Called by filters.
 * `tag`: see it in the packet (TC only).
 */
__weak __noinline long filter_context_load(FILTER_CONTEXT *ctx, __u32 offset, __u32 size, __u32 tag)
{
	__u32 value = 0;

	if (!filter_meets_tag(offset, size, tag))
		return filter_read_number(ctx, filter_position(offset, tag), size);
	for (__u32 i = 0; i < 4 && i < size; i++) {
		long position = filter_position(offset + i, tag);
		long byte = position < 0 ? -1 - position : filter_read_number(ctx, position, 1);

		if (byte < 0)
			return -1;
		value = FILTER_APPEND(value, byte);
	}
	return value;
}

#define TUNNEL_ARGUMENTS FILTER_CONTEXT *ctx, __u32 base
#define TUNNEL_PASS ctx, base
#define TUNNEL_LOAD(offset, size) filter_context_load(ctx, base + (offset), size, 0)
#include "tunnel.bpf.h"

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

	if (!filter_enabled)
		return true;
	if (filter_keep)
		return filter_tc_load(ctx, 0, 1, 0) > 0;
	if (!view->link_header && view->start < view->data)
		return true; /* its header was pulled off: not at TC */
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

/* Returns the packet's length, its fragments included. Called by filters. */
__weak __noinline long filter_xdp_length(struct xdp_md *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_get_buff_len))
		return bpf_xdp_get_buff_len(ctx);
	return (long)ctx->data_end - (long)ctx->data;
}

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

	if (!filter_enabled)
		return true;
	if (filter_keep)
		return filter_xdp_load(ctx, 0, 1, 0) > 0 && filter_xdp_length(ctx) > 0;
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

/* A full set of pages (MAX_SKB_FRAGS is 17 unless configured otherwise), and as many skbs in the list behind. */
#define FILTER_PAGES_MAX 24
/* sizeof(skb_frag_t), which is a bio_vec before v6.10. */
#define FILTER_PAGE_BYTES 16

/* Reads where a page of a packet lies. Returns its length, -1 where it is no memory that can be read. */
static __always_inline long filter_page(struct skb_frag *frag, __u64 *address)
{
	struct bio_vec *old = (void *)frag;
	__u64 page, offset;
	__u32 length;

	if (bpf_core_field_exists(frag->netmem)) {
		page = BPF_CORE_READ(frag, netmem);
		offset = BPF_CORE_READ(frag, offset);
		length = BPF_CORE_READ(frag, len);
	} else {
		page = (__u64)BPF_CORE_READ(old, bv_page);
		offset = BPF_CORE_READ(old, bv_offset);
		length = BPF_CORE_READ(old, bv_len);
	}
	if (page & 1) /* net_iov: the memory of a device (8ab79ed50cf1, v6.8) */
		return -1;
	*address = offset + config_page_base + (page / config_page_struct_bytes << config_page_shift);
	return length;
}

/*
 * Returns the byte of a packet that is `offset` bytes behind its linear part, -1 where there is none. `shared` is the
 * address of its skb_shared_info: a number, for the verifier does not let a typed skb become one.
 */
__weak __noinline long filter_load_page(__u64 shared, __u32 offset)
{
	struct skb_shared_info *info = (void *)shared;
	struct sk_buff *list;
	struct skb_frag *frag;
	__u64 address;
	__u32 frags;
	__u8 byte;

	if (!config_page_base || !shared)
		return -1;
	list = BPF_CORE_READ(info, frag_list);
	frags = BPF_CORE_READ(info, nr_frags);
	frag = (void *)info + bpf_core_field_offset(struct skb_shared_info, frags);
	for (__u32 i = 0; i < FILTER_PAGES_MAX; i++) {
		long length;

		if (frags) {
			length = filter_page(frag, &address);
			frag = (void *)frag + FILTER_PAGE_BYTES;
			frags--;
		} else if (list) {
			address = (__u64)BPF_CORE_READ(list, data);
			length = BPF_CORE_READ(list, len) - BPF_CORE_READ(list, data_len);
			info = (void *)BPF_CORE_READ(list, head) + BPF_CORE_READ(list, end);
			frags = BPF_CORE_READ(info, nr_frags);
			frag = (void *)info + bpf_core_field_offset(struct skb_shared_info, frags);
			list = BPF_CORE_READ(list, next);
		} else {
			return -1;
		}
		if (length < 0)
			return -1;
		if (offset < length)
			return bpf_probe_read_kernel(&byte, 1, (void *)address + offset) ? -1 : byte;
		offset -= length;
	}
	return -1;
}

/*
 * Returns bytes of a packet as a number, -1 where it has none there. Called by filters. `data` and `data_end` bound the
 * linear part (`data` lies behind it where a packet begins in a page); `place` is the offset from `data`, and in its upper
 * half how many bytes (1, 2, 4); `tag`: see it in the packet.
 */
__weak __noinline long filter_load(__u64 data, __u64 data_end, __u64 shared, __u64 place, __u32 tag)
{
	__u32 offset = place, size = place >> 32, value = 0;
	__u8 byte;

	for (__u32 i = 0; i < 4 && i < size; i++) {
		long position = filter_position(offset + i, tag);
		__u64 address = data + position;
		long next = -1;

		if (position < 0)
			next = -1 - position;
		else if (address >= data_end)
			next = filter_load_page(shared, address - data_end);
		else if (!bpf_probe_read_kernel(&byte, 1, (void *)address))
			next = byte;
		if (next < 0)
			return -1;
		value = FILTER_APPEND(value, next);
	}
	return value;
}

#define TUNNEL_ARGUMENTS __u64 data, __u64 data_end, __u64 shared
#define TUNNEL_PASS data, data_end, shared
#define TUNNEL_LOAD(offset, size) filter_load(data, data_end, shared, (__u64)(size) << 32 | (__u32)(offset), 0)
#include "tunnel.bpf.h"

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

/* Returns whether the filter accepts the packet. The view must be complete: view_bytes(). */
static __always_inline bool filter_skb(const struct packet_view *view, enum ptrace_direction direction)
{
	__u64 data, data_end, shared, metadata = 0;
	bool accepted;

	if (!filter_enabled)
		return true;
	data = (__u64)view->head + view->start;
	data_end = (__u64)view->head + view->linear_end;
	shared = (__u64)view->head + READ(view->skb, end);
	if (filter_keep)
		return filter_load(data, data_end, shared, 0, 0) > 0;
	if (filter_reads_metadata)
		metadata = filter_skb_metadata(view, direction);
	if (view->link_header)
		accepted = pcap_filter_l2(data, data_end, shared, view->length, metadata);
	else
		accepted = pcap_filter_l3(data, data_end, shared, view->length, metadata);
	if (!filter_inner || !accepted)
		return accepted;
	return filter_skb_inner(data, data_end, shared, view->length, view->link_header);
}

#endif

#endif
