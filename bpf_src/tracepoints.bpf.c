// SPDX-License-Identifier: GPL-2.0-only
/* The kernel's own tracepoints on a packet's way: present on every kernel, also where nothing else can be attached. */
#define READ_DIRECT 1
#include "remember.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

static __always_inline bool emitting(__u32 probe_id)
{
	return config_emitting & (1ULL << probe_id);
}

static __always_inline int trace_skb(void *ctx, struct sk_buff *skb, enum packet_position position,
				     enum ptrace_probe probe_id, enum ptrace_direction direction)
{
	struct packet_view view;
	struct facts facts;
	__u32 flags = 0;

	if (bytes_pass(&view, skb, position, &flags)) {
		facts = (struct facts){.hook = PTRACE_HOOK_TRACEPOINT,
				       .probe_id = probe_id,
				       .direction = direction,
				       .flags = flags};
		if (view_if_passing(&view, skb, position, &facts)) {
			take_stack(ctx, &facts);
			emit_skb(&view, &facts);
			return 0;
		}
	}
	count_rejected(probe_id);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(netif_receive_skb, struct sk_buff *skb)
{
	return trace_skb(ctx, skb, POSITION_AT_NETWORK, PTRACE_PROBE_NETIF_RECEIVE_SKB, PTRACE_DIRECTION_INGRESS);
}

SEC("tp_btf/netif_rx")
int BPF_PROG(netif_rx, struct sk_buff *skb)
{
	return trace_skb(ctx, skb, POSITION_AT_NETWORK, PTRACE_PROBE_NETIF_RX, PTRACE_DIRECTION_INGRESS);
}

SEC("tp_btf/napi_gro_receive_entry")
int BPF_PROG(napi_gro_receive_entry, struct sk_buff *skb)
{
	return trace_skb(ctx, skb, POSITION_AT_NETWORK, PTRACE_PROBE_NAPI_GRO_RECEIVE_ENTRY,
			 PTRACE_DIRECTION_INGRESS);
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	return trace_skb(ctx, skb, POSITION_AT_LINK, PTRACE_PROBE_NET_DEV_QUEUE, PTRACE_DIRECTION_EGRESS);
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit, struct sk_buff *skb)
{
	return trace_skb(ctx, skb, POSITION_AT_LINK, PTRACE_PROBE_NET_DEV_START_XMIT, PTRACE_DIRECTION_EGRESS);
}

/*
 * net_dev_xmit, the driver's answer, comes just after on the same CPU, but by then the skb may be gone. So this one is attached
 * beside the one above for its sake.
 */
SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit_remember, struct sk_buff *skb, struct net_device *dev)
{
	struct packet_view view;
	struct call_key key;
	struct facts facts;
	__u32 flags = 0;

	if (bytes_pass(&view, skb, POSITION_AT_LINK, &flags)) {
		key = (struct call_key){(__u64)skb, dev->ifindex, bpf_get_smp_processor_id()};
		facts = (struct facts){.hook = PTRACE_HOOK_TRACEPOINT,
				       .probe_id = PTRACE_PROBE_NET_DEV_XMIT,
				       .direction = PTRACE_DIRECTION_EGRESS,
				       .flags = flags};
		if (view_if_passing(&view, skb, POSITION_AT_LINK, &facts)) {
			remember_call(&view, &facts, &key);
			return 0;
		}
	}
	count_rejected(PTRACE_PROBE_NET_DEV_XMIT);
	return 0;
}

SEC("tp_btf/net_dev_xmit")
int BPF_PROG(net_dev_xmit, struct sk_buff *skb, int result, struct net_device *dev)
{
	struct call_key key = {(__u64)skb, dev->ifindex, bpf_get_smp_processor_id()};
	struct facts facts = {.hook = PTRACE_HOOK_TRACEPOINT,
			      .probe_id = PTRACE_PROBE_NET_DEV_XMIT,
			      .verdict = result,
			      .flags = PTRACE_EVENT_VERDICT};

	emit_remembered(&key, &facts);
	return 0;
}

/*
 * Whether an skb ends for a device that is hardware, while this CPU is not in its driver's transmit call. Some drivers free
 * what they have sent by kfree_skb(), as if it were dropped (vmxnet3); what they do drop, they drop in that call. Devices that
 * are none (veth, tunnels) have no parent, and many take no lock.
 */
static __always_inline bool outside_transmit(struct net_device *dev, struct sk_buff *skb)
{
	__u64 at = BPF_CORE_READ(skb, queue_mapping) * bpf_core_type_size(struct netdev_queue);
	struct netdev_queue *queue;

	if (!dev || !BPF_CORE_READ(dev, dev.parent))
		return false;
	queue = (void *)BPF_CORE_READ(dev, _tx) + at;
	return BPF_CORE_READ(queue, xmit_lock_owner) != bpf_get_smp_processor_id();
}

static __always_inline bool trace_last(void *ctx, struct sk_buff *skb, const struct facts *end)
{
	struct packet_view view;
	struct facts facts;
	__u32 flags = 0;

	if (!bytes_pass(&view, skb, POSITION_BY_SKB, &flags))
		return false;
	facts = *end;
	facts.hook = PTRACE_HOOK_TRACEPOINT;
	facts.flags |= flags;
	if (!view_if_passing(&view, skb, POSITION_BY_SKB, &facts) || is_message(skb))
		return false;
	if (end->probe_id == PTRACE_PROBE_KFREE_SKB && outside_transmit(view.dev, skb))
		facts.flags |= PTRACE_EVENT_OUTSIDE_TRANSMIT;
	if (!holds_alone(skb, view.head))
		facts.flags |= PTRACE_EVENT_SHARED;
	take_stack(ctx, &facts);
	emit_skb(&view, &facts);
	return true;
}

/* The end of an skb. */
static __always_inline int trace_end(void *ctx, struct sk_buff *skb, const struct facts *end)
{
	if (emitting(end->probe_id) && !trace_last(ctx, skb, end))
		count_rejected(end->probe_id);
	if (!config_exact_identity) /* else its buffer's own end is seen, which comes a little later */
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

	return trace_end(ctx, skb, &facts);
}

/* Before drop reasons: c504e5c2f964 (v5.17). */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_without_reason, struct sk_buff *skb, void *location)
{
	struct facts facts = {.probe_id = PTRACE_PROBE_KFREE_SKB,
			      .location = (__u64)location,
			      .flags = PTRACE_EVENT_DROP_LOCATION};

	return trace_end(ctx, skb, &facts);
}

SEC("tp_btf/consume_skb")
int BPF_PROG(consume_skb, struct sk_buff *skb)
{
	struct facts facts = {.probe_id = PTRACE_PROBE_CONSUME_SKB};

	return trace_end(ctx, skb, &facts);
}
