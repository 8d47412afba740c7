/* SPDX-License-Identifier: GPL-2.0-only */
/* What TCP sends again: the same bytes once more, another packet, linked to the first. */
#ifndef PTRACE_RESEND_BPF_H
#define PTRACE_RESEND_BPF_H

#include "buffers.bpf.h"

/*
 * What TCP is about to send again, by the address of its skb. While the first is still under way its buffer is not touched:
 * the repetition gets another one (skb_unclone(), or pskb_copy() in __tcp_transmit_skb()), and that is a packet of its own.
 */
struct resend {
	struct tracked first;
	bool waiting;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct resend);
} resends SEC(".maps");

/* Makes what is in a buffer the repetition of what its skb held before. Returns false where nothing is to be repeated. */
static __always_inline bool send_again(__u64 skb, __u64 head)
{
	struct resend *resend = bpf_map_lookup_elem(&resends, &skb);

	if (!resend || !resend->waiting)
		return false;
	resend->waiting = false;
	put_child(head, &resend->first);
	return true;
}

static __always_inline int before_resend(struct sk_buff *skb)
{
	struct tracked *found = find_tracked(head_of(skb));
	__u64 key = (__u64)skb;
	struct resend resend, *outer = bpf_map_lookup_elem(&resends, &key);

	if (!found)
		return 0;
	if (outer && (outer->first.id == found->id || outer->first.id == found->parent_id))
		return 0; /* one of the two functions called the other */
	__builtin_memset(&resend, 0, sizeof(resend));
	resend.first = *found;
	resend.waiting = true;
	bpf_map_update_elem(&resends, &key, &resend, BPF_ANY);
	if (!is_shared(skb))
		send_again(key, head_of(skb));
	return 0;
}

/* The first may have ended since, and then the repetition has its buffer. */
static __always_inline int before_transmission(struct sk_buff *skb)
{
	if (!is_shared(skb))
		send_again((__u64)skb, head_of(skb));
	return 0;
}

/* Where nothing was sent (the first is still in a queue, or there is no memory or route) it stays what it was. */
static __always_inline int after_resend(struct sk_buff *skb, int error)
{
	__u64 key = (__u64)skb;
	struct resend *resend = bpf_map_lookup_elem(&resends, &key);

	if (!resend)
		return 0;
	if (error && !resend->waiting)
		put(head_of(skb), &resend->first);
	bpf_map_delete_elem(&resends, &key);
	return 0;
}

/*
 * What was sent in one is cut in two, so that only one is sent again. The rest is in another skb, behind it in the list of
 * what was sent (since e2080072ed2d, v4.15), and is what it was: a part of the first.
 */
static __always_inline int after_cut(struct sk_buff *skb, int error)
{
	__u64 key = (__u64)skb, rest;
	struct resend *resend = bpf_map_lookup_elem(&resends, &key);
	struct tracked *packet = resend ? &resend->first : find_tracked(head_of(skb));

	if (error || !packet)
		return 0;
	rest = (__u64)BPF_CORE_READ(skb, tcp_tsorted_anchor.next) -
	       bpf_core_field_offset(struct sk_buff, tcp_tsorted_anchor);
	put(head_of((struct sk_buff *)rest), packet);
	return 0;
}

#endif
