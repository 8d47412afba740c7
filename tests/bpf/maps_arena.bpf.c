/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory shared with user space. Needs clang 19 or newer, which knows the arena's address space. */
#include "maps.h"

#if __clang_major__ >= 19
#define __arena __attribute__((address_space(1)))

struct {
	__uint(type, ARENA);
	__uint(map_flags, 1 << 10 /* BPF_F_MMAPABLE */);
	__uint(max_entries, 16);
} arena SEC(".maps");

void __arena *bpf_arena_alloc_pages(void *map, void __arena *address, __u32 pages, int node, __u64 flags) __ksym;

__u64 offset;

SEC("syscall")
int write_page(void *context)
{
	char __arena *page = bpf_arena_alloc_pages(&arena, 0, 1, -1, 0);

	if (!page)
		return 1;
	page[0] = 'c';
	page[1] = 'd';
	page[2] = 'a';
	page[3] = 'b';
	offset = (__u64)page;
	return 0;
}
#endif
