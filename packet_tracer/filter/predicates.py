"""The filters beside the expression as one value, and the kernel side's configuration that it stands for.

All must hold. What is known without looking into the packet is decided before any of its bytes is read
(``bpf_src/predicates.bpf.h``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from packet_tracer.errors import UsageError
from packet_tracer.filter.addresses import AddressSet

#: Sizes of the arrays in bpf_src/predicates.bpf.h.
NETNS_MAX = 16
INTERFACES_MAX = 32
TASKS_MAX = 16
CGROUPS_MAX = 8
DROP_REASONS_MAX = 32
_COMM_BYTES = 16
_LENGTH_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Predicates:
    """Which packets are of interest; an empty value lets all pass.

    - ``netns``: inode numbers of network namespaces.
    - ``interfaces``: pairs of (namespace inode, ifindex), of which the packet's device or the one it came in
      by must be one.
    - ``mark``: a value that ``skb->mark & mark_mask`` must have.
    - ``pids``: of threads or processes, ``comms``: names of threads; whoever runs when the event happens.
    - ``cgroups``: ids in the cgroup v2 tree, what is below them counts too; that of the packet's socket, or
      without one of the task that runs.
    - ``length``: least and greatest length in bytes of the packet, from its first header on.
    - ``drop_reasons``: numbers of ``enum skb_drop_reason``; with any, only such drops pass.
    - ``addresses``: prefixes to or from which the packet must be.

    Raises UsageError for more than the kernel side has room for.
    """

    netns: tuple[int, ...] = ()
    interfaces: tuple[tuple[int, int], ...] = ()
    mark: int = 0
    mark_mask: int = 0
    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    cgroups: tuple[int, ...] = ()
    length: tuple[int, int] | None = None
    drop_reasons: tuple[int, ...] = ()
    addresses: AddressSet | None = None

    def __post_init__(self) -> None:
        for what, values, most in (
            ("network namespaces", self.netns, NETNS_MAX),
            ("interfaces", self.interfaces, INTERFACES_MAX),
            ("processes", self.pids, TASKS_MAX),
            ("process names", self.comms, TASKS_MAX),
            ("cgroups", self.cgroups, CGROUPS_MAX),
            ("drop reasons", self.drop_reasons, DROP_REASONS_MAX),
        ):
            if len(values) > most:
                raise UsageError(f"{len(values)} {what} given, at most {most} can be filtered by")
        for comm in self.comms:
            if len(comm.encode()) >= _COMM_BYTES:
                raise UsageError(f"process name {comm!r}: the kernel keeps {_COMM_BYTES - 1} bytes of a name")
        if self.length and not 0 <= self.length[0] <= self.length[1] <= _LENGTH_MAX:
            raise UsageError(f"no packet has a length of {self.length[0]} to {self.length[1]}")

    def rodata(self) -> dict[str, int | bytes]:
        """Return the kernel side's configuration variables, by name."""
        least, greatest = self.length or (0, 0)
        pairs = [number for pair in self.interfaces for number in pair]
        return {
            "filter_netns_count": len(self.netns),
            "filter_netns": _array("I", NETNS_MAX, self.netns),
            "filter_interface_count": len(self.interfaces),
            "filter_interfaces": _array("I", 2 * INTERFACES_MAX, pairs),
            "filter_mark": self.mark & self.mark_mask,
            "filter_mark_mask": self.mark_mask,
            "filter_pid_count": len(self.pids),
            "filter_pids": _array("I", TASKS_MAX, self.pids),
            "filter_comm_count": len(self.comms),
            "filter_comms": _names(self.comms),
            "filter_cgroup_count": len(self.cgroups),
            "filter_cgroups": _array("Q", CGROUPS_MAX, self.cgroups),
            "filter_length": int(self.length is not None),
            "filter_length_minimum": least,
            "filter_length_maximum": greatest,
            "filter_drop_reason_count": len(self.drop_reasons),
            "filter_drop_reasons": _array("I", DROP_REASONS_MAX, self.drop_reasons),
            "filter_addresses": int(self.addresses is not None),
        }


def _array(kind: str, size: int, values: tuple[int, ...] | list[int]) -> bytes:
    return struct.pack(f"={size}{kind}", *values, *[0] * (size - len(values)))


def _names(comms: tuple[str, ...]) -> bytes:
    return b"".join(comm.encode().ljust(_COMM_BYTES, b"\0") for comm in comms).ljust(
        TASKS_MAX * _COMM_BYTES, b"\0"
    )


def cgroup_id(path: str) -> int:
    """Return the id of a cgroup v2: a number, or a directory of the mounted tree (its inode number).

    ``/system.slice`` is looked for below where the tree is mounted, usually ``/sys/fs/cgroup``. Raises
    UsageError where there is none.
    """
    if path.isdigit():
        return int(path)
    for root in _cgroup_roots():
        for place in (Path(path), root / path.lstrip("/")):
            if place.is_relative_to(root) and place.is_dir():
                return place.stat().st_ino
    raise UsageError(f"no cgroup {path!r} in the cgroup v2 tree")


def _cgroup_roots() -> list[Path]:
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        fields = [line.split() for line in mounts]
    return [Path(mount[1]) for mount in fields if mount[2] == "cgroup2"]
