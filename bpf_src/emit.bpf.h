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

#define STACK_DEPTH 64

/* What a hook knows about an event beside the packet. */
struct facts {
	__u64 location;
	__s64 return_value;
	__u64 duration_ns;
	__s64 stack_id; /* plus one; 0: none taken */
	__u32 drop_reason;
	__s32 verdict;
	__u32 flags; /* enum ptrace_event_flags */
	__u16 probe_id;
	__u8 hook;
	__u8 direction;
};

/* Kernel stacks, by the id that records carry. Ids stay: none is ever given to another stack. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, STACK_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

static __always_inline struct ptrace_counters *probe_counters(__u32 probe_id)
{
	return bpf_map_lookup_elem(&counters, &probe_id);
}

/*
 * Adds to a counter. In one instruction: a counter is this CPU's own, but a softirq may come between a load and a store of a
 * program that runs for a system call, and count the same.
 */
static __always_inline void add_count(__u64 *counter, __s64 number)
{
	__sync_fetch_and_add(counter, number);
}

static __always_inline void count_rejected(__u32 probe_id)
{
	struct ptrace_counters *count;

	if (!config_count_rejected)
		return;
	count = probe_counters(probe_id);
	if (count)
		add_count(&count->rejected, 1);
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
	bool drop = facts->flags & PTRACE_EVENT_DROP_REASON;

	return (match_drop_reason(drop, facts->drop_reason) && filter_skb(view, facts->direction)) ||
	       follow(view->head, facts);
}
#endif

/* Takes the kernel stack where that was asked for. One that finds no place is counted, and the event kept. */
static __always_inline void take_stack(void *ctx, struct facts *facts)
{
	struct ptrace_counters *count;
	long id;

	if (!config_stacks)
		return;
	id = bpf_get_stackid(ctx, &stacks, 0);
	facts->stack_id = id < 0 ? 0 : id + 1;
	if (id >= 0)
		return;
	count = probe_counters(facts->probe_id);
	if (count)
		add_count(&count->lost_stack, 1);
}

/*
 * A packet whose namespace can't be told (UDP keeps something else where its device was while it waits to be read) is known
 * by its buffer, if it was seen before. Where a buffer's end may have gone unseen, only in the same skb: a netlink message has
 * no device either.
 */
static __always_inline void remember_namespace(struct packet_view *view, struct facts *facts)
{
	struct tracked *known;

	if (view->net)
		return;
	known = find_tracked((__u64)READ(view->skb, head));
	if (!known || (!config_exact_identity && known->skb_address != (__u64)view->skb))
		return;
	view->netns_inode = known->netns_inode;
	view->ifindex = known->ifindex;
	facts->flags |= PTRACE_EVENT_FOLLOWED;
}

static __always_inline bool passes_metadata(const struct packet_view *view)
{
	return match_netns(view->netns_inode) &&
	       match_interface(view->netns_inode, view->ifindex, view->rx_ifindex) && match_mark(view->mark) &&
	       match_task(view->skb ? socket_of(view->skb) : 0);
}

#if !defined(HOOK_TC) && !defined(HOOK_XDP)

static __always_inline bool view_if_metadata_passes(struct packet_view *view, struct sk_buff *skb,
						    struct facts *facts)
{
	view_metadata(view, skb, valid_device(device_of(skb)));
	remember_namespace(view, facts);
	return passes_metadata(view);
}

/*
 * The first look at an skb, before anything is known of its event: false if its bytes alone turn it away. Then nothing has been
 * written but the view. `flags` is the event's.
 */
static __always_inline bool bytes_pass(struct packet_view *view, struct sk_buff *skb,
				       enum packet_position position, __u32 *flags)
{
	if (!filter_first)
		return true;
	view->skb = skb;
	view_bytes(view, position);
	if (filter_expression(view))
		return true;
	*flags = PTRACE_EVENT_FOLLOWED;
	return is_followed(view->head);
}

/* The second: whether it passes every filter. Its view is then complete. */
static __always_inline bool view_if_passing(struct packet_view *view, struct sk_buff *skb,
					    enum packet_position position, struct facts *facts)
{
	if (!view_if_metadata_passes(view, skb, facts))
		return false;
	if (filter_first)
		return true;
	view_bytes(view, position);
	return passes_filter(view, facts);
}

