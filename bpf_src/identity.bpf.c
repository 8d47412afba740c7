// SPDX-License-Identifier: GPL-2.0-only
/*
 * What makes a packet's identity exact: the functions that move its bytes to another buffer, make several packets of one or
 * one of several, and free the buffer. Each is attached where this kernel has it; none of them emits an event.
 */
#define READ_DIRECT 1
#include "resend.bpf.h"
#include "xdp_frame.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

/* Segments of one packet that are looked at: 64 KiB of TCP at an MTU of 576, UDP_MAX_SEGMENTS (include/linux/udp.h). */
#define SEGMENTS_MAX 128
/* Fragments of one packet that are looked at. */
#define FRAGMENTS_MAX 64

/* The end of a buffer. */

SEC("fentry/skb_free_head")
int BPF_PROG(skb_free_head, struct sk_buff *skb)
{
	release(skb);
	return 0;
}

/* Where the compiler has put skb_free_head() into its callers. */
SEC("fentry/skb_release_data")
int BPF_PROG(skb_release_data, struct sk_buff *skb)
{
	if (holds_alone(skb, skb->head))
		release(skb);
	return 0;
}

/*
 * There, two clones may end on two CPUs at once and neither be taken for the last. So nothing is known of a buffer that has
 * just been allocated, either.
 */
SEC("fexit/__alloc_skb")
int BPF_PROG(alloc_skb, unsigned int size, __u32 priority, int flags, int node, struct sk_buff *skb)
{
	if (is_pointer(skb))
		bury(head_of(skb));
	return 0;
}

SEC("fexit/__netdev_alloc_skb")
int BPF_PROG(netdev_alloc_skb, void *dev, unsigned int length, __u32 priority, struct sk_buff *skb)
{
	if (is_pointer(skb))
		bury(head_of(skb));
	return 0;
}

/* napi_alloc_skb() since 6e9b01909a81 (v6.9). */
SEC("fexit/__napi_alloc_skb")
int BPF_PROG(napi_alloc_skb, void *napi, unsigned int length, __u32 priority, struct sk_buff *skb)
{
	if (is_pointer(skb))
		bury(head_of(skb));
	return 0;
}

/* The skb ends, its buffer becomes a page of another packet. */
SEC("fentry/kfree_skb_partial")
int BPF_PROG(kfree_skb_partial, struct sk_buff *skb, bool head_stolen)
{
	if (head_stolen)
		bury(head_of(skb));
	return 0;
}

SEC("fentry/napi_skb_free_stolen_head")
int BPF_PROG(napi_skb_free_stolen_head, struct sk_buff *skb)
{
	bury(head_of(skb));
	return 0;
}

/* The bytes move to another buffer: remembered before, put down after. By the address of the skb, which stays. */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tracked);
} moving SEC(".maps");

static __always_inline void take_up(__u64 key, __u64 head)
{
	struct tracked *packet = find_tracked(head);

	if (packet)
		bpf_map_update_elem(&moving, &key, packet, BPF_ANY);
}

/*
 * Where nobody else holds the old buffer it ends in there, and the compiler may have put skb_free_head() into it, as on Linux
 * 5.10, though others call that. So it ends here already. The new one was just allocated: what was known of it is over.
 */
SEC("fentry/pskb_expand_head")
int BPF_PROG(pskb_expand_head_before, struct sk_buff *skb)
{
	__u64 head = head_of(skb);

	take_up((__u64)skb, head);
	if (!is_shared(skb))
		bury(head);
	return 0;
}

SEC("fexit/pskb_expand_head")
int BPF_PROG(pskb_expand_head_after, struct sk_buff *skb, int headroom, int tailroom, unsigned int priority,
	     int error)
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
 * What all that copy have in common: also veth, before it runs an XDP program for an skb that has not the room for it. What TCP
 * sends again is left to the functions below.
 */
SEC("fentry/skb_copy_header")
int BPF_PROG(skb_copy_header, struct sk_buff *copy, struct sk_buff *skb)
{
	__u64 key = (__u64)skb;

	return bpf_map_lookup_elem(&resends, &key) ? 0 : copied_to(skb, copy);
}

SEC("fexit/skb_copy")
int BPF_PROG(skb_copy, struct sk_buff *skb, unsigned int priority, struct sk_buff *copy)
{
	return copied_to(skb, copy);
}

SEC("fexit/__pskb_copy_fclone")
int BPF_PROG(pskb_copy, struct sk_buff *skb, int headroom, unsigned int priority, bool fclone,
	     struct sk_buff *copy)
{
	return copied_to(skb, copy);
}

SEC("fexit/skb_copy_expand")
int BPF_PROG(skb_copy_expand, struct sk_buff *skb, int headroom, int tailroom, unsigned int priority,
	     struct sk_buff *copy)
{
	return copied_to(skb, copy);
}

/* One becomes many. */

