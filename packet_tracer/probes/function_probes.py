"""Attaching to kernel functions by the best means that this kernel has.

``kprobe-multi``
    one program and one link for all functions (Linux 5.18, CONFIG_FPROBE);
``fentry``
    a clone of one program for each function, through a BPF trampoline: cheapest for each packet, and the only
    one that gives return values;
``kprobe``
    a clone of one program for each function, through a perf event: works nearly everywhere, and is slow to
    attach.

Which of them works here is found by trying. A function that refuses is left out, with the reason.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, get_args

from packet_tracer.bpf import link as links
from packet_tracer.bpf import perf_links
from packet_tracer.bpf.constants import patch_constants
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.bpf.targets import open_module
from packet_tracer.errors import BpfError, NotSupportedError, UsageError
from packet_tracer.events._layout import ProbeId
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import Patched, patch
from packet_tracer.probes.functions import KERNEL, Argument, ArgumentKind, SkbFunction
from packet_tracer.probes.trampolines import Context

Backend = Literal["fentry", "kprobe-multi", "kprobe"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

#: Up to so many functions a trampoline each is worth its load time: it costs least for each packet.
_FEW = 96
#: With returns: at entry, to remember the entry, at the return.
_CLONES_A_FUNCTION = 3
_KINDS = {ArgumentKind.SKB: 0, ArgumentKind.SKB_POINTER: 1}
#: Registers that arguments lie in which the kprobe programs read.
_REGISTERS = 6


@dataclass(frozen=True, slots=True)
class FunctionProbe:
    """A function to be traced, and the probe ids of its entry and, one more, of its return."""

    name: str
    probe_id: int
    function: SkbFunction

    @property
    def argument(self) -> Argument | None:
        """The argument that leads to the packet; None for a function that makes one."""
        return self.function.argument(*_KINDS)

    @property
    def cookie(self) -> int:
        """What the kernel side is told of it; see COOKIE_PROBE in bpf_src/functions.bpf.h."""
        argument = self.argument
        if argument is None:
            return self.probe_id
        return self.probe_id | argument.index << 16 | _KINDS[argument.kind] << 24


def number(functions: Iterable[SkbFunction]) -> tuple[FunctionProbe, ...]:
    """Give functions probe ids and names: ``name``, or ``name@address`` where several have one name.

    Functions that only take XDP buffers are left out: their packet has no skb yet.
    """
    usable = [one for one in functions if one.argument(*_KINDS) or one.returns_skb]
    if len(usable) > (0xFFFF - ProbeId.FUNCTION) // 2:
        raise UsageError(f"{len(usable)} functions are more than can be numbered")
    names = [one.name for one in usable]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return tuple(
        FunctionProbe(
            f"{one.name}@{one.address:x}" if one.name in twice else one.name,
            ProbeId.FUNCTION + 2 * index,
            one,
        )
        for index, one in enumerate(usable)
    )


@dataclass(slots=True)
class FunctionAttacher:
    """Attaches function probes. ``load`` opens an object of the capture and returns its prepared programs.

    ``skipped`` says why functions were left out, by name; ``backend`` is the one that was used.
    """

    load: Callable[[str, Sequence[str]], dict[str, PreparedProgram]]
    filter: Filter | None = None
    returns: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    backend: Backend | None = None
    programs: list[Program] = field(default_factory=list)

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
            attached, reason = self._try(candidate, probes, stack)
            if attached:
                self.backend = candidate
                return attached
            reasons.append(f"{candidate}: {reason}")
        raise NotSupportedError(f"no kernel function can be traced here ({'; '.join(reasons)})")

    def _preferred(self, count: int) -> tuple[Backend, ...]:
        if self.returns or count <= _FEW:
            return ("fentry", "kprobe-multi", "kprobe")
        return ("kprobe-multi", "fentry", "kprobe")

    def _try(
        self, backend: Backend, probes: Sequence[FunctionProbe], stack: ExitStack
    ) -> tuple[list[Link], str]:
        if self.returns and backend != "fentry":
            return [], "returns need fentry"
        if backend != "kprobe-multi":
            _allow_open_files(2 * _CLONES_A_FUNCTION * len(probes))
        method = {"fentry": self._fentry, "kprobe-multi": self._kprobe_multi, "kprobe": self._kprobe}[backend]
        try:
            return list(method(probes, stack)), next(iter(self.skipped.values()), "no function is left")
        except BpfError as error:
            return [], str(error)

    # One clone for each function

    def _patched(self, program: PreparedProgram, instructions: bytes) -> Patched:
        if self.filter is None:
            return Patched(instructions, program.func_info, program.line_info)
        return patch(program, self.filter, instructions=instructions)

    def _each(
        self,
        probes: Sequence[FunctionProbe],
        stack: ExitStack,
        attach: Callable[[FunctionProbe], Iterator[tuple[Program, Link]]],
    ) -> Iterator[Link]:
        """Attach one function after the other; give up when the first ones all refuse for one reason."""
        attached = 0
        for probe in probes:
            try:
                for program, link in attach(probe):
                    stack.callback(program.close)
                    self.programs.append(program)
                    attached += 1
                    yield link
            except BpfError as error:
                self.skipped[probe.name] = str(error)
                if not attached and len(self.skipped) >= 3 and len(set(self._errnos())) == 1:
                    return

    def _errnos(self) -> list[str]:
        return [reason.rsplit(" was refused", 1)[-1] for reason in self.skipped.values()]

    def _fentry(self, probes: Sequence[FunctionProbe], stack: ExitStack) -> Iterator[Link]:
        names = ["function_entry", "function_made"]
        if self.returns:
            names += ["function_remember", "function_return"]
        templates = self.load("fentry", names)
        modules: dict[str, int] = {}

        def module(name: str) -> int | None:
            if name == KERNEL:
                return None
            if name not in modules:
                modules[name] = open_module(name)
                stack.callback(os.close, modules[name])
            return modules[name]

        def clone(probe: FunctionProbe, template: str) -> tuple[Program, Link]:
            prepared = templates[template]
            context = Context.of(probe.function)
            cookie = probe.cookie | context.returns << 28
            code = patch_constants(prepared, {"function_cookie": cookie})
            patched = self._patched(prepared, context.place(code, probe.argument))
            program = prepared.load(
                instructions=patched.instructions,
                func_info=patched.func_info,
                line_info=patched.line_info,
                attach_btf_id=probe.function.btf_id,
                attach_btf_obj_fd=module(probe.function.module),
                target=probe.name,
                log=False,
            )
            try:
                return program, links.attach_tracing(program)
            except BaseException:
                program.close()
                raise

        def attach(probe: FunctionProbe) -> Iterator[tuple[Program, Link]]:
            argument = probe.argument
            if argument is None:
                yield clone(probe, "function_made")
                return
            if argument.kind is not ArgumentKind.SKB:
                raise NotSupportedError("an sk_buff ** is followed by kprobes only")
            yield clone(probe, "function_entry")
            if self.returns:
                yield clone(probe, "function_remember")
                yield clone(probe, "function_return")

        usable = []
        for probe in probes:
            argument = probe.argument
            if not probe.function.trampoline:
                self.skipped[probe.name] = "its prototype or its namesakes keep a trampoline off"
            elif argument is not None and argument.kind is not ArgumentKind.SKB:
                self.skipped[probe.name] = "an sk_buff ** is followed by kprobes only"
            else:
                usable.append(probe)
        return self._each(usable, stack, attach)

    def _kprobe(self, probes: Sequence[FunctionProbe], stack: ExitStack) -> Iterator[Link]:
        templates = self.load("kprobe", ["kprobe_entry", "kretprobe_skb"])

        def attach(probe: FunctionProbe) -> Iterator[tuple[Program, Link]]:
            made = probe.argument is None
            prepared = templates["kretprobe_skb" if made else "kprobe_entry"]
            code = patch_constants(prepared, {"function_cookie": probe.cookie})
            patched = self._patched(prepared, code)
            program = prepared.load(
                instructions=patched.instructions,
                func_info=patched.func_info,
                line_info=patched.line_info,
                target=probe.name,
                log=False,
            )
            function = probe.function
            try:
                symbol = "" if function.address else function.name
                link = perf_links.attach_kprobe(program, symbol, address=function.address, returns=made)
            except BaseException:
                program.close()
                raise
            yield program, link

        return self._each(self._in_registers(probes), stack, attach)

    def _in_registers(self, probes: Sequence[FunctionProbe]) -> list[FunctionProbe]:
        usable = []
        for probe in probes:
            if probe.argument is not None and probe.argument.index >= _REGISTERS:
                self.skipped[probe.name] = "its packet is no register argument"
            else:
                usable.append(probe)
        return usable

    # One program for all functions

    def _kprobe_multi(self, probes: Sequence[FunctionProbe], stack: ExitStack) -> Iterator[Link]:
        # Else the verifier would blame the program: a helper that it needs is as new.
        if reason := links.kprobe_multi_missing():
            what = f"{len(probes)} function{'s' * (len(probes) != 1)}"
            raise AttachError("kprobe-multi", what, errno=errno.EOPNOTSUPP, reason=reason)
        templates = self.load("kprobe", ["kprobe_multi_entry", "kretprobe_multi_skb"])
        usable = self._in_registers(probes)
        for template, made in (("kprobe_multi_entry", False), ("kretprobe_multi_skb", True)):
            group = [probe for probe in usable if (probe.argument is None) == made]
            if not group:
                continue
            prepared = templates[template]
            patched = self._patched(prepared, prepared.instructions)
            program = prepared.load(
                instructions=patched.instructions, func_info=patched.func_info, line_info=patched.line_info
            )
            stack.callback(program.close)
            self.programs.append(program)
            yield from self._multi(program, group, returns=made)

    def _multi(self, program: Program, probes: Sequence[FunctionProbe], *, returns: bool) -> Iterator[Link]:
        """Attach to all at once; one that refuses fails all, so it is looked for by halves and left out."""
        try:
            yield _attach_multi(program, probes, returns=returns)
        except BpfError as error:
            if len(probes) == 1:
                self.skipped[probes[0].name] = str(error)
                return
            middle = len(probes) // 2
            yield from self._multi(program, probes[:middle], returns=returns)
            yield from self._multi(program, probes[middle:], returns=returns)


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files: each clone is a program and a link, and each is a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + soft
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _attach_multi(program: Program, probes: Sequence[FunctionProbe], *, returns: bool) -> Link:
    cookies = [probe.cookie for probe in probes]
    if all(probe.function.address for probe in probes):
        addresses = [probe.function.address for probe in probes]
        return links.attach_kprobe_multi(program, addresses=addresses, cookies=cookies, returns=returns)
    symbols = [probe.function.name for probe in probes]
    return links.attach_kprobe_multi(program, symbols=symbols, cookies=cookies, returns=returns)