#endif

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
	record->return_value = facts->return_value;
	record->duration_ns = facts->duration_ns;
	record->stack_id = facts->stack_id - 1;
}

static __always_inline void fill_namespace(struct ptrace_event *record, const struct packet_view *view)
{
	record->netns_inode = view->netns_inode;
	record->netns_cookie = view->netns_cookie;
	record->ifindex = view->ifindex;
	record->rx_ifindex = view->rx_ifindex;
	record->mtu = view->mtu;
}

static __always_inline void fill_skb_metadata(struct ptrace_event *record, const struct packet_view *view)
{
	struct sk_buff *skb = view->skb;
	struct skb_shared_info *shared = (struct skb_shared_info *)(view->head + view->end);
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

/*
 * Makes the verifier forget what it knows of numbers. Before be2ef8161572 (v6.2, known by a helper of that release) it takes
 * all of them for precise in programs of several functions, and goes through all that follows once for each way to get here.
 */
static __always_inline void forget_numbers(void *numbers, __u32 bytes)
{
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_cgrp_storage_get))
		bpf_probe_read_kernel(numbers, bytes, numbers);
}

/* The last step before a record is filled: from here on there is one way only, whatever hook and packet it is. */
static __always_inline void settle(struct packet_view *view, struct facts *facts)
{
	view_device(view);
	forget_numbers(&view->netns_cookie, sizeof(*view) - offsetof(struct packet_view, netns_cookie));
	forget_numbers(facts, sizeof(*facts));
}

/* Fills a record that has `room` bytes behind its head. The view is settled. Returns whether it is to be
 * kept: identify(). */
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
		add_count(&count->seen, -1);
		if (config_count_rejected)
			add_count(&count->rejected, 1);
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return;
	}
	add_count(&count->kept, 1);
	if (!record->packet_id)
		add_count(&count->untracked, 1);
	submit(ring, record);
}

/* Counts an event as seen and returns the ring that it goes to; NULL where there is none, and then it is lost. */
static __always_inline void *begin_event(struct ptrace_counters *count)
{
	void *ring = ring_of_this_cpu();

	if (!count)
		return 0;
	add_count(&count->seen, 1);
	if (!ring)
		add_count(&count->lost_ring, 1);
	return ring;
}

#define EMIT_WITH_ROOM(size, ring, count, fill, ...)                                                  \
	({                                                                                            \
		struct ptrace_event *record = bpf_ringbuf_reserve(ring, sizeof(*record) + (size), 0); \
                                                                                                      \
		if (record)                                                                           \
			finish(ring, record, count, fill(record, __VA_ARGS__, size));                 \
		else                                                                                  \
			add_count(&(count)->lost_ring, 1);                                            \
	})

/* Emits a record with place for `room` bytes, filled by `fill(record, ..., place)`: the smallest, and each a constant. */
#define EMIT(room, ring, count, fill, ...)                                           \
	do {                                                                         \
		if (room <= ROOM_SMALL)                                              \
			EMIT_WITH_ROOM(ROOM_SMALL, ring, count, fill, __VA_ARGS__);  \
		else if (room <= ROOM_MEDIUM)                                        \
			EMIT_WITH_ROOM(ROOM_MEDIUM, ring, count, fill, __VA_ARGS__); \
		else if (room <= ROOM_LARGE)                                         \
			EMIT_WITH_ROOM(ROOM_LARGE, ring, count, fill, __VA_ARGS__);  \
		else                                                                 \
			EMIT_WITH_ROOM(ROOM_HUGE, ring, count, fill, __VA_ARGS__);   \
	} while (0)

/* Emits one event of an skb that passed every filter. */
static __always_inline void emit_skb(struct packet_view *view, struct facts *facts)
{
	struct ptrace_counters *count = probe_counters(facts->probe_id);
	void *ring = begin_event(count);
	__u32 wanted, room;

	if (!count || !ring)
		return;
	settle(view, facts);
	room = wanted = bytes_wanted(view->length);
	if (!config_linear_only && view->start + wanted > view->linear_end)
		room += COPY_CHUNK;
	/* Said once more for verifiers that can't follow it: each room they doubt is verified again. */
	if (config_snaplen <= ROOM_SMALL && config_linear_only)
		room = 0;
	EMIT(room, ring, count, fill_skb, view, facts);
}

#endif
