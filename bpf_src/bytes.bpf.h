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
#include "pages.bpf.h"
#include "parse.bpf.h"

#define COPY_CHUNK 256
/* Steps beside those that copy: a full set of pages (MAX_SKB_FRAGS is 17) and a short list behind them. */
#define COPY_STEPS_BESIDE 32
#define COPY_STEPS (PTRACE_SNAPLEN_MAX / COPY_CHUNK + COPY_STEPS_BESIDE + 1)

/*
 * One packet's copy into a record, `room` being the size of its data area. What changes on the way lies in the record itself
 * (captured_length, struct walk): the verifier forgets a value on its way through there, and with it all the paths that led
 * to it. On the stack it would follow each of them to the end.
 */
struct copy {
	struct ptrace_event *record;
	__u64 room; /* 64 bits: the verifier keeps constants on the stack by whole slots */
};

/*
 * The walk over a packet's bytes: the run it is at, and where it goes from there. It lies where the record's addresses and
 * comm will.
 */
struct walk {
	__u64 address;
	__u32 length;
	__u16 frag;
	__u16 frags;
	__u64 shared; /* struct skb_shared_info */
	__u64 list;   /* struct sk_buff */
	__u32 offset; /* of the first byte from skb->data; negative where headers were pulled */
	__u32 wanted; /* bytes to copy */
};

_Static_assert(sizeof(struct walk) <= 48, "a walk must fit source, destination and comm");

static __always_inline volatile struct walk *walk_of(const struct copy *copy)
{
	return (volatile struct walk *)copy->record->source;
}

static __always_inline __u32 copied(const struct copy *copy)
{
	return *(volatile __u16 *)&copy->record->captured_length;
}

static __always_inline void add_copied(const struct copy *copy, __u32 bytes)
{
	*(volatile __u16 *)&copy->record->captured_length += bytes;
}

static __always_inline __u8 *data_of(const struct copy *copy)
{
	return (__u8 *)(copy->record + 1);
}

extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

/* Hides a variable's origin from the compiler, so that it keeps the bound check the verifier needs. */
#define OPAQUE(variable) asm volatile("" : "+r"(variable))

/* A number of bytes as helpers take it that refuse 0, in a way that the verifier sees: old ones lose it in comparisons. */
static __always_inline __u32 at_least_one(__u32 bytes)
{
	bytes = ((bytes - 1) & 0x3fff) + 1;
	OPAQUE(bytes);
	return bytes;
}

