// SPDX-License-Identifier: GPL-2.0-only
/* Reads one word of kernel memory, for what the loader has to know before a capture: run by BPF_PROG_TEST_RUN. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

const volatile __u64 address = 0;
__u64 word = 0;

SEC("raw_tp")
int read_word(void *ctx)
{
	return bpf_probe_read_kernel(&word, sizeof(word), (void *)address);
}
