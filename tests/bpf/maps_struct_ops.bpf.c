/* SPDX-License-Identifier: GPL-2.0-only */
/* A congestion control that never lets the window grow beyond two segments. */
#include "maps.h"

struct tcp_sock {
	__u32 snd_ssthresh;
	__u32 snd_cwnd;
} __attribute__((preserve_access_index));

struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
};

__u64 acknowledged;

SEC("struct_ops")
__u32 test_ssthresh(__u64 *arguments)
{
	return 2;
}

SEC("struct_ops")
void test_cong_avoid(__u64 *arguments)
{
	__sync_fetch_and_add(&acknowledged, (__u32)arguments[2]);
}

SEC("struct_ops")
__u32 test_undo_cwnd(__u64 *arguments)
{
	return 2;
}

SEC(".struct_ops")
struct tcp_congestion_ops ptrace_cc = {
	.ssthresh = (void *)test_ssthresh,
	.cong_avoid = (void *)test_cong_avoid,
	.undo_cwnd = (void *)test_undo_cwnd,
	.name = "ptrace_test",
};
