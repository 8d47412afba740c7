"""``kprobe``: one program, and a perf event for each function: works nearly everywhere.

With returns there are three events for each function, and the kernel misses returns of functions that wait
while more calls of them come: it keeps room for some ten.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from packet_tracer.bpf import link as links
from packet_tracer.bpf import perf_links
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import BpfError
from packet_tracer.probes.backends.common import Attaching
from packet_tracer.probes.function_probes import FunctionProbe, Way
from packet_tracer.probes.trampolines import Template

#: The programs by how a function's packet is come by, and those that returns take beside them.
_ENTRIES: dict[Way, tuple[str, ...]] = {
    "skb": ("kprobe_entry",),
    "buffer": ("kprobe_buffer",),
    "made": ("kretprobe_skb",),
}
_RETURNS: dict[Way, tuple[str, ...]] = {
    "skb": ("kprobe_remember", "kretprobe_return"),
    "buffer": ("kprobe_buffer_remember", "kretprobe_return"),
    "made": (),
}


def attach(attaching: Attaching, probes: Sequence[FunctionProbe]) -> Iterator[Link]:
    """Attach to each function; yield a link for each event."""
    names = sorted({name for probe in probes for name in _names(attaching, probe)})
    prepared = attaching.load("kprobe", names)
    usable = attaching.in_registers(probes)
    cookies = _has_attach_cookies()
    if not cookies:
        usable = _tell_by_address(attaching, usable)
    programs = _Programs(attaching, prepared, cookies)
    attached = False
    for probe in usable:
        found: list[Link] = []
        try:
            for name in _names(attaching, probe):
                found.append(
                    perf_links.attach_kprobe(
                        programs.of(name, probe),
                        probe.function.name,
                        address=probe.function.address,
                        returns=_at_return(name),
                        cookie=attaching.cookie(probe) if cookies else None,
                    )
                )
        except BpfError as error:
            links.close_all(found)
            attaching.refuse(probe, error)
            if attaching.hopeless and not attached:
                return
            continue
        attached = True
        yield from found


class _Programs:
    """What is attached: programs shared by functions, and clones where a return's can't be told which it is
    on.
    """

    def __init__(self, attaching: Attaching, prepared: dict[str, PreparedProgram], cookies: bool) -> None:
        self._attaching = attaching
        self._prepared = prepared
        self._shared: dict[str, Program] = {}
        self._templates = {
            name: Template.of(each, attaching.filter)
            for name, each in prepared.items()
            if not cookies and _at_return(name)
        }

    def of(self, name: str, probe: FunctionProbe) -> Program:
        """Return the program of this name for a function."""
        attaching = self._attaching
        if name in self._templates:
            cookie = attaching.cookie(probe)
            return attaching.keep(self._templates[name].load(cookie, target=probe.name))
        if name not in self._shared:
            self._shared[name] = attaching.load_shared(self._prepared[name])
        return self._shared[name]


def _names(attaching: Attaching, probe: FunctionProbe) -> tuple[str, ...]:
    return _ENTRIES[probe.way] + _RETURNS[probe.way] * attaching.returns


def _at_return(program: str) -> bool:
    return program.startswith("kretprobe")


def _has_attach_cookies() -> bool:
    """Whether a link can tell a kprobe's program what function it is on; the program asks the same."""
    return "BPF_FUNC_get_attach_cookie" in Btf.vmlinux().enum("bpf_func_id")


def _tell_by_address(attaching: Attaching, probes: Sequence[FunctionProbe]) -> list[FunctionProbe]:
    """Put down what the program has to know of each function, by address; return those that have one."""
    usable = []
    for probe in probes:
        address = probe.function.address
        if probe.argument is not None and not address:
            attaching.skipped[probe.name] = "its address is hidden (kernel.kptr_restrict)"
            continue
        if probe.argument is not None:
            cookie = struct.pack("=Q", probe.cookie)
            attaching.maps["function_cookies"].raw.update(struct.pack("=Q", address), cookie)
        usable.append(probe)
    return usable
