/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Copying a packet's bytes out of the kernel: the linear part, the pages, and the list of further skbs behind it.
 *
 * The verifier has to see that no copy can leave the record. A copy that starts at a variable offset is therefore made
 * in chunks of COPY_CHUNK bytes, and a record for it has a chunk of room more than it says it holds.
 *
 * A file of TC programs defines HOOK_TC: its context is the skb, and a helper copies from all of it.
 */
#ifndef PTRACE_BYTES_BPF_H
#define PTRACE_BYTES_BPF_H

#include "maps.bpf.h"
#include "packet.bpf.h"

#define COPY_CHUNK 256
/* Enough steps for the largest room, a full set of pages (MAX_SKB_FRAGS is 17) and a short list behind them. */
#define COPY_STEPS 72
#define SKB_FRAG_BYTES 16

/* Where in the record the next bytes go; `room` is the size of its data area. */
struct copy {
	__u8 *to;
	__u32 room;
	__u32 done;
	__u32 wanted;
};

extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

/* Hides a variable's origin from the compiler, so that it keeps the bound check the verifier needs. */
#define OPAQUE(variable) asm volatile("" : "+r"(variable))

/* Bytes of the next chunk, at most `available`; sets `*at` to its offset in the record. 0: nothing fits. */
static __always_inline __u32 next_chunk(const struct copy *copy, __u32 available, __u32 *at)
{
	__u32 done = copy->done, part = copy->wanted - done;

	if (part > available)
		part = available;
	if (part > COPY_CHUNK)
		part = COPY_CHUNK;
	OPAQUE(done);
	OPAQUE(part);
	if (done > copy->room - COPY_CHUNK || part > COPY_CHUNK)
		return 0;
	*at = done;
	return part;
}

/* Copies the linear bytes from `start` on. Returns 0, or -1 when they could not be read. */
static __always_inline int copy_linear(struct copy *copy, const struct packet_view *view)
{
	__u32 part = view->linear_end - view->start;

	if (part > copy->wanted)
		part = copy->wanted;
	OPAQUE(part);
	if (part > copy->room || bpf_probe_read_kernel(copy->to, part, view->head + view->start))
		return -1;
	copy->done = part;
	return 0;
}

#if READ_DIRECT
/* Copies what lies behind the linear part through the kernel's own walk over an skb. */
static __always_inline int copy_nonlinear_dynptr(struct copy *copy, struct sk_buff *skb, __u32 offset)
{
	struct bpf_dynptr bytes;

	if (bpf_dynptr_from_skb((struct __sk_buff *)skb, 0, &bytes))
		return -1;
	for (__u32 i = 0; i < PTRACE_SNAPLEN_MAX / COPY_CHUNK + 1; i++) {
		__u32 at, part;

		if (copy->done >= copy->wanted)
			return 0;
		part = next_chunk(copy, COPY_CHUNK, &at);
		if (!part || bpf_dynptr_read(copy->to + at, part, &bytes, offset, 0))
			return -1;
		copy->done += part;
		offset += part;
	}
	return 0;
}
#endif

#ifndef HOOK_TC
/* One run of contiguous bytes of an skb, and what comes after it. */
struct segment {
	__u64 address;
	__u32 length;
	__u32 frag;
	__u32 frags;
	struct skb_shared_info *shared;
	struct sk_buff *list;
};

static __always_inline struct skb_shared_info *shared_info(struct sk_buff *skb, unsigned char *head)
{
	return (struct skb_shared_info *)(head + BPF_CORE_READ(skb, end));
}

/* Sets the segment to the next page of this skb. Returns -1 where it is not memory that can be read. */
static __always_inline int next_page(struct segment *segment)
{
	struct skb_frag *frag = (void *)segment->shared + bpf_core_field_offset(struct skb_shared_info, frags) +
				segment->frag * SKB_FRAG_BYTES;
	struct skb_frag___bio_vec *old = (void *)frag;
	__u64 page;

	if (bpf_core_field_exists(frag->netmem)) {
		page = BPF_CORE_READ(frag, netmem);
		segment->length = BPF_CORE_READ(frag, len);
		segment->address = BPF_CORE_READ(frag, offset);
	} else {
		page = (__u64)BPF_CORE_READ(old, bv_page);
		segment->length = BPF_CORE_READ(old, bv_len);
		segment->address = BPF_CORE_READ(old, bv_offset);
	}
	if (page & 1) /* net_iov: the memory of a device (8ab79ed50cf1, v6.8) */
		return -1;
	segment->address += config_page_base + ((page / config_page_struct_bytes) << config_page_shift);
	segment->frag++;
	return 0;
}

/* Sets the segment to the linear part of the next skb in the list behind a packet. */
static __always_inline void next_in_list(struct segment *segment)
{
	struct sk_buff *skb = segment->list;

	segment->address = (__u64)BPF_CORE_READ(skb, data);
	segment->length = BPF_CORE_READ(skb, len) - BPF_CORE_READ(skb, data_len);
	segment->shared = shared_info(skb, BPF_CORE_READ(skb, head));
	segment->frags = BPF_CORE_READ(segment->shared, nr_frags);
	segment->frag = 0;
	segment->list = BPF_CORE_READ(skb, next);
}

/* Copies what lies behind the linear part by walking the pages. Returns 0, or -1 when some could not be read. */
static __noinline int copy_nonlinear_pages(struct copy *copy, struct sk_buff *skb, unsigned char *head)
{
	struct segment segment = {.shared = shared_info(skb, head)};

	segment.frags = BPF_CORE_READ(segment.shared, nr_frags);
	segment.list = BPF_CORE_READ(segment.shared, frag_list);
	for (__u32 i = 0; i < COPY_STEPS; i++) {
		__u32 at, part;

		if (copy->done >= copy->wanted)
			return 0;
		if (segment.length) {
			part = next_chunk(copy, segment.length, &at);
			if (!part || bpf_probe_read_kernel(copy->to + at, part, (void *)segment.address))
				return -1;
			copy->done += part;
			segment.address += part;
			segment.length -= part;
		} else if (segment.frag < segment.frags) {
			if (next_page(&segment))
				return -1;
		} else if (segment.list) {
			next_in_list(&segment);
		} else {
			return -1;
		}
	}
	return -1;
}

#endif

/* Copies a packet's first `copy->wanted` bytes; `copy->done` tells how many there were to be had. */
static __always_inline void copy_packet(struct copy *copy, struct packet_view *view)
{
#ifdef HOOK_TC
	__u32 part = copy->wanted;

	OPAQUE(part);
	if (part <= copy->room && part && !bpf_skb_load_bytes(view->skb, view->start - view->data, copy->to, part))
		copy->done = part;
#else
	if (copy_linear(copy, view) || copy->done >= copy->wanted || !view->nonlinear)
		return;
#if READ_DIRECT
	if (config_skb_dynptr) {
		copy_nonlinear_dynptr(copy, view->skb, view->linear_end - view->data);
		return;
	}
#endif
	if (config_page_base)
		copy_nonlinear_pages(copy, view->skb, view->head);
#endif
}

#endif
