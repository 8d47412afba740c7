"""Attaching to kernel functions by the best means that this kernel has.

``kprobe-multi``
    one program and one link for all functions (Linux 5.18, CONFIG_FPROBE): attached and detached at once.
    With returns it is a kprobe session (Linux 6.10);
``fentry``
    a clone of one program for each function, through a BPF trampoline: cheapest for each packet. To detach
    one takes a kernel that can be preempted (CONFIG_PREEMPTION) a tenth of a second: it waits for all tasks
    to leave the trampoline (synchronize_rcu_tasks). With returns there are three for each function;
``kprobe``
    one program, and a perf event for each function, with returns three: works nearly everywhere. The kernel
    misses returns of functions that wait while more calls of them come (it keeps room for some ten).

Which of them works here is found by trying. A function that refuses is left out, with the reason.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from packet_tracer.bpf import link as links
from packet_tracer.bpf import perf_links
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.enums import AttachType, ProgramType
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.idle import QUIET_FUNCTION, idle_program
from packet_tracer.bpf.kprobes import has_kprobes
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.parallel import load_each, load_together
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.bpf.targets import open_module
from packet_tracer.errors import BpfError, NotSupportedError
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import load_filtered
from packet_tracer.filter.typed import typed_memory
from packet_tracer.probes.function_probes import Backend, FunctionProbe, Way
from packet_tracer.probes.functions import KERNEL, ArgumentKind
from packet_tracer.probes.returns import cookie_with_return

if TYPE_CHECKING:
    from packet_tracer.probes.trampolines import Template

#: Up to so many functions, trampolines are worth the time they take to detach: they cost least for a packet.
_FEW = 8
#: With returns: at entry, to remember the entry, at the return.
_CLONES_A_FUNCTION = 3
#: Object of the trampolines' templates for a kind of argument, and what their names begin with.
_FENTRY = {
    ArgumentKind.SKB: ("fentry", "function"),
    ArgumentKind.SKB_POINTER: ("fentry_read", "pointer"),
    ArgumentKind.XDP_BUFF: ("fentry_read", "buffer"),
    ArgumentKind.XDP_FRAME: ("fentry_read", "buffer"),
}
#: The programs of kprobes, and of kprobe-multi, by how a function's packet is come by; with returns too.
_KPROBE: dict[Way, tuple[str, ...]] = {
    "skb": ("kprobe_entry",),
    "buffer": ("kprobe_buffer",),
    "made": ("kretprobe_skb",),
}
_KPROBE_CALLS: dict[Way, tuple[str, ...]] = {
    "skb": ("kprobe_entry", "kprobe_remember", "kretprobe_return"),
    "buffer": ("kprobe_buffer", "kprobe_buffer_remember", "kretprobe_return"),
    "made": ("kretprobe_skb",),
}
_MULTI: dict[Way, str] = {
    "skb": "kprobe_multi_entry",
    "buffer": "kprobe_multi_buffer",
    "made": "kretprobe_multi_skb",
}
_MULTI_EITHER = "kprobe_multi_either"
_MULTI_CALLS: dict[Way, str] = {
    "skb": "kprobe_session",
    "buffer": "kprobe_session",
    "made": "kretprobe_multi_skb",
}
#: Registers that arguments lie in which the kprobe programs read.
_REGISTERS = 6
#: So many functions are tried first: where they all are refused for one reason, so is the backend.
_FIRST = 3


def may_trace_functions() -> bool:
    """Return whether some backend may work here: a look of a millisecond, where the table of functions takes
    200.
    """
    if has_kprobes():
        return True
    try:
        program = idle_program(
            ProgramType.TRACING,
            AttachType.TRACE_FENTRY,
            section=f"fentry/{QUIET_FUNCTION}",
            target=QUIET_FUNCTION,
        )
    except BpfError:
        return False
    program.close()
    return True


@dataclass(slots=True)
class FunctionAttacher:
    """Attaches function probes. ``load`` opens an object of the capture and returns its prepared programs,
    ``maps`` are the capture's.

    ``skipped`` says why functions were left out, by name; ``backend`` is the one that was used.
    """

    load: Callable[[str, Sequence[str]], dict[str, PreparedProgram]]
    maps: Mapping[str, Map]
    filter: Filter | None = None
    returns: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    backend: Backend | None = None
    programs: list[Program] = field(default_factory=list)
    _errors: list[int | None] = field(default_factory=list)
    _attached: list[Link] = field(default_factory=list)

    def attach(
        self, probes: Sequence[FunctionProbe], backend: Backend | None, stack: ExitStack
    ) -> list[Link]:
        """Attach to all functions that can be had; programs are closed by ``stack``, links are the caller's.

        ``backend`` None means the best that works. Raises NotSupportedError where none does, or not the one
        asked for.
        """
        reasons = []
        for candidate in [backend] if backend else self._preferred(len(probes)):
            self.skipped.clear()
            self._errors.clear()
            reason = self._try(candidate, probes, stack)
            if self._attached:
                self.backend = candidate
                return self._attached
            reasons.append(f"{candidate}: {reason}")
        raise NotSupportedError(f"no kernel function can be traced here ({'; '.join(reasons)})")

    def _preferred(self, count: int) -> tuple[Backend, ...]:
        if count <= _FEW:
            return ("fentry", "kprobe-multi", "kprobe")
        if self.returns:  # kprobes may miss some
            return ("kprobe-multi", "fentry", "kprobe")
        return ("kprobe-multi", "kprobe", "fentry")

    def _try(self, backend: Backend, probes: Sequence[FunctionProbe], stack: ExitStack) -> str:
        """Attach as far as can be; return why nothing is attached."""
        if backend != "kprobe-multi":
            _allow_open_files(2 * _CLONES_A_FUNCTION * len(probes))
        method = {"fentry": self._fentry, "kprobe-multi": self._kprobe_multi, "kprobe": self._kprobe}[backend]
        try:
            for link in method(probes, stack):
                self._attached.append(link)
        except BpfError as error:
            links.close_all(self._attached)
            self._attached.clear()
            return str(error)
        except BaseException:
            links.close_all(self._attached)
            raise
        return next(iter(self.skipped.values()), "no function is left")

    def _load(self, program: PreparedProgram, stack: ExitStack) -> Program:
        """Load a program once, for all functions."""
        return self._keep(load_filtered(program, self.filter), stack)

    def _keep(self, program: Program, stack: ExitStack) -> Program:
        stack.callback(program.close)
        self.programs.append(program)
        return program

    # fentry

    def _fentry(self, probes: Sequence[FunctionProbe], stack: ExitStack) -> Iterator[Link]:
        usable = [probe for probe in probes if self._has_trampoline(probe)]
        wanted: dict[str, dict[str, None]] = {}
        for probe in usable:
            file = _FENTRY[probe.argument.kind][0] if probe.argument else "fentry"
            wanted.setdefault(file, {}).update(dict.fromkeys(self._clones(probe)))
        templates = {
            name: self._template(each)
            for file, names in wanted.items()
            for name, each in self.load(file, list(names)).items()
        }
        modules = {probe.function.module for probe in usable} - {KERNEL}
        descriptors: dict[str, int] = {}
        for module in modules:
            descriptors[module] = open_module(module)
            stack.callback(os.close, descriptors[module])
        for chunk in (usable[:_FIRST], usable[_FIRST:]):
            loads = {
                (probe, name): partial(
                    templates[name].load_for, probe, module_fd=descriptors.get(probe.function.module)
                )
                for probe in chunk
                for name in self._clones(probe)
            }
            yield from self._attach_clones(load_each(loads), stack)
            if self._hopeless():
                return

    def _clones(self, probe: FunctionProbe) -> list[str]:
        if probe.argument is None:
            return ["function_made"]
        prefix = _FENTRY[probe.argument.kind][1]
        return [f"{prefix}_{moment}" for moment in ("entry", *(("remember", "return") * self.returns))]

    def _has_trampoline(self, probe: FunctionProbe) -> bool:
        if not probe.function.trampoline:
            self.skipped[probe.name] = "its prototype or its namesakes keep a trampoline off"
        return probe.name not in self.skipped

    def _attach_clones(
        self, loaded: Mapping[tuple[FunctionProbe, str], Program | BpfError], stack: ExitStack
    ) -> Iterator[Link]:
        """Attach what was loaded: all clones of a function, or none."""
        by_probe: dict[FunctionProbe, list[Program]] = {}
        for (probe, _), program in loaded.items():
            if isinstance(program, Program):
                by_probe.setdefault(probe, []).append(self._keep(program, stack))
            else:
                self._refuse(probe, program)
        for probe, programs in by_probe.items():
            if probe.name in self.skipped:
                continue
            attached: list[Link] = []
            try:
                for program in programs:
                    attached.append(links.attach_tracing(program))
            except BpfError as error:
                links.close_all(attached)
                self._refuse(probe, error)
                continue
            yield from attached

    def _refuse(self, probe: FunctionProbe, error: BpfError) -> None:
        self.skipped[probe.name] = str(error)
        self._errors.append(error.errno)

    def _hopeless(self) -> bool:
        """Whether the first functions were all refused, and for one reason."""
        return len(self._errors) >= _FIRST and not self._attached and len(set(self._errors)) == 1

    # kprobe

    def _kprobe(self, probes: Sequence[FunctionProbe], stack: ExitStack) -> Iterator[Link]:
        programs = _KPROBE_CALLS if self.returns else _KPROBE
        names = sorted({name for probe in probes for name in programs[probe.way]})
        prepared = self.load("kprobe", names)
        usable = self._in_registers(probes)
        cookies = _has_attach_cookies()
        if not cookies:
            usable = self._tell_by_address(usable)
        # Where a return's program can't be told what function it is on, each has its own.
        own = {} if cookies else {name: self._template(prepared[name]) for name in names if _at_return(name)}
        shared: dict[str, Program] = {}
        for probe in usable:
            cookie = self._cookie(probe)
            attached: list[Link] = []
            try:
                for name in programs[probe.way]:
                    if name in own:
                        program = self._keep(own[name].load(cookie, target=probe.name), stack)
                    else:
                        program = shared.get(name) or self._load(prepared[name], stack)
                        shared[name] = program
                    attached.append(
                        _attach_kprobe(
                            program, probe, returns=_at_return(name), cookie=cookie if cookies else None
                        )
                    )
            except BpfError as error:
                links.close_all(attached)
                self._refuse(probe, error)
                if self._hopeless():
                    return
                continue
            yield from attached

    def _template(self, program: PreparedProgram) -> Template:
        from packet_tracer.probes.trampolines import Template

        return Template.of(program, self.filter)

    def _in_registers(self, probes: Sequence[FunctionProbe]) -> list[FunctionProbe]:
        usable = []
        for probe in probes:
            argument = probe.argument
            if argument is not None and argument.index >= _REGISTERS:
                self.skipped[probe.name] = "its packet is no register argument"
            else:
                usable.append(probe)
        return usable

    def _tell_by_address(self, probes: Sequence[FunctionProbe]) -> list[FunctionProbe]:
        """Put down what the program has to know of each function, by address; return those that have one."""
        usable = []
        for probe in probes:
            address = probe.function.address
            if probe.argument is not None and not address:
                self.skipped[probe.name] = "its address is hidden (kernel.kptr_restrict)"
                continue
            if probe.argument is not None:
                cookie = struct.pack("=Q", probe.cookie)
                self.maps["function_cookies"].raw.update(struct.pack("=Q", address), cookie)
            usable.append(probe)
        return usable

    # kprobe-multi

    def _kprobe_multi(self, probes: Sequence[FunctionProbe], stack: ExitStack) -> Iterator[Link]:
        # Else the verifier would blame the program: a helper that it needs is as new.
        if reason := links.kprobe_multi_missing():
            what = f"{len(probes)} function{'s' * (len(probes) != 1)}"
            raise AttachError("kprobe-multi", what, errno=errno.EOPNOTSUPP, reason=reason)
        if self.returns and (reason := links.kprobe_session_missing()):
            raise AttachError("kprobe-multi", "returns", errno=errno.EOPNOTSUPP, reason=reason)
        usable = self._in_registers(probes)
        programs = _MULTI_CALLS if self.returns else _multi_programs(usable)
        groups: dict[str, list[FunctionProbe]] = {}
        for probe in usable:
            groups.setdefault(programs[probe.way], []).append(probe)
        prepared = self.load("kprobe", sorted(groups))
        loaded = load_together({name: partial(load_filtered, prepared[name], self.filter) for name in groups})
        for program in loaded.values():
            self._keep(program, stack)
        for name, group in groups.items():
            yield from self._multi(loaded[name], group, returns=name == _MULTI["made"])

    def _cookie(self, probe: FunctionProbe) -> int:
        return cookie_with_return(probe) if self.returns else probe.cookie

    def _multi(self, program: Program, probes: Sequence[FunctionProbe], *, returns: bool) -> Iterator[Link]:
        """Attach to all at once; one that refuses fails all, so it is looked for by halves and left out."""
        try:
            yield _attach_multi(program, {probe: self._cookie(probe) for probe in probes}, returns=returns)
        except BpfError as error:
            if len(probes) == 1:
                self._refuse(probes[0], error)
                return
            middle = len(probes) // 2
            yield from self._multi(program, probes[:middle], returns=returns)
            yield from self._multi(program, probes[middle:], returns=returns)


def _at_return(program: str) -> bool:
    return program.startswith("kretprobe")


def _multi_programs(probes: Sequence[FunctionProbe]) -> dict[Way, str]:
    """Return the program for each way: one for all functions that take a packet, if the kernel takes that."""
    if typed_memory() is None or not any(probe.way == "buffer" for probe in probes):
        return _MULTI
    return _MULTI | {"skb": _MULTI_EITHER, "buffer": _MULTI_EITHER}


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files: each clone is a program and a link, and each is a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + soft
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _has_attach_cookies() -> bool:
    """Whether a link can tell a kprobe's program what function it is on; the program asks the same."""
    return "BPF_FUNC_get_attach_cookie" in Btf.vmlinux().enum("bpf_func_id")


def _attach_kprobe(program: Program, probe: FunctionProbe, *, returns: bool, cookie: int | None) -> Link:
    function = probe.function
    return perf_links.attach_kprobe(
        program, function.name, address=function.address, returns=returns, cookie=cookie
    )


def _attach_multi(program: Program, cookies: Mapping[FunctionProbe, int], *, returns: bool) -> Link:
    functions = [probe.function for probe in cookies]
    values = list(cookies.values())
    if all(function.address for function in functions):
        addresses = [function.address for function in functions]
        return links.attach_kprobe_multi(program, addresses=addresses, cookies=values, returns=returns)
    symbols = [function.name for function in functions]
    return links.attach_kprobe_multi(program, symbols=symbols, cookies=values, returns=returns)
