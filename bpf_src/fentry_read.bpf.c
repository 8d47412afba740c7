// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel functions by BPF trampolines whose argument leads to a packet that a program may not dereference: an `sk_buff **`, and
 * an xdp_buff or xdp_frame. Templates, as those of fentry.bpf.c are.
 */
#define READ_DIRECT 0
#include "buffer_functions.bpf.h"

char LICENSE[] SEC("license") = "GPL";

SEC("fentry")
int pointer_entry(void *ctx)
{
	__u64 cookie = function_cookie();

	return trace_function(ctx, pointed_to(argument_of(ctx, cookie)), PTRACE_HOOK_FUNCTION,
			      COOKIE_PROBE(cookie));
}

/* The call is known by the argument: what it points to may be another skb when it returns. */
SEC("fentry")
int pointer_remember(void *ctx)
{
	__u64 cookie = function_cookie(), argument = argument_of(ctx, cookie);
	struct call_key call = traced_call(ctx, argument, COOKIE_PROBE(cookie));

	remember_function(&call, pointed_to(argument));
	return 0;
}

SEC("fexit")
int pointer_return(void *ctx)
{
	__u64 cookie = function_cookie();
	struct call_key call = traced_call(ctx, argument_of(ctx, cookie), COOKIE_PROBE(cookie));

	return trace_return(&call, cookie, CONTEXT_VALUE(ctx, RETURN_OFFSET));
}

SEC("fentry")
int buffer_entry(void *ctx)
{
	__u64 cookie = function_cookie();

	return trace_buffer(ctx, as_number(CONTEXT_VALUE(ctx, ARGUMENT_OFFSET)), cookie);
}

SEC("fentry")
int buffer_remember(void *ctx)
{
	__u64 cookie = function_cookie(), argument = as_number(CONTEXT_VALUE(ctx, ARGUMENT_OFFSET));
	struct call_key call = traced_call(ctx, argument, COOKIE_PROBE(cookie));

	remember_buffer(&call, argument, cookie);
	return 0;
}

SEC("fexit")
int buffer_return(void *ctx)
{
	__u64 cookie = function_cookie(), argument = as_number(CONTEXT_VALUE(ctx, ARGUMENT_OFFSET));
	struct call_key call = traced_call(ctx, argument, COOKIE_PROBE(cookie));

	return trace_return(&call, cookie, CONTEXT_VALUE(ctx, RETURN_OFFSET));
}
