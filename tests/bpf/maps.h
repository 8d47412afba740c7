/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs of the map tests share: map types that the tracer's own vmlinux.h has no use for
 * (include/uapi/linux/bpf.h), and the context of a raw tracepoint program in a test run: numbers.
 */
#ifndef PTRACE_TEST_MAPS_H
#define PTRACE_TEST_MAPS_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#define CGROUP_ARRAY 8
#define DEVMAP 14
#define SOCKMAP 15
#define CPUMAP 16
#define XSKMAP 17
#define SOCKHASH 18
#define CGROUP_STORAGE 19
#define REUSEPORT_SOCKARRAY 20
#define PERCPU_CGROUP_STORAGE 21
#define QUEUE 22
#define STACK 23
#define SK_STORAGE 24
#define DEVMAP_HASH 25
#define TASK_STORAGE 29
#define BLOOM_FILTER 30
#define USER_RINGBUF 31
#define CGRP_STORAGE 32
#define ARENA 33

#define STORAGE_CREATE 1 /* BPF_LOCAL_STORAGE_GET_F_CREATE */

struct arguments {
	__u64 a, b, c, d;
};

char test_license[] SEC("license") = "GPL";

#endif
