// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel functions by BPF trampolines, by one program and one link for all of them (struct bpf_tracing_multi_link, v7.2). What is
 * known of a function is its cookie; its arguments are had by a helper, which the verifier makes a load of. libbpf knows none of
 * these types of programs: the loader says which (packet_tracer/probes/backends/fentry_multi.py).
 */
#define READ_DIRECT 0
#include "buffer_functions.bpf.h"
#include "session.bpf.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline struct sk_buff *skb_argument(void *ctx, __u64 cookie)
{
	__u64 argument = argument_of(ctx, cookie);

	return COOKIE_KIND(cookie) == ARGUMENT_SKB_POINTER ? pointed_to(argument) : (struct sk_buff *)argument;
}

/* Functions of their own, so that one is on the stack at a time. Each returns whether the packet passed every filter. */

static __noinline bool skb_seen(void *ctx, __u64 cookie)
{
	return function_seen(ctx, skb_argument(ctx, cookie), PTRACE_HOOK_FUNCTION, COOKIE_PROBE(cookie));
}

static __noinline bool argument_seen(void *ctx, __u64 cookie)
{
	return buffer_seen(ctx, argument_of(ctx, cookie), cookie);
}

static __noinline bool remember_skb(void *ctx, __u64 cookie)
{
	struct call_key call = traced_call(ctx, argument_of(ctx, cookie), COOKIE_PROBE(cookie));

	return remember_function(&call, skb_argument(ctx, cookie));
}

static __noinline bool remember_argument(void *ctx, __u64 cookie)
{
	__u64 argument = argument_of(ctx, cookie);
	struct call_key call = traced_call(ctx, argument, COOKIE_PROBE(cookie));

	return remember_buffer(&call, argument, cookie);
}

static __always_inline __u64 returned_value(void *ctx)
{
	__u64 value = 0;

	bpf_get_func_ret(ctx, &value);
	return value;
}

/* Returns whether the packet passed every filter, and is remembered. */
static __always_inline bool begin_call_of(void *ctx, __u64 cookie)
{
	if (takes_buffer(cookie))
		return argument_seen(ctx, cookie) && remember_argument(ctx, cookie);
	return skb_seen(ctx, cookie) && remember_skb(ctx, cookie);
}

/* fentry */
SEC("fentry")
int multi_entry(void *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx);

	if (takes_buffer(cookie))
		argument_seen(ctx, cookie);
	else
		skb_seen(ctx, cookie);
	return 0;
}

/* fsession: entry and return. Its eight bytes say whether the return is of interest. */
SEC("fexit")
int multi_call(void *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx), *seen = from_entry(ctx);
	struct call_key call;

	if (!is_return(ctx)) {
		*seen = begin_call_of(ctx, cookie);
		return 0;
	}
	if (!*seen)
		return 0;
	call = traced_call(ctx, argument_of(ctx, cookie), COOKIE_PROBE(cookie));
	return trace_return(&call, cookie, returned_value(ctx));
}

/* fexit: functions that make an skb. */
SEC("fexit")
int multi_made(void *ctx)
{
	return trace_function(ctx, (struct sk_buff *)returned_value(ctx), PTRACE_HOOK_FUNCTION_RETURN,
			      COOKIE_PROBE(bpf_get_attach_cookie(ctx)));
}
