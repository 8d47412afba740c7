/* SPDX-License-Identifier: GPL-2.0-only */
/* A TC program that is nothing but the filter: 1 where it accepts, 0 where it doesn't. */
#define READ_DIRECT 0
#define HOOK_TC
#include "filter.bpf.h"

char LICENSE[] SEC("license") = "GPL";

const volatile bool link_header = true;
const volatile bool egress = false;
const volatile __u32 start = 0;

SEC("tc")
int filter(struct __sk_buff *ctx)
{
	struct packet_view view = {.link_header = link_header, .start = start};

	return filter_tc(ctx, &view, egress);
}

/* The same, called without a condition: what the filter alone costs. */
SEC("tc")
int bare(struct __sk_buff *ctx)
{
	return filter_keep ? filter_tc_load(ctx, 0, 1, 0) : pcap_filter_tc_l2(ctx, 0);
}
