"""The filters on a packet's metadata as one value, and the kernel side's configuration that it stands for.

They are decided in the kernel before any byte of the packet is read (``bpf_src/predicates.bpf.h``); all must
hold.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from packet_tracer.errors import UsageError

#: Sizes of the arrays in bpf_src/predicates.bpf.h.
NETNS_MAX = 16
INTERFACES_MAX = 32


@dataclass(frozen=True, slots=True)
class Predicates:
    """Which packets are of interest; an empty value lets all pass.

    ``netns`` holds inode numbers of network namespaces, ``interfaces`` pairs of (namespace inode, ifindex) of
    which a packet's device or the one it came in by must be one, ``mark`` a value that
    ``skb->mark & mark_mask`` must have.
    Raises UsageError for more than :data:`NETNS_MAX` namespaces or :data:`INTERFACES_MAX` interfaces.
    """

    netns: tuple[int, ...] = ()
    interfaces: tuple[tuple[int, int], ...] = ()
    mark: int = 0
    mark_mask: int = 0

    def __post_init__(self) -> None:
        if len(self.netns) > NETNS_MAX:
            raise UsageError(
                f"{len(self.netns)} network namespaces given, at most {NETNS_MAX} can be filtered by"
            )
        if len(self.interfaces) > INTERFACES_MAX:
            raise UsageError(
                f"{len(self.interfaces)} interfaces given, at most {INTERFACES_MAX} can be filtered by"
            )

    def rodata(self) -> dict[str, int | bytes]:
        """Return the kernel side's configuration variables, by name."""
        pairs = self.interfaces + ((0, 0),) * (INTERFACES_MAX - len(self.interfaces))
        return {
            "filter_netns_count": len(self.netns),
            "filter_netns": struct.pack(f"={NETNS_MAX}I", *self.netns, *[0] * (NETNS_MAX - len(self.netns))),
            "filter_interface_count": len(self.interfaces),
            "filter_interfaces": b"".join(struct.pack("=II", *pair) for pair in pairs),
            "filter_mark": self.mark & self.mark_mask,
            "filter_mark_mask": self.mark_mask,
        }
