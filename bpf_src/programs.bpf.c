// SPDX-License-Identifier: GPL-2.0-only
/*
 * BPF programs of others, by trampolines at their entry and exit: what XDP and tc programs were given, and what they said. The
 * programs here are templates; the loader clones them for each program that is traced (packet_tracer/probes/program_probes.py).
 */
#define READ_DIRECT 0
#include "functions.bpf.h"
#include "xdp_buffer.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* A program that runs: the packet it was given, once at a time on a CPU. */
struct run_key {
	__u64 context;
	__u32 probe_id;
	__u32 cpu;
};

struct run {
	__u64 entered_ns;
	__u64 packet_id;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct run_key);
	__type(value, struct run);
} runs SEC(".maps");

static __always_inline void begin_run(__u64 context, const struct packet_view *view, const struct facts *facts)
{
	struct run_key key = {context, facts->probe_id, bpf_get_smp_processor_id()};
	struct tracked *known = find_tracked((__u64)view->head);
	struct run run = {.entered_ns = bpf_ktime_get_ns(), .packet_id = known ? known->id : 0};

	if (!known && facts->flags & PTRACE_EVENT_FOLLOWED)
		return; /* it turned out to be another packet: identify() */
	if (bpf_map_update_elem(&runs, &key, &run, BPF_ANY))
		count_forgotten(facts->probe_id + 1);
}

/* Returns what is known of the entry, once; false where that was not shown. */
static __always_inline bool end_run(__u64 context, __u32 probe_id, struct run *run)
{
	struct run_key key = {context, probe_id, bpf_get_smp_processor_id()};
	struct run *found = bpf_map_lookup_elem(&runs, &key);

	if (!found)
		return false;
	*run = *found;
	bpf_map_delete_elem(&runs, &key);
	return true;
}

/*
 * What a program returned. With the helper (f92c1e183604, v5.17) wherever the kernel puts it: behind one argument, or behind
 * five if it does not trust the program's type of its context. Without, the loader finds out which.
 */
static __always_inline __s32 verdict_of(void *ctx)
{
	__u64 value = 0;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_func_ret)) {
		bpf_get_func_ret(ctx, &value);
		return value;
	}
	return CONTEXT_VALUE(ctx, RETURN_OFFSET);
}

static __always_inline struct facts exit_facts(void *ctx, __u32 probe_id, const struct run *run)
{
	__s32 verdict = verdict_of(ctx);

	return (struct facts){.hook = PTRACE_HOOK_PROGRAM_RETURN,
			      .probe_id = probe_id + 1,
			      .verdict = verdict,
			      .return_value = verdict,
			      .duration_ns = bpf_ktime_get_ns() - run->entered_ns,
			      .flags = PTRACE_EVENT_VERDICT};
}

SEC("fentry")
int xdp_program_entry(void *ctx)
{
	struct facts facts = {.hook = PTRACE_HOOK_PROGRAM,
			      .probe_id = COOKIE_PROBE(function_cookie()),
			      .direction = PTRACE_DIRECTION_INGRESS};
	struct xdp_buff *xdp = (struct xdp_buff *)CONTEXT_VALUE(ctx, 0);
	struct buffer_view view = {};

	hand_over_nothing();
	if (!view_buff(&view, xdp) || !buffer_passes(&view, &facts)) {
		count_rejected(facts.probe_id);
		return 0;
	}
	take_stack(ctx, &facts);
	emit_buffer(&view, &facts);
	begin_run(view.address, &view.packet, &facts);
	return 0;
}

/* The packet as the program has left it: whatever it changed, it is the one that came in. */
SEC("fexit")
int xdp_program_exit(void *ctx)
{
	struct xdp_buff *xdp = (struct xdp_buff *)CONTEXT_VALUE(ctx, 0);
	__u32 probe_id = COOKIE_PROBE(function_cookie());
	struct buffer_view view = {};
	struct tracked *known;
	struct facts facts;
	struct run run;

	if (!view_buff(&view, xdp) || !end_run(view.address, probe_id, &run))
		return 0;
	facts = exit_facts(ctx, probe_id, &run);
	facts.direction = PTRACE_DIRECTION_INGRESS;
	known = find_tracked((__u64)view.packet.head);
	if (known && known->id == run.packet_id)
		known->content = known->ttl = 0;
	take_stack(ctx, &facts);
	emit_buffer(&view, &facts);
	return 0;
}

static __always_inline __u8 tc_direction(struct sk_buff *skb)
{
	return READ_BITS(skb, tc_at_ingress) ? PTRACE_DIRECTION_INGRESS : PTRACE_DIRECTION_EGRESS;
}

SEC("fentry")
int tc_program_entry(void *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)CONTEXT_VALUE(ctx, 0);
	struct facts facts = {.hook = PTRACE_HOOK_PROGRAM, .probe_id = COOKIE_PROBE(function_cookie())};
	struct packet_view view = {};

	facts.direction = tc_direction(skb);
	view_metadata(&view, skb, valid_device(device_of(skb)));
	if (passes_metadata(&view)) {
		view_bytes(&view, POSITION_AT_LINK);
		if (passes_filter(&view, &facts)) {
			take_stack(ctx, &facts);
			emit_skb(&view, &facts);
			begin_run((__u64)skb, &view, &facts);
			return 0;
		}
	}
	count_rejected(facts.probe_id);
	return 0;
}

SEC("fexit")
int tc_program_exit(void *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)CONTEXT_VALUE(ctx, 0);
	__u32 probe_id = COOKIE_PROBE(function_cookie());
	struct packet_view view = {};
	struct facts facts;
	struct run run;

	if (!end_run((__u64)skb, probe_id, &run))
		return 0;
	facts = exit_facts(ctx, probe_id, &run);
	facts.direction = tc_direction(skb);
	view_metadata(&view, skb, valid_device(device_of(skb)));
	view_bytes(&view, POSITION_AT_LINK);
	take_stack(ctx, &facts);
	emit_skb(&view, &facts);
	return 0;
}
