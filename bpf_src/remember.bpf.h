/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events about a packet that may be gone already. When a function returns, or a driver has answered, the skb may have been
 * freed and be somebody else's: nothing of it can be read any more. What it held is remembered from before.
 */
#ifndef PTRACE_REMEMBER_BPF_H
#define PTRACE_REMEMBER_BPF_H

#include "emit.bpf.h"

/* Names one call: what it was made with or where on the stack, what was called, and by whom or, again, from where. */
struct call_key {
	__u64 call;
	__u32 callee;
	__u32 caller;
};

struct call {
	struct ptrace_event event;
	__u8 bytes[ROOM_SMALL];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct call_key);
	__type(value, struct call);
} calls SEC(".maps");

const struct call empty_call = {};

/* Counts an event as lost that there was no room to remember for. */
static __always_inline void count_forgotten(__u32 probe_id)
{
	struct ptrace_counters *count = probe_counters(probe_id);

	if (!count)
		return;
	add_count(&count->seen, 1);
	add_count(&count->lost_ring, 1);
}

/* Returns the place where a call's packet is remembered; NULL where there is no room, which counts as lost. */
static __always_inline struct call *begin_call(const struct facts *facts, const struct call_key *key)
{
	struct call *call = 0;

	if (!bpf_map_update_elem(&calls, key, &empty_call, BPF_ANY))
		call = bpf_map_lookup_elem(&calls, key);
	if (!call)
		count_forgotten(facts->probe_id);
	return call;
}

/* Forgets a call whose packet turned out not to be wanted. */
static __always_inline void forget_call(const struct facts *facts, const struct call_key *key)
{
	bpf_map_delete_elem(&calls, key);
	count_rejected(facts->probe_id);
}

/* Remembers a packet that passed every filter, for emit_remembered(). */
static __always_inline void remember_call(struct packet_view *view, struct facts *facts,
					  const struct call_key *key)
{
	struct call *call;

	settle(view, facts);
	call = begin_call(facts, key);
	if (call && !fill_skb(&call->event, view, facts, ROOM_SMALL))
		forget_call(facts, key);
}

static __always_inline void fill_remembered(struct ptrace_event *record, const struct call *call,
					    const struct facts *facts)
{
	*record = call->event;
	record->timestamp_ns = bpf_ktime_get_ns();
	record->duration_ns = record->timestamp_ns - call->event.timestamp_ns;
	record->hook = facts->hook;
	record->probe_id = facts->probe_id;
	record->verdict = facts->verdict;
	record->return_value = facts->return_value;
	record->stack_id = -1;
	record->captured_length = 0;
	record->size = sizeof(*record);
	record->flags &= ~(PTRACE_EVENT_FIRST_SIGHT | PTRACE_EVENT_BYTES_MISSING);
	record->flags |= facts->flags | PTRACE_EVENT_NO_PACKET;
}

/* Emits the event of a call's end, from what is known of its beginning; nothing where that did not pass. */
static __always_inline void emit_remembered(const struct call_key *key, const struct facts *facts)
{
	struct call *call = bpf_map_lookup_elem(&calls, key);
	struct ptrace_counters *count;
	struct ptrace_event *record;
	void *ring;

	if (!call)
		return;
	count = probe_counters(facts->probe_id);
	ring = ring_of_this_cpu();
	if (!count)
		return;
	add_count(&count->seen, 1);
	record = ring ? bpf_ringbuf_reserve(ring, sizeof(*record), 0) : 0;
	if (record) {
		fill_remembered(record, call, facts);
		finish(ring, record, count, true);
	} else {
		add_count(&count->lost_ring, 1);
	}
	bpf_map_delete_elem(&calls, key);
}

#endif
