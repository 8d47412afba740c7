/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From a packet to a record in the ring: filter, count, reserve, fill, submit.
 *
 * A record is reserved first and filled in place, never built in a per-CPU buffer: programs nest, a softirq's on
 * top of a system call's, and would write over each other's.
 */
#ifndef PTRACE_EMIT_BPF_H
#define PTRACE_EMIT_BPF_H

#include "bytes.bpf.h"
#include "filter.bpf.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "parse.bpf.h"
#include "predicates.bpf.h"
#include "records.h"
#include "tracking.bpf.h"

/* Data areas a record can have: bpf_ringbuf_reserve() wants a constant. */
#define ROOM_SMALL 128
#define ROOM_MEDIUM 512
#define ROOM_LARGE (2048 + COPY_CHUNK)
#define ROOM_HUGE (PTRACE_SNAPLEN_MAX + COPY_CHUNK)

/* What a hook knows about an event beside the packet. */
struct facts {
	__u64 location;
	__u32 drop_reason;
	__s32 verdict;
	__u32 flags; /* enum ptrace_event_flags */
	__u16 probe_id;
	__u8 hook;
	__u8 direction;
};

static __always_inline struct ptrace_counters *probe_counters(__u32 probe_id)
{
	return bpf_map_lookup_elem(&counters, &probe_id);
}

static __always_inline void count_rejected(__u32 probe_id)
{
	struct ptrace_counters *count;

	if (!config_count_rejected)
		return;
	count = probe_counters(probe_id);
	if (count)
		count->rejected++;
}

/* Lets a packet on that a filter turned away, if it is one that matched before. */
static __always_inline bool follow(unsigned char *head, struct facts *facts)
{
	if (!is_followed(head))
		return false;
	facts->flags |= PTRACE_EVENT_FOLLOWED;
	return true;
}

#if !defined(HOOK_TC) && !defined(HOOK_XDP)
/* The packet filter; the view must be complete. */
static __always_inline bool passes_filter(const struct packet_view *view, struct facts *facts)
{
	return filter_skb(view, facts->direction) || follow(view->head, facts);
}
#endif

static __always_inline bool passes_metadata(const struct packet_view *view)
{
	return match_netns(view->netns_inode) &&
	       match_interface(view->netns_inode, view->ifindex, view->rx_ifindex) && match_mark(view->mark);
}

static __always_inline void *ring_of_this_cpu(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&rings, &cpu);
}

/* Wakes the reader by batch: its timer finds what lies below the fill level. */
static __always_inline void submit(void *ring, struct ptrace_event *record)
{
	__u64 flags = BPF_RB_NO_WAKEUP;

	if (bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) >= config_wakeup_bytes)
		flags = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(record, flags);
}

/* The task that runs here. Not the helpers for it: XDP, TC and netfilter programs only get those since v6.10. */
static __always_inline void fill_task(struct ptrace_event *record)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	record->cpu = bpf_get_smp_processor_id();
	record->pid = BPF_CORE_READ(task, pid);
	record->tgid = BPF_CORE_READ(task, tgid);
	bpf_probe_read_kernel(record->comm, sizeof(record->comm), &task->comm);
}

static __always_inline void fill_head(struct ptrace_event *record, const struct facts *facts)
{
	__builtin_memset(record, 0, sizeof(*record));
	record->size = sizeof(*record);
	record->version = PTRACE_RECORD_VERSION;
	record->timestamp_ns = bpf_ktime_get_ns();
	record->hook = facts->hook;
	record->probe_id = facts->probe_id;
	record->flags = facts->flags;
	record->direction = facts->direction;
	record->drop_reason = facts->drop_reason;
	record->verdict = facts->verdict;
	record->location = facts->location;
	record->stack_id = -1;
}

static __always_inline void fill_namespace(struct ptrace_event *record, const struct packet_view *view)
{
	record->netns_inode = view->netns_inode;
	record->netns_cookie = net_cookie(view->net);
	record->ifindex = view->ifindex;
	record->rx_ifindex = view->rx_ifindex;
	record->mtu = view->dev ? READ(view->dev, mtu) : 0;
}

