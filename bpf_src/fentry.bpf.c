// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel functions by BPF trampolines: the cheapest way in, and the only one that gives arguments and return value
 * at once. The programs here are templates. The loader clones one for each function, with the function's BTF id, its cookie,
 * and the offset of the argument in the place of ARGUMENT_OFFSET and RETURN_OFFSET: a context may only be read at constant
 * offsets, and bpf_get_func_arg() does not say what type the argument has (and came with v5.17).
 */
#define READ_DIRECT 1
#include "functions.bpf.h"

char LICENSE[] SEC("license") = "GPL";

SEC("fentry")
int function_entry(void *ctx)
{
	return trace_function(ctx, (struct sk_buff *)CONTEXT_VALUE(ctx, ARGUMENT_OFFSET), PTRACE_HOOK_FUNCTION,
			      COOKIE_PROBE(function_cookie()));
}

SEC("fentry")
int function_remember(void *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)CONTEXT_VALUE(ctx, ARGUMENT_OFFSET);
	struct call_key call = traced_call(ctx, (__u64)skb, COOKIE_PROBE(function_cookie()));

	remember_function(&call, skb);
	return 0;
}

SEC("fexit")
int function_return(void *ctx)
{
	__u64 cookie = function_cookie();
	struct call_key call = traced_call(ctx, CONTEXT_VALUE(ctx, ARGUMENT_OFFSET), COOKIE_PROBE(cookie));

	return trace_return(&call, cookie, CONTEXT_VALUE(ctx, RETURN_OFFSET));
}

/* A function that makes an skb: its return value is the packet. */
SEC("fexit")
int function_made(void *ctx)
{
	return trace_function(ctx, (struct sk_buff *)CONTEXT_VALUE(ctx, RETURN_OFFSET),
			      PTRACE_HOOK_FUNCTION_RETURN, COOKIE_PROBE(function_cookie()));
}
