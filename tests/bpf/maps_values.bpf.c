/* SPDX-License-Identifier: GPL-2.0-only */
/* Maps of values, from a program's side: each program does one thing with one map, with numbers it is given. */
#include "maps.h"

#define NUMBERS(name, kind)             \
	struct {                        \
		__uint(type, kind);     \
		__uint(max_entries, 8); \
		__type(key, __u32);     \
		__type(value, __u64);   \
	} name SEC(".maps")

NUMBERS(numbers, BPF_MAP_TYPE_ARRAY);
NUMBERS(cpu_numbers, BPF_MAP_TYPE_PERCPU_ARRAY);
NUMBERS(table, BPF_MAP_TYPE_HASH);
NUMBERS(cpu_table, BPF_MAP_TYPE_PERCPU_HASH);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 128);
	__type(key, __u32);
	__type(value, __u64);
} recent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 128);
	__type(key, __u32);
	__type(value, __u64);
} cpu_recent SEC(".maps");

struct prefix {
	__u32 length;
	__u8 address[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} routes SEC(".maps");

struct {
	__uint(type, QUEUE);
	__uint(max_entries, 4);
	__type(value, __u32);
} queue SEC(".maps");

struct {
	__uint(type, STACK);
	__uint(max_entries, 4);
	__type(value, __u32);
} stack SEC(".maps");

enum verdict { VERDICT_PASS, VERDICT_DROP = 7, VERDICT_LATER = 9 };

struct endpoint {
	__u32 address;
	__u16 port;
};

struct flow_key {
	struct endpoint ends[2];
	char device[6];
	__u8 version : 4, direction : 1, urgent : 3;
	enum verdict verdict;
	union {
		__u32 v4;
		__u8 bytes[4];
	};
	struct {
		__s16 priority;
		_Bool local;
	};
};

struct flow_value {
	__u64 packets;
	__u64 bytes;
	__s32 balance;
	void *owner;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, struct flow_key);
	__type(value, struct flow_value);
} flows SEC(".maps");

/* Adds b to the value of key a; returns the sum. */
#define ADDS(name)                                                 \
	SEC("raw_tp")                                              \
	int add_##name(struct arguments *arguments)                \
	{                                                          \
		__u32 key = arguments->a;                          \
		__u64 first = arguments->b, *value;                \
                                                                   \
		value = bpf_map_lookup_elem(&name, &key);          \
		if (value)                                         \
			return *value += first;                    \
		bpf_map_update_elem(&name, &key, &first, BPF_ANY); \
		return first;                                      \
	}
ADDS(numbers)
ADDS(cpu_numbers)
ADDS(table)
ADDS(cpu_table)
ADDS(recent)
ADDS(cpu_recent)

/* Returns what the longest prefix of address a (network byte order) leads to, or 0. */
SEC("raw_tp")
int find_route(struct arguments *arguments)
{
	__u32 address = arguments->a, *found;
	struct prefix key = {.length = 32};

	__builtin_memcpy(key.address, &address, 4);
	found = bpf_map_lookup_elem(&routes, &key);
	return found ? *found : 0;
}

/* Takes one from the queue, puts it doubled on the stack; returns it, or -1. */
SEC("raw_tp")
int move(struct arguments *arguments)
{
	__u32 value;

	if (bpf_map_pop_elem(&queue, &value))
		return -1;
	value *= 2;
	bpf_map_push_elem(&stack, &value, BPF_ANY);
	return value / 2;
}

SEC("raw_tp")
int add_flow(struct arguments *arguments)
{
	struct flow_key key;
	struct flow_value value = {.packets = 1, .bytes = arguments->b, .balance = -5, .owner = (void *)0x1234};

	__builtin_memset(&key, 0, sizeof(key));
	key.ends[0].address = arguments->a;
	key.ends[0].port = 80;
	key.ends[1].port = 443;
	__builtin_memcpy(key.device, "eth0", 4);
	key.version = 6;
	key.direction = 1;
	key.urgent = 5;
	key.verdict = VERDICT_DROP;
	key.v4 = 0x04030201;
	key.priority = -3;
	key.local = 1;
	return bpf_map_update_elem(&flows, &key, &value, BPF_ANY);
}

/* Returns the packets of the only flow whose key Python wrote, looked up with a key made here. */
SEC("raw_tp")
int find_flow(struct arguments *arguments)
{
	struct flow_value *found;
	struct flow_key key;

	__builtin_memset(&key, 0, sizeof(key));
	key.ends[1].address = arguments->a;
	key.direction = 1;
	key.verdict = VERDICT_LATER;
	key.v4 = 7;
	key.priority = -1;
	found = bpf_map_lookup_elem(&flows, &key);
	return found ? found->packets : -1;
}
