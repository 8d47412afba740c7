/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading numbers out of a packet wherever they lie: filters call these functions where the linear part is not enough, and
 * what looks into headers beside them (tunnels, addresses) uses nothing else.
 */
#ifndef PTRACE_FILTER_READ_BPF_H
#define PTRACE_FILTER_READ_BPF_H

#include "maps.bpf.h"
#include "packet.bpf.h"
#include "pages.bpf.h"

#define VLAN_TAG_AT 12
#define VLAN_TAG_END 16

/* Returns the number that the bytes are in network order. */
static __always_inline long filter_number(const __u8 *bytes, __u32 size)
{
	if (size == 1)
		return bytes[0];
	if (size == 2)
		return bytes[0] << 8 | bytes[1];
	return (__u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

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

/* True if bytes of the tag are among those wanted: they must then be read one by one. */
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

#ifdef HOOK_XDP
/* Above this direct access is not certain to reach. */
#define FILTER_OFFSET_MAX 0x3fff

/* Before multi-buffer XDP, 3f364222d032 (v5.18), a buffer was all linear. */
static __always_inline long filter_read_direct(struct xdp_md *ctx, __u32 offset, __u8 *bytes, const __u32 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (offset > FILTER_OFFSET_MAX)
		return -1;
	data += offset;
	if (data + size > end)
		return -1;
	__builtin_memcpy(bytes, data, size);
	return 0;
}
#endif

static __always_inline long filter_read(FILTER_CONTEXT *ctx, __u32 offset, __u8 *bytes, const __u32 size)
{
#ifdef HOOK_TC
	return bpf_skb_load_bytes(ctx, offset, bytes, size);
#else
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_load_bytes))
		return bpf_xdp_load_bytes(ctx, offset, bytes, size);
	return filter_read_direct(ctx, offset, bytes, size);
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
 * Returns the `size` (1, 2, 4) bytes at `offset` as a number, -1 where the packet has none there. `tag`: see it in the
 * packet (TC only).
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
		value = value << 8 | byte;
	}
	return value;
}

#ifdef HOOK_XDP
/* Returns the packet's length, its fragments included. */
__weak __noinline long filter_xdp_length(struct xdp_md *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_get_buff_len))
		return bpf_xdp_get_buff_len(ctx);
	return (long)ctx->data_end - (long)ctx->data;
}
#endif

#else

/* A full set of pages (MAX_SKB_FRAGS is 17 unless configured otherwise), and as many skbs in the list behind. */
#define FILTER_PAGES_MAX 24

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
			length = locate_page(frag, &address);
			frag = (void *)frag + SKB_FRAG_BYTES;
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

/* Reads bytes of the linear part. Returns -1 where they are not all there. */
static __always_inline long filter_copy(__u64 data, __u64 data_end, __u32 offset, void *to, const __u32 size)
{
	return data + offset + size > data_end || bpf_probe_read_kernel(to, size, (void *)data + offset) ? -1 : 0;
}

static __always_inline long filter_load_linear(__u64 data, __u64 data_end, __u32 offset, __u32 size)
{
	__u8 bytes[4] = {};
	long result;

	if (size == 1)
		result = filter_copy(data, data_end, offset, bytes, 1);
	else if (size == 2)
		result = filter_copy(data, data_end, offset, bytes, 2);
	else
		result = filter_copy(data, data_end, offset, bytes, 4);
	return result ? -1 : filter_number(bytes, size);
}

/* Returns the byte at `address`, in the linear part or behind it. */
static __always_inline long filter_load_byte(__u64 address, __u64 data_end, __u64 shared)
{
	__u8 byte;

	if (address >= data_end)
		return filter_load_page(shared, address - data_end);
	return bpf_probe_read_kernel(&byte, 1, (void *)address) ? -1 : byte;
}

/*
 * Returns bytes of a packet as a number, -1 where it has none there. `data` and `data_end` bound the linear part (`data`
 * lies behind it where a packet begins in a page); `place` is the offset from `data`, and in its upper half how many
 * bytes (1, 2, 4); `tag`: see it in the packet.
 */
__weak __noinline long filter_load(__u64 data, __u64 data_end, __u64 shared, __u64 place, __u32 tag)
{
	__u32 offset = place, size = place >> 32, value = 0;

	if (!filter_meets_tag(offset, size, tag)) {
		__u32 position = filter_position(offset, tag);

		if (data + position + size <= data_end)
			return filter_load_linear(data, data_end, position, size);
	}
	for (__u32 i = 0; i < 4 && i < size; i++) {
		long position = filter_position(offset + i, tag);
		long byte = position < 0 ? -1 - position : filter_load_byte(data + position, data_end, shared);

		if (byte < 0)
			return -1;
		value = value << 8 | byte;
	}
	return value;
}

#endif

#endif
