"""The places in the kernel side that a filter is put into, and what it is called with there.

What a filter is called with is fixed by the stubs in bpf_src/filter.bpf.h:

=====  =====================================================  ==========================================
PROBE  ``(data, data_end, shared, length, metadata)``         addresses; read by bpf_probe_read_kernel
TC     ``(struct __sk_buff *ctx, metadata)``                  direct packet access
XDP    ``(struct xdp_md *ctx, metadata)``                     direct packet access
=====  =====================================================  ==========================================

``shared`` is where the skb's ``skb_shared_info`` lies, through which the non-linear part is found.
``metadata`` is what the kernel keeps beside the bytes, in one number: in the lower 32 bits the VLAN tag as it
would lie in the packet (TPID << 16 | TCI, 0 without one), then ``ifindex << 32`` and ``packet type << 60``.
Where no tag can be, at TC and XDP, these 32 bits hold the offset of the packet's first byte.
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
    def has_offset(self) -> bool:
        """Whether the lower half of ``metadata`` is the offset at which the packet begins."""
        return self.access is not Access.PROBE and (self.inner or self.link_type is LinkType.RAW)

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
