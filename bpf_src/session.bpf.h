/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sessions: one program at the entry and at the return of functions, by kprobes (535a3692ba72, v6.10) or by trampolines (v7.2).
 * The entry hands the return eight bytes.
 */
#ifndef PTRACE_SESSION_BPF_H
#define PTRACE_SESSION_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* What a kprobe session's program returns at a function's entry. */
enum { SEE_RETURN, SKIP_RETURN };

/* With an argument since 7.x. */
extern bool bpf_session_is_return(void) __ksym __weak;
extern bool bpf_session_is_return___ctx(void *ctx) __ksym __weak;
extern __u64 *bpf_session_cookie(void) __ksym __weak;
extern __u64 *bpf_session_cookie___ctx(void *ctx) __ksym __weak;

static __always_inline bool is_return(void *ctx)
{
	return bpf_ksym_exists(bpf_session_is_return___ctx) ? bpf_session_is_return___ctx(ctx)
							    : bpf_session_is_return();
}

/* The eight bytes that a function's return has from its entry. */
static __always_inline __u64 *from_entry(void *ctx)
{
	return bpf_ksym_exists(bpf_session_cookie___ctx) ? bpf_session_cookie___ctx(ctx) : bpf_session_cookie();
}

#endif
