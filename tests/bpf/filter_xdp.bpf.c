/* SPDX-License-Identifier: GPL-2.0-only */
/* An XDP program that is nothing but the filter: 1 where it accepts, 0 where it doesn't. */
#define READ_DIRECT 0
#define HOOK_XDP
#include "filter.bpf.h"

char LICENSE[] SEC("license") = "GPL";

const volatile bool link_header = true;

SEC("xdp.frags")
int filter(struct xdp_md *ctx)
{
	return filter_xdp(ctx, link_header);
}

/* The same, called without a condition: what the filter alone costs. */
SEC("xdp")
int bare(struct xdp_md *ctx)
{
	return filter_keep ? filter_xdp_load(ctx, 0, 1, 0) + filter_xdp_length(ctx) : pcap_filter_xdp_l2(ctx, 0);
}
