"""Links to network interfaces: XDP and TC. They act in the calling thread's network namespace."""

from __future__ import annotations

import errno
from typing import Literal

from packet_tracer.bpf._libbpf import lib
from packet_tracer.bpf.attachment import Link
from packet_tracer.bpf.enums import AttachType
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.library import options
from packet_tracer.bpf.program import Program
from packet_tracer.bpf.tc import Clsact

_XDP_GENERIC = 1 << 1  # XDP_FLAGS_SKB_MODE, include/uapi/linux/if_link.h
_XDP_NATIVE = 1 << 2  # XDP_FLAGS_DRV_MODE
_BEFORE = 1 << 3  # BPF_F_BEFORE: with nothing to be before, it means first of all

#: What a driver answers that could do XDP, or may one day, but not so: too large an MTU, too few queues, ...
#: EBUSY and EEXIST are not among them: somebody else's program is there, and generic mode would not help.
_NOT_NATIVE = frozenset(
    {errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.ENOMEM, errno.ENOSPC, errno.E2BIG}
)


class XdpLink(Link):
    """An XDP program on an interface; ``mode`` tells whether its driver runs it or the generic code."""

    def __init__(self, fd: int, description: str, mode: Literal["native", "generic"]) -> None:
        super().__init__(fd, "xdp", description)
        self.mode = mode


def attach_xdp(
    program: Program, ifindex: int, *, mode: Literal["auto", "native", "generic"] = "auto"
) -> XdpLink:
    """Attach to an interface as it receives (Linux 5.9): in the driver, or generic where the driver can't.

    Raises AttachError: EBUSY where another XDP program is attached, which can't be shared; ENODEV where
    there is no such interface.
    """
    target = f"interface {ifindex}"
    attempts = {"auto": ("native", "generic"), "native": ("native",), "generic": ("generic",)}[mode]
    result = 0
    for attempt in attempts:
        flags = _XDP_NATIVE if attempt == "native" else _XDP_GENERIC
        opts = options("bpf_link_create_opts", flags=flags)
        result = lib.bpf_link_create(program.fd, ifindex, AttachType.XDP, opts)
        if result >= 0:
            found: Literal["native", "generic"] = "native" if attempt == "native" else "generic"
            return XdpLink(result, f"{program.name} at {target} ({found})", found)
        if -result not in _NOT_NATIVE:
            break
    reason = ""
    if -result in (errno.EBUSY, errno.EEXIST):
        reason = "another XDP program is attached there, and an interface takes only one"
    elif mode == "native" and -result == errno.EOPNOTSUPP:
        reason = "its driver has no XDP; generic mode works with any"
    raise AttachError("xdp", target, errno=-result, reason=reason)


class ClsactLink(Link):
    """A TC program behind a clsact queueing discipline, for kernels without TCX.

    Unlike a link it does not go away with the process if that is killed: ``tc filter del dev IFACE ingress``
    does it then. The queueing discipline is removed with it if it was made for it and nobody else uses it.
    """

    def __init__(self, clsact: Clsact, description: str) -> None:
        super().__init__(-1, "clsact", description)
        self._clsact: Clsact | None = clsact

    @property
    def fd(self) -> int:
        """There is none. Raises ValueError."""
        raise ValueError("a clsact filter has no file descriptor")

    @property
    def id(self) -> int | None:
        """None: it is not a link in the kernel's sense."""
        return None

    @property
    def closed(self) -> bool:
        """Whether it was detached."""
        return self._clsact is None

    def close(self) -> None:
        """Detach; a filter or interface that is gone already is no error."""
        clsact, self._clsact = self._clsact, None
        if clsact is not None:
            clsact.detach()


def attach_tcx(
    program: Program,
    ifindex: int,
    direction: Literal["ingress", "egress"],
    *,
    backend: Literal["auto", "tcx", "clsact"] = "auto",
    first: bool = True,
) -> Link:
    """Attach to an interface's traffic control: by TCX (Linux 6.6), else behind a clsact queueing discipline.

    ``first`` puts it before other TC programs, so that it sees what they drop. The program must return
    TCX_NEXT (-1, TC_ACT_UNSPEC) to let the others decide. :attr:`Link.kind` is ``tcx`` or ``clsact``.
    """
    target = f"interface {ifindex} {direction}"
    description = f"{program.name} at {target}"
    if backend != "clsact":
        attach_type = AttachType.TCX_INGRESS if direction == "ingress" else AttachType.TCX_EGRESS
        opts = options("bpf_link_create_opts", flags=_BEFORE if first else 0)
        result = lib.bpf_link_create(program.fd, ifindex, attach_type, opts)
        if result >= 0:
            return Link(result, "tcx", description)
        # EINVAL: the attach type is unknown (before e420bed02507, Linux 6.6).
        if backend == "tcx" or -result != errno.EINVAL:
            raise AttachError("tcx", target, errno=-result)
    try:
        return ClsactLink(Clsact.attach(program, ifindex, direction, first=first), description)
    except OSError as error:
        raise AttachError("clsact", target, errno=error.errno or 0) from None
