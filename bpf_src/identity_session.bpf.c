// SPDX-License-Identifier: GPL-2.0-only
/*
 * The functions that make a packet's identity exact, by one program and one link on all of them, entry and return (a kprobe
 * session, 535a3692ba72, v6.10). A link is detached in a tenth of a second, as a trampoline is, and there would be thirty.
 * The functions that free buffers are not among them: a kprobe's program is left out where it interrupts another's on the same
 * CPU, and what was not seen to end would be taken for the next packet in its place. Nor is the one that copies, which generic
 * XDP does to all that a network card's interrupt brings.
 */
#define READ_DIRECT 0
#define LOOP_BY_HELPER 1
#include "identity.bpf.h"
#include "session.bpf.h"
#include "xdp_frame.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

/* The functions, by name; their numbers are the cookies they are attached with. */
enum session_function {
	SESSION_pskb_expand_head = 1,
	SESSION_skb_copy,
	SESSION___pskb_copy_fclone,
	SESSION_skb_copy_expand,
	SESSION_skb_segment,
	SESSION_ip_frag_next,
	SESSION_ip6_frag_next,
	SESSION_ip_fraglist_init,
	SESSION_ip6_fraglist_init,
	SESSION_skb_segment_list,
	SESSION_skb_gro_receive,
	SESSION_skb_gro_receive_list,
	SESSION_skb_try_coalesce,
	SESSION_inet_frag_reasm_finish,
	SESSION___xdp_build_skb_from_frame,
	SESSION___tcp_retransmit_skb,
	SESSION_tcp_retransmit_skb,
	SESSION___tcp_transmit_skb,
	SESSION_tcp_fragment,
};

/* What is about to be merged: by its skb, the id of the packet it would be a part of. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} merging SEC(".maps");

static __always_inline int before_merge(struct sk_buff *into, struct sk_buff *skb)
{
	struct tracked *whole = find_tracked(head_of(into));
	__u64 key = (__u64)skb;

	if (!whole)
		return SKIP_RETURN;
	bpf_map_update_elem(&merging, &key, &whole->id, BPF_ANY);
	return SEE_RETURN;
}

static __always_inline int after_merge(struct sk_buff *skb, bool done)
{
	__u64 key = (__u64)skb, *id = bpf_map_lookup_elem(&merging, &key);

	if (!id)
		return 0;
	if (done)
		set_parent(head_of(skb), *id);
	bpf_map_delete_elem(&merging, &key);
	return 0;
}

static __always_inline int return_if_tracked(struct sk_buff *skb)
{
	return find_tracked(head_of(skb)) ? SEE_RETURN : SKIP_RETURN;
}

/* `session` gets the skb that the function's return is told of. */
static __noinline int at_entry(struct pt_regs *ctx, enum session_function function, __u64 *session)
{
	struct sk_buff *first = (struct sk_buff *)PT_REGS_PARM1(ctx);
	struct sk_buff *second = (struct sk_buff *)PT_REGS_PARM2(ctx);
	struct sk_buff *third = (struct sk_buff *)PT_REGS_PARM3(ctx);

	switch (function) {
	case SESSION_pskb_expand_head:
		*session = (__u64)first;
		return before_expansion(first);
	case SESSION_skb_copy:
	case SESSION___pskb_copy_fclone:
	case SESSION_skb_copy_expand:
	case SESSION_skb_segment:
	case SESSION_ip_frag_next:
	case SESSION_ip6_frag_next:
		*session = (__u64)first;
		return return_if_tracked(first);
	case SESSION_skb_gro_receive:
	case SESSION_skb_gro_receive_list:
	case SESSION_skb_try_coalesce:
		*session = (__u64)second;
		return before_merge(first, second);
	case SESSION_inet_frag_reasm_finish:
		*session = (__u64)second;
		return SEE_RETURN;
	case SESSION___tcp_retransmit_skb:
	case SESSION_tcp_retransmit_skb:
		*session = (__u64)second;
		return before_resend(second);
	case SESSION_tcp_fragment:
		*session = (__u64)third;
		return (__u32)PT_REGS_PARM2(ctx) == TCP_FRAG_IN_RTX_QUEUE ? SEE_RETURN : SKIP_RETURN;
	case SESSION_ip_fraglist_init:
	case SESSION_ip6_fraglist_init:
	case SESSION_skb_segment_list:
		pieces_of(first);
		return SKIP_RETURN;
	case SESSION___xdp_build_skb_from_frame:
		revive(frame_start((struct xdp_frame *)first));
		return SKIP_RETURN;
	case SESSION___tcp_transmit_skb:
		before_transmission(second);
		return SKIP_RETURN;
	}
	return SKIP_RETURN;
}

static __noinline int at_return(enum session_function function, struct sk_buff *skb, __u64 result)
{
	switch (function) {
	case SESSION_pskb_expand_head:
		return after_expansion(skb, (int)result);
	case SESSION_skb_copy:
	case SESSION___pskb_copy_fclone:
	case SESSION_skb_copy_expand:
		return copied_to(skb, (struct sk_buff *)result);
	case SESSION_skb_segment:
		return segments_of(skb, (struct sk_buff *)result);
	case SESSION_ip_frag_next:
	case SESSION_ip6_frag_next:
		return fragment_of(skb, (struct sk_buff *)result);
	case SESSION_skb_gro_receive:
	case SESSION_skb_gro_receive_list:
		return after_merge(skb, !(int)result);
	case SESSION_skb_try_coalesce:
		return after_merge(skb, (__u8)result);
	case SESSION_inet_frag_reasm_finish:
		return parts_of(skb);
	case SESSION___tcp_retransmit_skb:
	case SESSION_tcp_retransmit_skb:
		return after_resend(skb, (int)result);
	case SESSION_tcp_fragment:
		return after_cut(skb, (int)result);
	default: /* of no interest after its entry */
		return 0;
	}
}

SEC("kprobe.session")
int watch_identity(struct pt_regs *ctx)
{
	__u64 function = bpf_get_attach_cookie(ctx), *session = from_entry(ctx);

	if (is_return(ctx))
		return at_return(function, (struct sk_buff *)*session, PT_REGS_RC(ctx));
	return at_entry(ctx, function, session);
}