SEC("fexit/skb_segment")
int BPF_PROG(skb_segment, struct sk_buff *skb, __u64 features, struct sk_buff *segments)
{
	struct tracked *found = find_tracked(head_of(skb)), parent;

	if (!found)
		return 0;
	parent = *found;
	for (int i = 0; i < SEGMENTS_MAX && is_pointer(segments); i++) {
		put_child(head_of(segments), &parent);
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

SEC("fexit/ip_frag_next")
int BPF_PROG(ip_frag_next, struct sk_buff *skb, void *state, struct sk_buff *fragment)
{
	return fragment_of(skb, fragment);
}

SEC("fexit/ip6_frag_next")
int BPF_PROG(ip6_frag_next, struct sk_buff *skb, void *state, struct sk_buff *fragment)
{
	return fragment_of(skb, fragment);
}

/*
 * A sender makes the pieces along with the whole, which they hang on; it becomes the first of them (c8b17be0b7a4, v5.3). What
 * is not seen again lies in the whole's pages. Pieces that came in as such, and were only put together for a look at them,
 * go on as what they were.
 */
static __always_inline void take_apart(__u64 head, const struct tracked *whole)
{
	struct tracked *piece = find_tracked(head);

	if (piece && piece->id != whole->id)
		piece->merged = 0;
	else
		put_child(head, whole);
}

static __always_inline int fragments_of(struct sk_buff *skb)
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

SEC("fentry/ip_fraglist_init")
int BPF_PROG(ip_fraglist_init, struct sk_buff *skb)
{
	return fragments_of(skb);
}

SEC("fentry/ip6_fraglist_init")
int BPF_PROG(ip6_fraglist_init, struct sk_buff *skb)
{
	return fragments_of(skb);
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

static __always_inline void merge(struct sk_buff *into, struct sk_buff *skb)
{
	struct tracked *whole = find_tracked(head_of(into));

	if (whole)
		set_parent(head_of(skb), whole->id);
}

SEC("fexit/skb_gro_receive")
int BPF_PROG(skb_gro_receive, struct sk_buff *into, struct sk_buff *skb, int error)
{
	if (!error)
		merge(into, skb);
	return 0;
}

SEC("fexit/skb_gro_receive_list")
int BPF_PROG(skb_gro_receive_list, struct sk_buff *into, struct sk_buff *skb, int error)
{
	if (!error)
		merge(into, skb);
	return 0;
}

SEC("fexit/skb_try_coalesce")
int BPF_PROG(skb_try_coalesce, struct sk_buff *into, struct sk_buff *skb, bool *head_stolen, int *delta, __u8 done)
{
	if (done)
		merge(into, skb);
	return 0;
}

/* The fragments hang in a tree; the first one's buffer becomes the whole packet's. */
SEC("fexit/inet_frag_reasm_finish")
int BPF_PROG(inet_frag_reasm_finish, void *queue, struct sk_buff *whole)
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

/* An xdp_frame becomes an skb: what was in its buffer may be known from the skb it was taken from. */

SEC("fentry/__xdp_build_skb_from_frame")
int BPF_PROG(build_skb_from_frame, struct xdp_frame *frame)
{
	revive(frame_start(frame));
	return 0;
}

/* veth did that by itself until 65e6dcf73398 (v5.12). */
SEC("fentry/build_skb")
int BPF_PROG(build_skb, void *data)
{
	revive((__u64)data);
	return 0;
}

/* The same bytes once more: another packet, linked to the first. */

SEC("fentry/__tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb, void *sk, struct sk_buff *skb)
{
	return before_resend(skb);
}

/* The compiler may have cut the other one in two (in Debian's 6.1, for one), and this one calls the second part only. */
SEC("fentry/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb_caller, void *sk, struct sk_buff *skb)
{
	return before_resend(skb);
}

/* The first may have ended since, and then the repetition has its buffer. */
SEC("fentry/__tcp_transmit_skb")
int BPF_PROG(tcp_transmit_skb, void *sk, struct sk_buff *skb)
{
	if (!is_shared(skb))
		send_again((__u64)skb, head_of(skb));
	return 0;
}

SEC("fexit/__tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb_after, void *sk, struct sk_buff *skb, int segments, int error)
{
	return after_resend(skb, error);
}

SEC("fexit/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb_caller_after, void *sk, struct sk_buff *skb, int segments, int error)
{
	return after_resend(skb, error);
}

/*
 * What was sent in one is cut in two, so that only one is sent again. The rest is in another skb, behind it in the list of
 * what was sent (since e2080072ed2d, v4.15), and is what it was: a part of the first.
 */
SEC("fexit/tcp_fragment")
int BPF_PROG(tcp_fragment, void *sk, int queue, struct sk_buff *skb, unsigned int length, unsigned int mss,
	     unsigned int priority, int error)
{
	__u64 key = (__u64)skb, rest;
	struct resend *resend = bpf_map_lookup_elem(&resends, &key);
	struct tracked *packet = resend ? &resend->first : find_tracked(head_of(skb));

	if (error || queue != TCP_FRAG_IN_RTX_QUEUE || !packet)
		return 0;
	rest = (__u64)BPF_CORE_READ(skb, tcp_tsorted_anchor.next) -
	       bpf_core_field_offset(struct sk_buff, tcp_tsorted_anchor);
	put(head_of((struct sk_buff *)rest), packet);
	return 0;
}
