// SPDX-License-Identifier: GPL-2.0-only
/* Kernel functions by kprobes: one program on all of them (kprobe-multi, v5.18 with CONFIG_FPROBE), or one clone on each. */
#define READ_DIRECT 0
#include "functions.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

__weak __noinline __u64 function_cookie(void)
{
	return 0;
}

/* The arguments that lie in registers, six on x86_64 and eight on aarch64: the same number on both. */
static __always_inline __u64 register_argument(struct pt_regs *ctx, __u32 index)
{
	switch (index) {
	case 0:
		return PT_REGS_PARM1(ctx);
	case 1:
		return PT_REGS_PARM2(ctx);
	case 2:
		return PT_REGS_PARM3(ctx);
	case 3:
		return PT_REGS_PARM4(ctx);
	case 4:
		return PT_REGS_PARM5(ctx);
	case 5:
		return PT_REGS_PARM6(ctx);
	}
	return 0;
}

static __always_inline int trace_entry(struct pt_regs *ctx, __u64 cookie)
{
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION, .probe_id = COOKIE_PROBE(cookie)};
	__u64 skb = register_argument(ctx, COOKIE_ARGUMENT(cookie));

	if (COOKIE_KIND(cookie) == ARGUMENT_SKB_POINTER)
		bpf_probe_read_kernel(&skb, sizeof(skb), (void *)skb);
	return trace_function(ctx, (struct sk_buff *)skb, &facts);
}

SEC("kprobe")
int kprobe_entry(struct pt_regs *ctx)
{
	return trace_entry(ctx, function_cookie());
}

SEC("kprobe.multi")
int kprobe_multi_entry(struct pt_regs *ctx)
{
	return trace_entry(ctx, bpf_get_attach_cookie(ctx));
}

/* A function that makes an skb: its return value is the packet. */
SEC("kretprobe")
int kretprobe_skb(struct pt_regs *ctx)
{
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION_RETURN, .probe_id = COOKIE_PROBE(function_cookie())};

	return trace_function(ctx, (struct sk_buff *)PT_REGS_RC(ctx), &facts);
}

SEC("kretprobe.multi")
int kretprobe_multi_skb(struct pt_regs *ctx)
{
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION_RETURN,
			      .probe_id = COOKIE_PROBE(bpf_get_attach_cookie(ctx))};

	return trace_function(ctx, (struct sk_buff *)PT_REGS_RC(ctx), &facts);
}
