/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What makes a packet's identity exact: what happens to it in the functions that move its bytes to another buffer, and make
 * several packets of one or one of several.
 */
#ifndef PTRACE_IDENTITY_BPF_H
#define PTRACE_IDENTITY_BPF_H

#include "resend.bpf.h"

/* Segments of one packet that are looked at: 64 KiB of TCP at an MTU of 576, UDP_MAX_SEGMENTS (include/linux/udp.h). */
#define SEGMENTS_MAX 128
/* Fragments of one packet that are looked at. */
#define FRAGMENTS_MAX 64

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

static __always_inline int segments_of(struct sk_buff *skb, struct sk_buff *segments)
{
	struct tracked *found = find_tracked(head_of(skb)), parent;

	if (!found)
		return 0;
	parent = *found;
	for (int i = 0; i < SEGMENTS_MAX && is_pointer(segments); i++) {
		cut_segment(head_of(segments), &parent);
		segments = BPF_CORE_READ(segments, next);
	}
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

static __always_inline int pieces_of(struct sk_buff *skb)
{
	struct skb_shared_info *shared = (void *)head_of(skb) + BPF_CORE_READ(skb, end);
	struct tracked *found = find_tracked(head_of(skb)), parent;
	struct sk_buff *fragment;

	if (!found)
		return 0;
	parent = *found;
	fragment = BPF_CORE_READ(shared, frag_list);
	for (int i = 0; i < FRAGMENTS_MAX && fragment; i++) {
		take_apart(head_of(fragment), &parent);
		fragment = BPF_CORE_READ(fragment, next);
	}
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

/* The fragments hang in a tree; the first one's buffer becomes the whole packet's. */
static __always_inline int parts_of(struct sk_buff *whole)
{
	struct tracked *found = find_tracked(head_of(whole));
	struct skb_shared_info *shared = (void *)head_of(whole) + BPF_CORE_READ(whole, end);
	struct sk_buff *fragment = BPF_CORE_READ(shared, frag_list);
	__u64 id;

	if (!found)
		return 0;
	id = found->id;
	for (int i = 0; i < FRAGMENTS_MAX && fragment; i++) {
		set_parent(head_of(fragment), id);
		fragment = BPF_CORE_READ(fragment, next);
	}
	return 0;
}

#endif
