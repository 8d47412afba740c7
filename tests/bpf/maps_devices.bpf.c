/* SPDX-License-Identifier: GPL-2.0-only */
/* Redirection by XDP: one program for each map that it can go by. */
#include "maps.h"

#define SLOTS(name, kind)               \
	struct {                        \
		__uint(type, kind);     \
		__uint(max_entries, 4); \
		__uint(key_size, 4);    \
		__uint(value_size, 4);  \
	} name SEC(".maps")

SLOTS(devices, DEVMAP);
SLOTS(devices_by_key, DEVMAP_HASH);
SLOTS(cpus, CPUMAP);
SLOTS(queues, XSKMAP);

const volatile __u32 slot;

#define REDIRECTS(name)                                       \
	SEC("xdp")                                            \
	int to_##name(struct xdp_md *context)                 \
	{                                                     \
		return bpf_redirect_map(&name, slot, XDP_TX); \
	}
REDIRECTS(devices)
REDIRECTS(devices_by_key)
REDIRECTS(cpus)
REDIRECTS(queues)

SEC("xdp")
int pass(struct xdp_md *context)
{
	return XDP_PASS;
}
