// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel functions by kprobes: one program on all of them, by one link (kprobe-multi, v5.18 with CONFIG_FPROBE) or by a perf
 * event for each. Where returns are wanted, by one link again (a kprobe session), or by three perf events for each.
 */
#define READ_DIRECT 0
#include "buffer_functions.bpf.h"
#include "session.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

/* What is known of functions, by address: for kernels without attach cookies (7adfc6c9b315, v5.15). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} function_cookies SEC(".maps");

/*
 * Cookies of kprobe-multi by where their functions are: the lower half of the address, and the cookie, which has 32 bits. The
 * kernel searches a function's cookie by halves among all of the link, which takes as long as a filter does.
 */
#define KNOWN_COOKIES 8192
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KNOWN_COOKIES);
	__type(key, __u32);
	__type(value, __u64);
} known_cookies SEC(".maps");

/* Functions begin at multiples of 16. Of two with one place, the first one has it. */
static __always_inline __u64 multi_cookie(struct pt_regs *ctx)
{
	__u64 function = bpf_get_func_ip(ctx), cookie;
	__u32 place = function >> 4 & (KNOWN_COOKIES - 1);
	volatile __u64 *slot = bpf_map_lookup_elem(&known_cookies, &place);
	__u64 known = slot ? *slot : 0;

	if (known && known >> 32 == (__u32)function)
		return (__u32)known;
	cookie = bpf_get_attach_cookie(ctx);
	if (slot && !known)
		*slot = function << 32 | cookie;
	return cookie;
}

/* The breakpoint's instruction is behind the program counter on x86_64, and not on aarch64. */
#ifdef __TARGET_ARCH_x86
#define BREAKPOINT_BYTES 1
#else
#define BREAKPOINT_BYTES 0
#endif

static __always_inline bool has_cookies(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_attach_cookie);
}

/* Returns 0 for a function that is not known. */
static __always_inline __u64 entry_cookie(struct pt_regs *ctx)
{
	__u64 address = PT_REGS_IP(ctx) - BREAKPOINT_BYTES, *cookie;

	if (has_cookies())
		return bpf_get_attach_cookie(ctx);
	cookie = bpf_map_lookup_elem(&function_cookies, &address);
	return cookie ? *cookie : 0;
}

