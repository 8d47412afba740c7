/* SPDX-License-Identifier: GPL-2.0-only */
/* Where the buffer of an xdp_frame starts. */
#ifndef PTRACE_XDP_FRAME_BPF_H
#define PTRACE_XDP_FRAME_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>

/* The frame itself lies at the head of the buffer, before the headroom: __xdp_build_skb_from_frame() takes that for skb->head. */
static __always_inline __u64 frame_start(struct xdp_frame *frame)
{
	return (__u64)BPF_CORE_READ(frame, data) - BPF_CORE_READ_BITFIELD_PROBED(frame, headroom) -
	       bpf_core_type_size(struct xdp_frame);
}

#endif
