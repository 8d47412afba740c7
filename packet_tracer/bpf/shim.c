/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What Python cannot do through libbpf alone, and nothing else: keep libbpf's messages off stderr, walk
 * BTF in one pass, collect perf samples, and read ring buffers without running Python for each record.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/perf_event.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* --- libbpf's messages: the last few of this thread, to go into an exception ---------------------- */

#define LOG_SIZE 4096

static __thread char log_text[LOG_SIZE];
static __thread size_t log_used;

static int log_print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char message[1024];
	size_t size;
	int printed;

	if (level == LIBBPF_DEBUG)
		return 0;
	printed = vsnprintf(message, sizeof(message), format, arguments);
	if (printed < 0)
		return 0;
	size = (size_t)printed < sizeof(message) ? (size_t)printed : sizeof(message) - 1;
	if (log_used + size >= LOG_SIZE) {
		/* Newest messages name the cause; forget the older half. */
		size_t kept = log_used < LOG_SIZE / 2 ? log_used : LOG_SIZE / 2;

		memmove(log_text, log_text + log_used - kept, kept);
		log_used = kept;
	}
	memcpy(log_text + log_used, message, size);
	log_used += size;
	log_text[log_used] = 0;
	return 0;
}

static void ptrace_log_install(void)
{
	libbpf_set_print(log_print);
}

static void ptrace_log_clear(void)
{
	log_used = 0;
	log_text[0] = 0;
}

static const char *ptrace_log_text(void)
{
	return log_text;
}

/* --- BTF: every type of one kind, in one pass -------------------------------------------------------- */

struct ptrace_btf_entry {
	__u32 id;
	__u32 type;	 /* of a function: its prototype; else what the type refers to, or its size */
	__u32 count;	 /* of a function: parameters; else members or values */
	__s32 argument;	 /* first parameter that points to the struct asked for; -1: none */
	__u32 traceable; /* a function a BPF trampoline can serve, by its prototype */
};

static const struct btf_type *btf_skip(const struct btf *btf, __u32 id)
{
	const struct btf_type *type = btf__type_by_id(btf, id);

	while (type && (btf_is_mod(type) || btf_is_typedef(type)))
		type = btf__type_by_id(btf, type->type);
	return type;
}

static bool btf_points_to(const struct btf *btf, __u32 id, const char *name)
{
	const struct btf_type *type = btf_skip(btf, id);

	if (!type || !btf_is_ptr(type))
		return false;
	type = btf_skip(btf, type->type);
	return type && btf_is_struct(type) && !strcmp(btf__name_by_offset(btf, type->name_off), name);
}

/* The rules of the kernel's btf_distill_func_proto (kernel/bpf/btf.c), as they are since Linux 6.1. */
static bool btf_traceable(const struct btf *btf, const struct btf_type *prototype)
{
	const struct btf_param *parameters = btf_params(prototype);
	const struct btf_type *type;
	__u32 i, count = btf_vlen(prototype);

	if (count > 12)
		return false;
	if (prototype->type) {
		type = btf_skip(btf, prototype->type);
		if (!type || !(btf_is_int(type) || btf_is_ptr(type) || btf_is_any_enum(type)))
			return false;
	}
	for (i = 0; i < count; i++) {
		if (!parameters[i].type)
			return false; /* varargs */
		type = btf_skip(btf, parameters[i].type);
		if (!type)
			return false;
		if (btf_is_composite(type) ? type->size > 16
					   : !(btf_is_int(type) || btf_is_ptr(type) || btf_is_any_enum(type)))
			return false;
	}
	return true;
}

/* With entries NULL it measures: returns the number of entries and sets *names_size. */
static int ptrace_btf_index(const struct btf *btf, __u32 first, __u32 kind, const char *argument,
			    struct ptrace_btf_entry *entries, char *names, size_t *names_size)
{
	__u32 id, end = btf__type_cnt(btf);
	size_t used = 0;
	int found = 0;

