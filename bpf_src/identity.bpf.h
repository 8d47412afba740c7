/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What makes a packet's identity exact: what happens to it in the functions that move its bytes to another buffer, and make
 * several packets of one or one of several.
 */
#ifndef PTRACE_IDENTITY_BPF_H
#define PTRACE_IDENTITY_BPF_H

#include "resend.bpf.h"

/* The bytes move to another buffer: remembered before, put down after. By the address of the skb, which stays. */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tracked);
} moving SEC(".maps");

/*
 * Where nobody else holds the old buffer it ends in there, and the compiler may have put skb_free_head() into it, as on Linux
 * 5.10, though others call that. So it ends here already. The new one was just allocated: what was known of it is over.
 */
static __always_inline int before_expansion(struct sk_buff *skb)
{
	__u64 key = (__u64)skb, head = head_of(skb);
	struct tracked *packet = find_tracked(head);

	if (packet)
		bpf_map_update_elem(&moving, &key, packet, BPF_ANY);
	if (!is_shared(skb))
		bury(head);
	return 0;
}

static __always_inline int after_expansion(struct sk_buff *skb, int error)
{
	__u64 key = (__u64)skb, head = head_of(skb);
	struct tracked *packet = bpf_map_lookup_elem(&moving, &key);

	if (!packet) {
		if (!error)
			bury(head);
		return 0;
	}
	if (error || !send_again(key, head))
		put(head, packet);
	bpf_map_delete_elem(&moving, &key);
	return 0;
}

/* A copy is the same packet in another buffer, as a clone is in the same. */

static __always_inline int copied_to(struct sk_buff *skb, struct sk_buff *copy)
{
	struct tracked *packet = find_tracked(head_of(skb)), *own;

	if (!packet || !is_pointer(copy))
		return 0;
	own = find_tracked(head_of(copy));
	if (own && !own->unsure)
		return 0;
	if (!send_again((__u64)skb, head_of(copy)))
		put(head_of(copy), packet);
	return 0;
}

/*
 * In what all that copy have in common: also veth, before it runs an XDP program for an skb that has not the room for it. What
 * TCP sends again is left to its own functions.
 */
static __always_inline int copy_header(struct sk_buff *copy, struct sk_buff *skb)
{
	__u64 key = (__u64)skb;

	return bpf_map_lookup_elem(&resends, &key) ? 0 : copied_to(skb, copy);
}

/* The skbs of a list are looked at one after the other, along with the packet that they are of. */
struct chain {
	struct sk_buff *skb;
	struct tracked whole;
};

static __always_inline long follow_chain(struct chain *chain,
					 void (*look)(__u64 head, const struct tracked *whole))
{
	struct sk_buff *skb = chain->skb;

	if (!is_pointer(skb))
		return 1;
	look(head_of(skb), &chain->whole);
	chain->skb = BPF_CORE_READ(skb, next);
	return 0;
}

/*
 * How many of a packet's segments and fragments are looked at. The verifier goes through a loop as often as the kernel might,
 * but once through what bpf_loop() calls (v5.17). Without it: 64 KiB of TCP at an MTU of 576, UDP_MAX_SEGMENTS
 * (include/linux/udp.h). With it: GSO_MAX_SIZE (include/linux/netdevice.h) at that MTU, or any datagram's fragments at 128.
 */
#if LOOP_BY_HELPER
#define SEGMENTS_MAX 1024
#define FRAGMENTS_MAX 1024
#define repeat(times, next, chain) bpf_loop(times, next, chain, 0)
#else
#define SEGMENTS_MAX 128
#define FRAGMENTS_MAX 64
static __always_inline void repeat(__u32 times, long (*next)(__u32, struct chain *), struct chain *chain)
{
	for (__u32 i = 0; i < times && !next(i, chain); i++)
		;
}
#endif

/* One becomes many. */

/* A part is itself again, from where the whole is by now. */
static __always_inline void part_goes_on(struct tracked *part, const struct tracked *whole)
{
	part->merged = 0;
	part->netns_inode = whole->netns_inode;
	part->ifindex = whole->ifindex;
	part->ttl = whole->ttl;
}

/* Of datagrams that GRO has put together each but the first is cut as a clone of itself: in the buffer it came in. */
static __always_inline void cut_segment(__u64 head, const struct tracked *whole)
{
	struct tracked *part = find_tracked(head);

	if (part && part->merged && part->parent_id == whole->id)
		part_goes_on(part, whole);
	else
		put_child(head, whole);
}

static long cut_next(__u32 index, struct chain *chain)
{
	return follow_chain(chain, cut_segment);
}

static __always_inline int segments_of(struct sk_buff *skb, struct sk_buff *segments)
{
	struct tracked *found = find_tracked(head_of(skb));
	struct chain chain = {.skb = segments};

	if (!found)
		return 0;
	chain.whole = *found;
	repeat(SEGMENTS_MAX, cut_next, &chain);
	return 0;
}

static __always_inline int fragment_of(struct sk_buff *skb, struct sk_buff *fragment)
{
	struct tracked *found = find_tracked(head_of(skb)), parent;

	if (!found || !is_pointer(fragment))
		return 0;
	parent = *found;
	put_child(head_of(fragment), &parent);
	return 0;
}

/*
 * A sender makes the pieces along with the whole, which they hang on; it becomes the first of them (c8b17be0b7a4, v5.3). What
 * is not seen again lies in the whole's pages. Pieces that came in as such, and were only put together for a look at them or
 * by GRO, go on as what they were.
 */
static __always_inline void take_apart(__u64 head, const struct tracked *whole)
{
	struct tracked *piece = find_tracked(head);

	if (piece && piece->id != whole->id)
		part_goes_on(piece, whole);
	else
		put_child(head, whole);
}

static long take_apart_next(__u32 index, struct chain *chain)
{
	return follow_chain(chain, take_apart);
}

/* The list that hangs on an skb. */
static __always_inline struct sk_buff *first_of_list(struct sk_buff *skb)
{
	struct skb_shared_info *shared = (void *)head_of(skb) + BPF_CORE_READ(skb, end);

	return BPF_CORE_READ(shared, frag_list);
}

static __always_inline int pieces_of(struct sk_buff *skb)
{
	struct tracked *found = find_tracked(head_of(skb));
	struct chain chain = {.skb = first_of_list(skb)};

	if (!found)
		return 0;
	chain.whole = *found;
	repeat(FRAGMENTS_MAX, take_apart_next, &chain);
	return 0;
}

/* Many become one: each is from then on known as a part of it. */

static __always_inline void set_parent(__u64 head, __u64 parent_id)
{
	struct tracked *packet = find_tracked(head);

	if (!packet || packet->id == parent_id)
		return;
	packet->parent_id = parent_id;
	packet->merged = 1;
}

static __always_inline void join(__u64 head, const struct tracked *whole)
{
	set_parent(head, whole->id);
}

static long join_next(__u32 index, struct chain *chain)
{
	return follow_chain(chain, join);
}

/* The fragments hang in a tree; the first one's buffer becomes the whole packet's. */
static __always_inline int parts_of(struct sk_buff *whole)
{
	struct tracked *found = find_tracked(head_of(whole));
	struct chain chain = {.skb = first_of_list(whole)};

	if (!found)
		return 0;
	chain.whole = *found;
	repeat(FRAGMENTS_MAX, join_next, &chain);
	return 0;
}

#endif
