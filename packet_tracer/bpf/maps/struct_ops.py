"""STRUCT_OPS: a kernel's table of functions, implemented in BPF."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.generic import Map

if TYPE_CHECKING:
    from packet_tracer.bpf.link import StructOpsLink

#: ``enum bpf_struct_ops_state`` (include/linux/bpf.h).
_STATES = ("init", "in use", "to be freed", "ready")


class StructOps(Map):
    """STRUCT_OPS: an implementation of ``tcp_congestion_ops`` or another table of functions (Linux 5.6).

    It comes from an object loaded by :meth:`~packet_tracer.bpf.object.OpenedObject.load_all`, whose programs
    are its functions, and can't be created otherwise. :meth:`register` makes the kernel use it until the link
    that it returns is closed; what uses it by then (a socket with this congestion control) keeps it alive.

    Thread safety: register from one thread.

    >>> with congestion_control() as loaded:
    ...     table = loaded.maps["ptrace_cc"]
    ...     with table.register():
    ...         table.state
    'in use'
    """

    TYPE: ClassVar[MapType] = MapType.STRUCT_OPS

    def register(self) -> StructOpsLink:
        """Register the table; AttachError EEXIST where one of that name is there."""
        from packet_tracer.bpf.link import attach_struct_ops  # it needs this package

        if self._libbpf is None:
            reason = "only the object that it was loaded with can: use load_all()"
            raise self.error("registration", errno.EINVAL, reason)
        return attach_struct_ops(self._libbpf)

    @property
    def state(self) -> str:
        """``"init"``, ``"in use"`` while registered (or ``"ready"``, made for links), ``"to be freed"``."""
        found = self.raw.lookup(bytes(4))
        if found is None:
            return _STATES[0]
        # struct bpf_struct_ops_common_value { refcount_t refcnt; enum bpf_struct_ops_state state; }
        number = int.from_bytes(found[4:8], "little")
        return _STATES[number] if number < len(_STATES) else str(number)
