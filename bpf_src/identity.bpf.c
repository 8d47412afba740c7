// SPDX-License-Identifier: GPL-2.0-only
/*
 * The functions that make a packet's identity exact, by trampolines: those that free its buffer, and where
 * identity_session.bpf.c can't be had the others too. Each is attached where this kernel has it; none of them emits an event.
 */
#define READ_DIRECT 1
#define LOOP_BY_HELPER 0
#include "identity.bpf.h"
#include "xdp_frame.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

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

/* A driver has an skb for a packet that was at XDP before. Of functions that are traced only GRO's comes before this. */
SEC("tp_btf/napi_gro_receive_entry")
int BPF_PROG(napi_gro_receive_entry, struct sk_buff *skb)
{
	__u64 buffer = handed_over(skb->dev->ifindex), head = head_of(skb);

	if (buffer && buffer != head && !find_tracked(head))
		find_copied(buffer, head);
	return 0;
}

/* The bytes move to another buffer. */

SEC("fentry/pskb_expand_head")
int BPF_PROG(pskb_expand_head_before, struct sk_buff *skb)
{
	return before_expansion(skb);
}

SEC("fexit/pskb_expand_head")
int BPF_PROG(pskb_expand_head_after, struct sk_buff *skb, int headroom, int tailroom, unsigned int priority,
	     int error)
{
	return after_expansion(skb, error);
}

/* A copy. */

SEC("fentry/skb_copy_header")
int BPF_PROG(skb_copy_header, struct sk_buff *copy, struct sk_buff *skb)
{
	return copy_header(copy, skb);
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
	return segments_of(skb, segments);
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

SEC("fentry/ip_fraglist_init")
int BPF_PROG(ip_fraglist_init, struct sk_buff *skb)
{
	return pieces_of(skb);
}

SEC("fentry/ip6_fraglist_init")
int BPF_PROG(ip6_fraglist_init, struct sk_buff *skb)
{
	return pieces_of(skb);
}

/* What GRO has made a list of. */
SEC("fentry/skb_segment_list")
int BPF_PROG(skb_segment_list, struct sk_buff *skb)
{
	return pieces_of(skb);
}

/* Many become one. */

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

SEC("fexit/inet_frag_reasm_finish")
int BPF_PROG(inet_frag_reasm_finish, void *queue, struct sk_buff *whole)
{
	return parts_of(whole);
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

SEC("fentry/__tcp_transmit_skb")
int BPF_PROG(tcp_transmit_skb, void *sk, struct sk_buff *skb)
{
	return before_transmission(skb);
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

SEC("fexit/tcp_fragment")
int BPF_PROG(tcp_fragment, void *sk, int queue, struct sk_buff *skb, unsigned int length, unsigned int mss,
	     unsigned int priority, int error)
{
	return queue == TCP_FRAG_IN_RTX_QUEUE ? after_cut(skb, error) : 0;
}
