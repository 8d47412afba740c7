/* SPDX-License-Identifier: GPL-2.0-only */
/* What lives with sockets and with attached programs: counts packets that leave a cgroup. */
#include "maps.h"

struct {
	__uint(type, CGROUP_STORAGE);
	__uint(key_size, 16);
	__type(value, __u64);
} sent SEC(".maps");

struct {
	__uint(type, PERCPU_CGROUP_STORAGE);
	__uint(key_size, 16);
	__type(value, __u64);
} cpu_sent SEC(".maps");

struct {
	__uint(type, SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} by_socket SEC(".maps");

struct packet {
	struct __sk_buff head;
	/* The rest of struct __sk_buff up to its socket: include/uapi/linux/bpf.h. */
	__u32 napi_id, family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port,
		data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len, gso_segs;
	void *sk;
};

SEC("cgroup_skb/egress")
int on_egress(struct packet *skb)
{
	__u64 *value = bpf_get_local_storage(&sent, 0);

	__sync_fetch_and_add(value, 1);
	value = bpf_get_local_storage(&cpu_sent, 0);
	*value += 1;
	if (skb->sk) {
		void *sk = bpf_sk_fullsock(skb->sk);

		if (sk) {
			value = bpf_sk_storage_get(&by_socket, sk, 0, STORAGE_CREATE);
			if (value)
				__sync_fetch_and_add(value, 1);
		}
	}
	return 1;
}
