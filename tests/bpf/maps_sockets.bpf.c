/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets chosen by programs: data redirected from one to another, and a member of a reuseport group picked. */
#include "maps.h"

#define SOCKETS(name, kind)             \
	struct {                        \
		__uint(type, kind);     \
		__uint(max_entries, 4); \
		__uint(key_size, 4);    \
		__uint(value_size, 8);  \
	} name SEC(".maps")

SOCKETS(by_index, SOCKMAP);
SOCKETS(by_key, SOCKHASH);
SOCKETS(group, REUSEPORT_SOCKARRAY);

const volatile __u32 target;

/* What arrives at a socket of the map is put into the receive queue of the target. */
SEC("sk_skb/stream_verdict")
int redirect_by_index(struct __sk_buff *skb)
{
	return bpf_sk_redirect_map(skb, &by_index, target, 1 /* BPF_F_INGRESS */);
}

SEC("sk_skb/stream_verdict")
int redirect_by_key(struct __sk_buff *skb)
{
	__u32 key = target;

	return bpf_sk_redirect_hash(skb, &by_key, &key, 1 /* BPF_F_INGRESS */);
}

struct sk_reuseport_md;

SEC("sk_reuseport")
int pick(struct sk_reuseport_md *context)
{
	__u32 key = target;

	return bpf_sk_select_reuseport(context, &group, &key, 0) ? 0 /* SK_DROP */ : 1 /* SK_PASS */;
}
