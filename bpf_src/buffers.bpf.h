/* SPDX-License-Identifier: GPL-2.0-only */
/* What the functions that watch over identity do to the table of packets, buffer by buffer. */
#ifndef PTRACE_BUFFERS_BPF_H
#define PTRACE_BUFFERS_BPF_H

#include "tracking.bpf.h"

/* False for NULL and for an error in the place of a pointer: IS_ERR_VALUE() in include/linux/err.h. */
static __always_inline bool is_pointer(struct sk_buff *skb)
{
	return skb && (__u64)skb < (__u64)-4095;
}

static __always_inline __u64 head_of(struct sk_buff *skb)
{
	return (__u64)BPF_CORE_READ(skb, head);
}

static __always_inline void put(__u64 head, const struct tracked *packet)
{
	if (!bpf_map_update_elem(&packets, &head, packet, BPF_NOEXIST))
		count_tracking(1, 0);
	else
		bpf_map_update_elem(&packets, &head, packet, BPF_ANY);
}

/* Most buffers hold nothing that is known. To look for it takes no lock, as deleting does even what is not there. */
static __always_inline void bury(__u64 head)
{
	if (find_tracked(head))
		end_tracked(head);
}

/* The same for the buffer of an skb, which may live on as an xdp_frame: revive(). */
static __always_inline void release(struct sk_buff *skb)
{
	__u64 head = (__u64)READ(skb, head);
	struct tracked *packet = find_tracked(head);

	if (!packet)
		return;
	if (READ_BITS(skb, head_frag))
		bpf_map_update_elem(&released, &head, packet, BPF_ANY);
	end_tracked(head);
}

/* Makes what is in a buffer a packet of its own, a child of `parent`. */
static __always_inline void put_child(__u64 head, const struct tracked *parent)
{
	struct tracked child = *parent;

	child.id = new_packet_id(bpf_ktime_get_ns());
	child.parent_id = parent->id;
	child.content = 0;
	child.merged = 0;
	child.unsure = 0;
	put(head, &child);
}

static __always_inline bool is_shared(struct sk_buff *skb)
{
	return !holds_alone(skb, (unsigned char *)head_of(skb));
}

#endif
