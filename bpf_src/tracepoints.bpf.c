// SPDX-License-Identifier: GPL-2.0-only
/* The kernel's own tracepoints on a packet's way: present on every kernel, also where nothing else can be attached. */
#define READ_DIRECT 1
#include "emit.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

static __always_inline bool emitting(__u32 probe_id)
{
	return config_emitting & (1ULL << probe_id);
}

/* Returns whether the packet passes every filter; its view is then complete. */
static __always_inline bool view_if_passing(struct packet_view *view, struct sk_buff *skb,
					    enum packet_position position, struct facts *facts)
{
	view_metadata(view, skb, valid_device(skb->dev));
	if (passes_metadata(view)) {
		view_bytes(view, position);
		if (passes_filter(view, facts))
			return true;
	}
	count_rejected(facts->probe_id);
	return false;
}

static __always_inline int trace_skb(struct sk_buff *skb, enum packet_position position,
				     enum ptrace_probe probe_id, enum ptrace_direction direction)
{
	struct facts facts = {.hook = PTRACE_HOOK_TRACEPOINT, .probe_id = probe_id, .direction = direction};
	struct packet_view view;

	if (view_if_passing(&view, skb, position, &facts))
		emit_skb(&view, &facts);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(netif_receive_skb, struct sk_buff *skb)
{
	return trace_skb(skb, POSITION_AT_NETWORK, PTRACE_PROBE_NETIF_RECEIVE_SKB, PTRACE_DIRECTION_INGRESS);
}

SEC("tp_btf/netif_rx")
int BPF_PROG(netif_rx, struct sk_buff *skb)
{
	return trace_skb(skb, POSITION_AT_NETWORK, PTRACE_PROBE_NETIF_RX, PTRACE_DIRECTION_INGRESS);
}

SEC("tp_btf/napi_gro_receive_entry")
int BPF_PROG(napi_gro_receive_entry, struct sk_buff *skb)
{
	return trace_skb(skb, POSITION_AT_NETWORK, PTRACE_PROBE_NAPI_GRO_RECEIVE_ENTRY, PTRACE_DIRECTION_INGRESS);
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	return trace_skb(skb, POSITION_AT_LINK, PTRACE_PROBE_NET_DEV_QUEUE, PTRACE_DIRECTION_EGRESS);
}

/*
 * When net_dev_xmit fires the driver has the skb, and may have freed it: nothing of it can be read any more. What it
 * held is remembered from net_dev_start_xmit, which comes just before on the same CPU.
 */
struct transmit_key {
	__u64 skb_address;
	__u32 ifindex;
	__u32 cpu;
};

struct transmit {
	struct ptrace_event event;
	__u8 bytes[ROOM_SMALL];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct transmit_key);
	__type(value, struct transmit);
} transmits SEC(".maps");

const struct transmit empty_transmit = {};

static __always_inline void remember_transmit(struct packet_view *view, const struct facts *facts,
					      const struct transmit_key *key)
{
	struct transmit *transmit;

	if (bpf_map_update_elem(&transmits, key, &empty_transmit, BPF_ANY))
		return;
	transmit = bpf_map_lookup_elem(&transmits, key);
	if (transmit)
		fill_skb(&transmit->event, view, facts, ROOM_SMALL);
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit, struct sk_buff *skb)
{
	return trace_skb(skb, POSITION_AT_LINK, PTRACE_PROBE_NET_DEV_START_XMIT, PTRACE_DIRECTION_EGRESS);
}

/* Attached beside the one above for net_dev_xmit's sake. */
SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit_remember, struct sk_buff *skb, struct net_device *dev)
{
	struct transmit_key key = {(__u64)skb, dev->ifindex, bpf_get_smp_processor_id()};
	struct facts facts = {.hook = PTRACE_HOOK_TRACEPOINT,
			      .probe_id = PTRACE_PROBE_NET_DEV_XMIT,
			      .direction = PTRACE_DIRECTION_EGRESS};
	struct packet_view view;

	if (view_if_passing(&view, skb, POSITION_AT_LINK, &facts))
		remember_transmit(&view, &facts, &key);
	return 0;
}