	for (id = first; id < end; id++) {
		const struct btf_type *type = btf__type_by_id(btf, id), *prototype;
		const char *name;
		size_t size;

		if (btf_kind(type) != kind)
			continue;
		name = btf__name_by_offset(btf, type->name_off);
		size = strlen(name);
		if (entries) {
			struct ptrace_btf_entry *entry = &entries[found];

			if (used + size + 1 > *names_size)
				return -ENOSPC;
			memcpy(names + used, name, size);
			names[used + size] = '\n';
			*entry = (struct ptrace_btf_entry){id, type->type, btf_vlen(type), -1, 0};
			prototype = kind == BTF_KIND_FUNC ? btf__type_by_id(btf, type->type) : NULL;
			if (prototype && btf_is_func_proto(prototype)) {
				__u32 i;

				entry->count = btf_vlen(prototype);
				entry->traceable = btf_traceable(btf, prototype);
				for (i = 0; argument && i < entry->count && entry->argument < 0; i++)
					if (btf_points_to(btf, btf_params(prototype)[i].type, argument))
						entry->argument = (__s32)i;
			}
		}
		used += size + 1;
		found++;
	}
	*names_size = used;
	return found;
}

/* --- a perf event to hang a program on: a kprobe by name or address, or a tracepoint by number ------------- */

static int ptrace_perf_event_open(__u32 type, __u64 config, const char *function, __u64 address)
{
	struct perf_event_attr attributes = {
		.type = type,
		.size = sizeof(attributes),
		.config = config,
		.sample_period = 1,
		.wakeup_events = 1,
		.kprobe_func = (__u64)(uintptr_t)function,
		.kprobe_addr = address,
	};
	int fd = (int)syscall(SYS_perf_event_open, &attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* --- trampolines on many functions by one link: struct link_create.tracing_multi, which libbpf 1.7 does not know --- */

static int ptrace_tracing_multi_link(int program, __u32 attach_type, const __u32 *btf_ids, const __u64 *cookies,
				     __u32 count)
{
	struct {
		__u32 program, target, attach_type, flags;
		__u64 btf_ids, cookies;
		__u32 count, padding;
	} attributes = {
		.program = program,
		.attach_type = attach_type,
		.btf_ids = (uintptr_t)btf_ids,
		.cookies = (uintptr_t)cookies,
		.count = count,
	};
	int fd = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attributes, sizeof(attributes));

	return fd < 0 ? -errno : fd;
}

/* --- perf buffers: samples of one poll, each as { u32 cpu, u32 size, bytes padded to 8 } ---------------- */

struct ptrace_perf {
	struct perf_buffer *buffer;
	char *data;
	size_t used;
	size_t size;
	__u64 lost;
	__u64 truncated; /* samples that did not fit into memory */
};

static void perf_sample(void *context, int cpu, void *data, __u32 size)
{
	struct ptrace_perf *perf = context;
	size_t padded = 8 + (((size_t)size + 7) & ~(size_t)7);
	__u32 head[2] = {(__u32)cpu, size};

	if (perf->used + padded > perf->size) {
		size_t grown = (perf->used + padded) * 2;
		char *larger = realloc(perf->data, grown);

		if (!larger) {
			perf->truncated++;
			return;
		}
		perf->data = larger;
		perf->size = grown;
	}
	memcpy(perf->data + perf->used, head, sizeof(head));
	memcpy(perf->data + perf->used + 8, data, size);
	perf->used += padded;
}

static void perf_lost(void *context, int cpu, __u64 count)
{
	struct ptrace_perf *perf = context;

	(void)cpu;
	perf->lost += count;
}

static void ptrace_perf_free(struct ptrace_perf *perf)
{
	if (!perf)
		return;
	perf_buffer__free(perf->buffer);
	free(perf->data);
	free(perf);
}

static struct ptrace_perf *ptrace_perf_new(int map_fd, size_t pages)
{
	struct ptrace_perf *perf = calloc(1, sizeof(*perf));
	int error;

	if (!perf)
		return NULL;
	perf->buffer = perf_buffer__new(map_fd, pages, perf_sample, perf_lost, perf, NULL);
	if (!perf->buffer) {
		error = errno;
		ptrace_perf_free(perf);
		errno = error;
		return NULL;
	}
	return perf;
}

static int ptrace_perf_fileno(const struct ptrace_perf *perf)
{
	return perf_buffer__epoll_fd(perf->buffer);
}

/* Forgets the samples of the poll before. */
static int ptrace_perf_poll(struct ptrace_perf *perf, int timeout_ms)
{
	perf->used = 0;
	return perf_buffer__poll(perf->buffer, timeout_ms);
}

#include "btf_functions.h"
#include "lines.h"
#include "ring_backlog.h"
#include "ring_reader.h"
#include "ring_wait.h"