static __always_inline void fill_skb_metadata(struct ptrace_event *record, const struct packet_view *view)
{
	struct sk_buff *skb = view->skb;
	struct skb_shared_info *shared = (struct skb_shared_info *)(view->head + READ(skb, end));
	__u32 vlan = metadata_vlan(skb);

	record->skb_address = (__u64)skb;
	record->head_address = (__u64)view->head;
	record->mark = view->mark;
	record->hash = READ(skb, hash);
	record->queue = READ(skb, queue_mapping);
	record->packet_type = READ_BITS(skb, pkt_type);
	record->checksum = READ_BITS(skb, ip_summed);
	if (READ_BITS(skb, encapsulation))
		record->flags |= PTRACE_EVENT_ENCAPSULATED;
	record->gso_size = BPF_CORE_READ(shared, gso_size);
	if (record->gso_size) {
		record->gso_segments = BPF_CORE_READ(shared, gso_segs);
		record->gso_type = BPF_CORE_READ(shared, gso_type);
	}
	record->packet_length = view->length;
	record->protocol = view->protocol;
	if (view->link_header)
		record->flags |= PTRACE_EVENT_LINK_HEADER;
	record->data_length = view->nonlinear;
	if (vlan) {
		record->vlan_tci = vlan;
		record->flags |= PTRACE_EVENT_VLAN | PTRACE_EVENT_VLAN_IN_METADATA;
	}
}

/* Parses the bytes behind the head and sets how many of them the record holds. Returns identify()'s answer. */
static __always_inline bool finish_bytes(const struct copy *copy)
{
	struct ptrace_event *record = copy->record;
	__u32 captured = copied(copy);

	if (captured < walk_of(copy)->wanted)
		record->flags |= PTRACE_EVENT_BYTES_MISSING;
	__builtin_memset(record->source, 0, sizeof(struct walk));
	parse_packet(record);
	if (captured > config_snaplen)
		captured = config_snaplen;
	record->captured_length = captured;
	record->size = sizeof(*record) + captured;
	fill_task(record);
	return identify(record);
}

/* The bytes of a packet whose walk is set, and what they tell. Returns identify()'s answer. */
static __noinline int fill_bytes(struct ptrace_event *record, struct sk_buff *skb, __u32 room)
{
	struct copy copy = {.record = record, .room = room};

	copy_packet(&copy, skb);
	return finish_bytes(&copy);
}

/* Fills a record that has `room` bytes behind its head. Returns whether it is to be kept: identify(). */
static __noinline int fill_skb(struct ptrace_event *record, struct packet_view *view, const struct facts *facts,
			       __u32 room)
{
	fill_head(record, facts);
	fill_namespace(record, view);
	fill_skb_metadata(record, view);
	start_walk(record, view);
	return fill_bytes(record, view->skb, room);
}

/* Hands a filled record to the reader, or takes it back; keeps the counters' invariant seen = kept + lost. */
static __always_inline void finish(void *ring, struct ptrace_event *record, struct ptrace_counters *count,
				   bool keep)
{
	if (!keep) {
		count->seen--;
		if (config_count_rejected)
			count->rejected++;
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return;
	}
	count->kept++;
	if (!record->packet_id)
		count->untracked++;
	submit(ring, record);
}

static __always_inline void emit_skb_in(void *ring, struct packet_view *view, const struct facts *facts,
					struct ptrace_counters *count, const __u32 room)
{
	struct ptrace_event *record = bpf_ringbuf_reserve(ring, sizeof(*record) + room, 0);

	if (record)
		finish(ring, record, count, fill_skb(record, view, facts, room));
	else
		count->lost_ring++;
}

/* Emits one event of an skb that passed every filter. */
static __always_inline void emit_skb(struct packet_view *view, const struct facts *facts)
{
	struct ptrace_counters *count = probe_counters(facts->probe_id);
	__u32 wanted = bytes_wanted(view->length), room = wanted;
	void *ring = ring_of_this_cpu();

	if (!count)
		return;
	count->seen++;
	if (!ring) {
		count->lost_ring++;
		return;
	}
	if (view->start + wanted > view->linear_end)
		room += COPY_CHUNK;
	if (room <= ROOM_SMALL)
		emit_skb_in(ring, view, facts, count, ROOM_SMALL);
	else if (room <= ROOM_MEDIUM)
		emit_skb_in(ring, view, facts, count, ROOM_MEDIUM);
	else if (room <= ROOM_LARGE)
		emit_skb_in(ring, view, facts, count, ROOM_LARGE);
	else
		emit_skb_in(ring, view, facts, count, ROOM_HUGE);
}

#endif