static __always_inline void emit_transmitted(const struct transmit *transmit, __s32 result)
{
	struct ptrace_counters *count = probe_counters(PTRACE_PROBE_NET_DEV_XMIT);
	void *ring = ring_of_this_cpu();
	struct ptrace_event *record;

	if (!count)
		return;
	count->seen++;
	if (!ring) {
		count->lost_ring++;
		return;
	}
	record = bpf_ringbuf_reserve(ring, sizeof(*record), 0);
	if (!record) {
		count->lost_ring++;
		return;
	}
	*record = transmit->event;
	record->timestamp_ns = bpf_ktime_get_ns();
	record->probe_id = PTRACE_PROBE_NET_DEV_XMIT;
	record->verdict = result;
	record->captured_length = 0;
	record->size = sizeof(*record);
	record->flags &= ~(PTRACE_EVENT_FIRST_SIGHT | PTRACE_EVENT_BYTES_MISSING);
	record->flags |= PTRACE_EVENT_NO_PACKET | PTRACE_EVENT_VERDICT;
	finish(ring, record, count, true);
}

SEC("tp_btf/net_dev_xmit")
int BPF_PROG(net_dev_xmit, struct sk_buff *skb, int result, struct net_device *dev)
{
	struct transmit_key key = {(__u64)skb, dev->ifindex, bpf_get_smp_processor_id()};
	struct transmit *transmit = bpf_map_lookup_elem(&transmits, &key);

	if (!transmit) /* rejected, and counted, when it was remembered */
		return 0;
	emit_transmitted(transmit, result);
	bpf_map_delete_elem(&transmits, &key);
	return 0;
}

/*
 * The end of an skb. Where it has no device left (UDP keeps something else there while the packet waits to be read), the
 * packet is known by its buffer if it was seen before.
 */
static __always_inline void remember_namespace(struct packet_view *view, struct facts *facts)
{
	struct tracked *known;

	if (view->net)
		return;
	known = find_tracked((__u64)view->skb->head);
	if (!known)
		return;
	view->netns_inode = known->netns_inode;
	view->ifindex = known->ifindex;
	facts->flags |= PTRACE_EVENT_FOLLOWED;
}

static __always_inline int trace_end(struct sk_buff *skb, struct facts *facts)
{
	struct packet_view view;

	facts->hook = PTRACE_HOOK_TRACEPOINT;
	view_metadata(&view, skb, valid_device(skb->dev));
	remember_namespace(&view, facts);
	if (emitting(facts->probe_id)) {
		if (passes_metadata(&view)) {
			view_bytes(&view, POSITION_BY_SKB);
			if (passes_filter(&view, facts))
				emit_skb(&view, facts);
			else
				count_rejected(facts->probe_id);
		} else {
			count_rejected(facts->probe_id);
		}
	}
	forget(skb, skb->head);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb, struct sk_buff *skb, void *location, enum skb_drop_reason reason)
{
	struct facts facts = {.probe_id = PTRACE_PROBE_KFREE_SKB,
			      .location = (__u64)location,
			      .drop_reason = reason,
			      .flags = PTRACE_EVENT_DROP_LOCATION | PTRACE_EVENT_DROP_REASON};

	return trace_end(skb, &facts);
}

/* Before drop reasons: c504e5c2f964 (v5.17). */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_without_reason, struct sk_buff *skb, void *location)
{
	struct facts facts = {.probe_id = PTRACE_PROBE_KFREE_SKB,
			      .location = (__u64)location,
			      .flags = PTRACE_EVENT_DROP_LOCATION};

	return trace_end(skb, &facts);
}

SEC("tp_btf/consume_skb")
int BPF_PROG(consume_skb, struct sk_buff *skb)
{
	struct facts facts = {.probe_id = PTRACE_PROBE_CONSUME_SKB};

	return trace_end(skb, &facts);
}
