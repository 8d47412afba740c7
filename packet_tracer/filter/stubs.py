"""The places in the kernel side that a filter is put into, and what it is called with there.

What a filter is called with is fixed by the stubs in bpf_src/filter.bpf.h:

=====  =====================================================  ==========================================
PROBE  ``(data, data_end, skb, length, metadata)``            addresses; read by bpf_probe_read_kernel
TC     ``(struct __sk_buff *ctx, metadata or inner offset)``  direct packet access
XDP    ``(struct xdp_md *ctx, metadata or inner offset)``     direct packet access
=====  =====================================================  ==========================================

``metadata`` is what the kernel keeps beside the bytes, in one number: the VLAN tag as it would lie in
the packet (TPID << 16 | TCI, 0 without one), ``ifindex << 32`` and ``packet type << 60``.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from packet_tracer.filter.pcap import LinkType

#: Names of the two functions of a filter.
ENTRY, SLOW = "pcap_filter", "pcap_filter_slow"


class Access(Enum):
    """How the hook lets a program read the packet."""

    PROBE = "probe"
    TC = "tc"
    XDP = "xdp"


class Stub(NamedTuple):
    """One of the functions in bpf_src/filter.bpf.h that a filter takes the place of."""

    access: Access
    link_type: LinkType
    inner: bool = False
    """Whether the packet begins inside another one (a tunnel's payload)."""

    @property
    def symbol(self) -> str:
        """The name of the function."""
        access = "" if self.access is Access.PROBE else f"{self.access.value}_"
        layer = "l2" if self.link_type is LinkType.ETHERNET else "l3"
        return f"pcap_filter_{access}{'inner_' if self.inner else ''}{layer}"


#: Every stub there is.
STUBS = tuple(
    Stub(access, link_type, inner) for access in Access for link_type in LinkType for inner in (False, True)
)
