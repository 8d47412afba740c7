/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The filter as tracepoints, netfilter and kernel functions call it, on packets that lie in a map, many in one run.
 */
#define READ_DIRECT 0
#include "filter.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PACKET_ROOM 2048
#define PACKETS 256

struct packet {
	__u32 length;
	__u32 linear;
	__u64 metadata;
	__u8 bytes[PACKET_ROOM];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PACKETS);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

const volatile bool link_header = true;
/* The verifier walks through each: fewer in a run, and a program is loaded sooner. */
const volatile __u32 packets_in_a_run = PACKETS;

struct {
	__u32 first; /* of this run */
	__u32 count; /* of all runs */
	__u32 answers[PACKETS];
} question;

/* Of a type that can be test-run since 5.10, which those of a syscall can only since 5.14. */
SEC("raw_tp")
int probe(void *ctx)
{
	for (__u32 i = 0; i < packets_in_a_run; i++) {
		__u32 key = question.first + i, number = key;
		struct packet *packet = bpf_map_lookup_elem(&packets, &key);
		__u32 *answer;
		__u64 data;

		if (number >= question.count || number >= PACKETS || !packet)
			break;
		answer = &question.answers[number];
		/* A pointer is not a number until it has been through memory. */
		if (bpf_probe_read_kernel(&data, sizeof(data), &packet))
			break;
		data += __builtin_offsetof(struct packet, bytes);
		if (filter_keep)
			*answer = filter_load(data, data, 0, 0, 0);
		else if (filter_inner)
			*answer = filter_skb_inner(data, data + packet->linear, 0, packet->length, link_header);
		else if (link_header)
			*answer = pcap_filter_l2(data, data + packet->linear, 0, packet->length, packet->metadata);
		else
			*answer = pcap_filter_l3(data, data + packet->linear, 0, packet->length, packet->metadata);
	}
	return 0;
}