/* Each in words of its own, or the compiler makes one load of all, at an offset that the verifier does not know. */
#define REGISTER_ARGUMENT(index, value)                     \
	case index: {                                       \
		__u64 argument = value;                     \
		asm volatile("# " #value : "+r"(argument)); \
		return argument;                            \
	}

/* The arguments that lie in registers: six on x86_64; as many are looked at on aarch64, which has eight. */
static __always_inline __u64 register_argument(struct pt_regs *ctx, __u32 index)
{
	switch (index) {
		REGISTER_ARGUMENT(0, PT_REGS_PARM1(ctx))
		REGISTER_ARGUMENT(1, PT_REGS_PARM2(ctx))
		REGISTER_ARGUMENT(2, PT_REGS_PARM3(ctx))
		REGISTER_ARGUMENT(3, PT_REGS_PARM4(ctx))
		REGISTER_ARGUMENT(4, PT_REGS_PARM5(ctx))
		REGISTER_ARGUMENT(5, PT_REGS_PARM6(ctx))
	}
	return 0;
}

static __always_inline struct sk_buff *skb_argument(struct pt_regs *ctx, __u64 cookie)
{
	__u64 argument = register_argument(ctx, COOKIE_ARGUMENT(cookie));

	return COOKIE_KIND(cookie) == ARGUMENT_SKB_POINTER ? pointed_to(argument) : (struct sk_buff *)argument;
}

static __always_inline int trace_entry(struct pt_regs *ctx, __u64 cookie)
{
	return trace_function(ctx, skb_argument(ctx, cookie), PTRACE_HOOK_FUNCTION, COOKIE_PROBE(cookie));
}

SEC("kprobe")
int kprobe_entry(struct pt_regs *ctx)
{
	__u64 cookie = entry_cookie(ctx);

	return cookie ? trace_entry(ctx, cookie) : 0;
}

SEC("kprobe.multi")
int kprobe_multi_entry(struct pt_regs *ctx)
{
	return trace_entry(ctx, multi_cookie(ctx));
}

/* Functions that take an xdp_buff or xdp_frame. */

static __always_inline int trace_buffer_entry(struct pt_regs *ctx, __u64 cookie)
{
	return trace_buffer(ctx, register_argument(ctx, COOKIE_ARGUMENT(cookie)), cookie);
}

SEC("kprobe")
int kprobe_buffer(struct pt_regs *ctx)
{
	__u64 cookie = entry_cookie(ctx);

	return cookie ? trace_buffer_entry(ctx, cookie) : 0;
}

SEC("kprobe.multi")
int kprobe_multi_buffer(struct pt_regs *ctx)
{
	return trace_buffer_entry(ctx, multi_cookie(ctx));
}

/*
 * Functions of both kinds, by one program and so by one link: each is detached in a tenth of a second. Each kind is a function of
 * its own, so that only one is on the stack; where memory is read through copies, which lie there too, it is too much even so.
 */
static __noinline int trace_either_skb(struct pt_regs *ctx, __u64 cookie)
{
	return trace_entry(ctx, cookie);
}

static __noinline int trace_either_buffer(struct pt_regs *ctx, __u64 cookie)
{
	return trace_buffer_entry(ctx, cookie);
}

SEC("kprobe.multi")
int kprobe_multi_either(struct pt_regs *ctx)
{
	__u64 cookie = multi_cookie(ctx);

	return takes_buffer(cookie) ? trace_either_buffer(ctx, cookie) : trace_either_skb(ctx, cookie);
}

static __always_inline int trace_made(struct pt_regs *ctx, __u64 cookie)
{
	return trace_function(ctx, (struct sk_buff *)PT_REGS_RC(ctx), PTRACE_HOOK_FUNCTION_RETURN,
			      COOKIE_PROBE(cookie));
}

/* A function that makes an skb: its return value is the packet. */
SEC("kretprobe")
int kretprobe_skb(struct pt_regs *ctx)
{
	return trace_made(ctx, has_cookies() ? bpf_get_attach_cookie(ctx) : function_cookie());
}

SEC("kretprobe.multi")
int kretprobe_multi_skb(struct pt_regs *ctx)
{
	return trace_made(ctx, multi_cookie(ctx));
}

/* A call is known by where on its thread's stack it was made; the idle threads of all CPUs have one number. */
static __always_inline struct call_key probed_call(__u64 stack_pointer, __u64 cookie)
{
	__u32 thread = bpf_get_current_pid_tgid();

	return (struct call_key){stack_pointer, COOKIE_PROBE(cookie),
				 thread ? thread : ~bpf_get_smp_processor_id()};
}

/*
 * A session's steps, functions of their own, so that one is on the stack at a time. Each returns whether the packet passed
 * every filter.
 */

static __noinline bool skb_seen(struct pt_regs *ctx, __u64 cookie)
{
	return function_seen(ctx, skb_argument(ctx, cookie), PTRACE_HOOK_FUNCTION, COOKIE_PROBE(cookie));
}

static __noinline bool remember_skb(struct pt_regs *ctx, __u64 cookie)
{
	struct call_key call = probed_call(PT_REGS_SP(ctx), cookie);

	return remember_function(&call, skb_argument(ctx, cookie));
}

static __noinline bool argument_seen(struct pt_regs *ctx, __u64 cookie)
{
	return buffer_seen(ctx, register_argument(ctx, COOKIE_ARGUMENT(cookie)), cookie);
}

static __noinline bool remember_argument(struct pt_regs *ctx, __u64 cookie)
{
	struct call_key call = probed_call(PT_REGS_SP(ctx), cookie);

	return remember_buffer(&call, register_argument(ctx, COOKIE_ARGUMENT(cookie)), cookie);
}

SEC("kprobe.session")
int kprobe_session(struct pt_regs *ctx)
{
	__u64 cookie = multi_cookie(ctx), *stack_pointer = from_entry(ctx);
	bool seen;

	if (is_return(ctx)) {
		struct call_key call = probed_call(*stack_pointer, cookie);

		return trace_return(&call, cookie, PT_REGS_RC(ctx));
	}
	*stack_pointer = PT_REGS_SP(ctx);
	if (takes_buffer(cookie))
		seen = argument_seen(ctx, cookie) && remember_argument(ctx, cookie);
	else
		seen = skb_seen(ctx, cookie) && remember_skb(ctx, cookie);
	return seen ? SEE_RETURN : SKIP_RETURN;
}

/*
 * Attached beside the entry's program where returns are wanted. A kretprobe runs at each return, so a call that is not of interest
 * has to put out what an earlier one from the same place may have left: the kernel misses returns where more calls are under
 * way than it has room for.
 */
SEC("kprobe")
int kprobe_remember(struct pt_regs *ctx)
{
	__u64 cookie = entry_cookie(ctx);
	struct call_key call = probed_call(PT_REGS_SP(ctx), cookie);

	if (cookie && !remember_function(&call, skb_argument(ctx, cookie)))
		bpf_map_delete_elem(&calls, &call);
	return 0;
}

SEC("kprobe")
int kprobe_buffer_remember(struct pt_regs *ctx)
{
	__u64 cookie = entry_cookie(ctx);
	struct call_key call = probed_call(PT_REGS_SP(ctx), cookie);

	if (cookie && !remember_buffer(&call, register_argument(ctx, COOKIE_ARGUMENT(cookie)), cookie))
		bpf_map_delete_elem(&calls, &call);
	return 0;
}

/*
 * The stack pointer is what it was at entry, or on x86_64, where the return address is taken off the stack, eight more; some
 * kernels put it back. A call from eight bytes below is one that this one made, and has returned.
 */
SEC("kretprobe")
int kretprobe_return(struct pt_regs *ctx)
{
	__u64 cookie = has_cookies() ? bpf_get_attach_cookie(ctx) : function_cookie();
	struct call_key call = probed_call(PT_REGS_SP(ctx) - sizeof(__u64), cookie);

	if (!bpf_map_lookup_elem(&calls, &call))
		call.call += sizeof(__u64);
	return trace_return(&call, cookie, PT_REGS_RC(ctx));
}
