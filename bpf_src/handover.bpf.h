/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From XDP to the skb. Mostly a driver builds the skb on the buffer that the XDP program saw. Some copy what is small to another
 * one (ena, bnxt, virtio-net before v6.3), which nobody sees. But they do it packet by packet: the skb is given to GRO right after
 * the program has run, by the same CPU, before the next packet has its turn.
 */
#ifndef PTRACE_HANDOVER_BPF_H
#define PTRACE_HANDOVER_BPF_H

#include "maps.bpf.h"
#include "records.h"
#include <bpf/bpf_core_read.h>

/* The function that drivers give skbs to, if it is traced: its probe id. */
const volatile __u32 config_gro_probe = 0;

/* The buffer of the last packet at XDP, if that packet is traced and has no skb yet: where it starts, and its device. */
struct handover {
	__u64 buffer;
	__u32 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct handover);
} handovers SEC(".maps");

static __always_inline struct handover *last_handover(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&handovers, &zero);
}

/* To be called when another packet is at XDP, which may not be traced, or get no record. */
static __always_inline void hand_over_nothing(void)
{
	struct handover *last = last_handover();

	if (last && last->buffer)
		last->buffer = 0;
}

/* Generic XDP runs for an skb. Its queues are the device's own, a driver has others. */
static __always_inline bool is_generic_xdp(struct xdp_buff *xdp)
{
	struct xdp_rxq_info *queue = BPF_CORE_READ(xdp, rxq);
	struct net_device *dev = BPF_CORE_READ(queue, dev);
	__u64 bytes = (__u64)BPF_CORE_READ(dev, num_rx_queues) * bpf_core_type_size(struct netdev_rx_queue);

	return (__u64)queue - (__u64)BPF_CORE_READ(dev, _rx) < bytes;
}

/* To be called for what is traced before there is an skb. */
static __always_inline void hand_over(const struct ptrace_event *record)
{
	struct handover *last = last_handover();

	if (!last || last->buffer == record->head_address ||
	    (record->hook != PTRACE_HOOK_XDP && record->hook != PTRACE_HOOK_PROGRAM))
		return;
	last->ifindex = record->ifindex;
	last->buffer = 0;
	if (record->flags & PTRACE_EVENT_FIRST_SIGHT && !is_generic_xdp((struct xdp_buff *)record->skb_address))
		last->buffer = record->head_address;
}

/* Returns the buffer that an skb which is given to GRO may be a copy of, once; 0 for none. */
static __always_inline __u64 handed_over(__u32 ifindex)
{
	struct handover *last = last_handover();
	__u64 buffer = last ? last->buffer : 0;

	if (!buffer || last->ifindex != ifindex)
		return 0;
	last->buffer = 0;
	return buffer;
}

#endif