/* Bytes of the next chunk, at most `available`; sets `*at` to its offset in the record. 0: nothing fits. */
static __always_inline __u32 next_chunk(const struct copy *copy, __u32 available, __u32 *at)
{
	__u32 done = copied(copy), part = walk_of(copy)->wanted - done;

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

/* Bytes to copy: the snaplen, but at least what the headers are parsed from. */
static __always_inline __u32 bytes_wanted(__u32 length)
{
	__u32 wanted = config_snaplen > PARSE_BYTES ? config_snaplen : PARSE_BYTES;

	return length < wanted ? length : wanted;
}

/* Sets the walk to a packet's first byte. After this the view is not needed any more. */
static __always_inline void start_walk(struct ptrace_event *record, const struct packet_view *view)
{
	volatile struct walk *walk = (volatile struct walk *)record->source;

	walk->address = (__u64)view->head + view->start;
	walk->length = view->linear_end - view->start;
	walk->offset = view->start - view->data;
	walk->wanted = bytes_wanted(view->length);
}

/* Copies the linear bytes. Returns 0, or -1 when they could not be read. */
static __always_inline int copy_linear(const struct copy *copy)
{
	volatile struct walk *walk = walk_of(copy);
	__u32 part = walk->length;

	if (part > walk->wanted)
		part = walk->wanted;
	OPAQUE(part);
	if (part > copy->room || bpf_probe_read_kernel(data_of(copy), part, (void *)walk->address))
		return -1;
	add_copied(copy, part);
	return 0;
}

#if READ_DIRECT
/* Copies what lies behind the linear part through the kernel's own walk over an skb. */
static __noinline int copy_nonlinear_dynptr(const struct copy *copy, struct sk_buff *skb)
{
	struct bpf_dynptr bytes;

	if (bpf_dynptr_from_skb((struct __sk_buff *)skb, 0, &bytes))
		return -1;
	for (__u32 i = 0; i < PTRACE_SNAPLEN_MAX / COPY_CHUNK + 1; i++) {
		__u32 at, part;

		if (i > config_snaplen / COPY_CHUNK + 1)
			break;
		if (copied(copy) >= walk_of(copy)->wanted)
			return 0;
		part = next_chunk(copy, COPY_CHUNK, &at);
		if (!part || bpf_dynptr_read(data_of(copy) + at, part, &bytes, walk_of(copy)->offset + at, 0))
			return -1;
		add_copied(copy, part);
	}
	return 0;
}
#endif

#ifndef HOOK_TC
static __always_inline struct skb_shared_info *shared_info(struct sk_buff *skb, unsigned char *head)
{
	return (struct skb_shared_info *)(head + BPF_CORE_READ(skb, end));
}

/* Goes to the next page of this skb. Returns -1 where it is not memory that can be read. */
static __always_inline int next_page(volatile struct walk *walk)
{
	struct skb_frag *frag = (void *)walk->shared + bpf_core_field_offset(struct skb_shared_info, frags) +
				walk->frag * SKB_FRAG_BYTES;
	__u64 address;
	long length = locate_page(frag, &address);

	if (length < 0)
		return -1;
	walk->address = address;
	walk->length = length;
	walk->frag++;
	return 0;
}

/* Goes to the pages of an skb, after its linear part unless `skip_linear`. */
static __always_inline void enter_skb(volatile struct walk *walk, struct sk_buff *skb, bool skip_linear)
{
	struct skb_shared_info *shared = shared_info(skb, BPF_CORE_READ(skb, head));

	walk->address = (__u64)BPF_CORE_READ(skb, data);
	walk->length = skip_linear ? 0 : BPF_CORE_READ(skb, len) - BPF_CORE_READ(skb, data_len);
	walk->frag = 0;
	walk->frags = BPF_CORE_READ(shared, nr_frags);
	walk->shared = (__u64)shared;
	walk->list = (__u64)(skip_linear ? BPF_CORE_READ(shared, frag_list) : BPF_CORE_READ(skb, next));
}

/* Copies one chunk, or goes on to where the next one is. Returns 1 when all is done, -1 when it can't be. */
static __always_inline int walk_on(const struct copy *copy)
{
	volatile struct walk *walk = walk_of(copy);
	__u32 at, part;

	if (copied(copy) >= walk_of(copy)->wanted)
		return 1;
	if (!walk->length) {
		if (walk->frag < walk->frags)
			return next_page(walk);
		if (!walk->list)
			return -1;
		enter_skb(walk, (struct sk_buff *)walk->list, false);
		return 0;
	}
	part = next_chunk(copy, walk->length, &at);
	if (!part || bpf_probe_read_kernel(data_of(copy) + at, part, (void *)walk->address))
		return -1;
	add_copied(copy, part);
	walk->address += part;
	walk->length -= part;
	return 0;
}

/* Copies what lies behind the linear part by walking the pages. */
static __noinline int copy_nonlinear_pages(const struct copy *copy, struct sk_buff *skb)
{
	enter_skb(walk_of(copy), skb, true);
	for (__u32 i = 0; i < COPY_STEPS; i++) {
		if (i > config_snaplen / COPY_CHUNK + COPY_STEPS_BESIDE || walk_on(copy))
			break;
	}
	return 0;
}
#endif

/* Copies a packet's first `copy->wanted` bytes, or as many as can be had. */
static __always_inline void copy_packet(const struct copy *copy, struct sk_buff *skb)
{
#ifdef HOOK_TC
	__u32 part = at_least_one(walk_of(copy)->wanted);

	if (part <= copy->room && !bpf_skb_load_bytes(skb, walk_of(copy)->offset, data_of(copy), part))
		add_copied(copy, part);
#else
	if (copy_linear(copy) || copied(copy) >= walk_of(copy)->wanted || copy->room <= COPY_CHUNK ||
	    config_linear_only)
		return;
#if READ_DIRECT
	if (config_skb_dynptr) {
		copy_nonlinear_dynptr(copy, skb);
		return;
	}
#endif
	if (config_page_base)
		copy_nonlinear_pages(copy, skb);
#endif
}

#endif
