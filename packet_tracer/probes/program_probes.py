"""BPF programs of others as probes: what XDP and tc programs are given, and the verdict of each.

A program is traced like a kernel function, by trampolines at its entry and its exit (fentry and fexit with
the program in the place of the kernel), and is not changed by it: it need not be attached anew, and runs on
unseen when the capture ends. Its own function is traced. What it calls is inside of it, a program that it
tail-calls too: the exit is when that returns. The tail-called program itself has no entry of its own there.
"""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

from packet_tracer.bpf import link as links
from packet_tracer.bpf.enums import ProgramType, name_of
from packet_tracer.bpf.errors import ProgramLoadError
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.loaded import LoadedProgram, loaded_programs
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import BpfError, NotPermittedError, NotSupportedError, UsageError
from packet_tracer.events._layout import ProbeId
from packet_tracer.filter.expression import Filter
from packet_tracer.probes.trampolines import Template

Kind = Literal["xdp", "tc"]
_KINDS: dict[int, Kind] = {
    ProgramType.XDP: "xdp",
    ProgramType.SCHED_CLS: "tc",
    ProgramType.SCHED_ACT: "tc",
}
#: Where the return value lies in a trampoline's context, in words: behind five arguments where the kernel
#: does not trust the type that the program gives its context (func_info_aux.unreliable), else behind its one.
_RETURN_AT = (5, 1)
#: So many are named where none was meant.
_NAMED = 12


@dataclass(frozen=True, slots=True)
class TraceableProgram:
    """A BPF program whose entry and exit can be traced, as far as can be told before it is tried."""

    program: LoadedProgram

    @property
    def kind(self) -> Kind:
        """``"xdp"`` or ``"tc"``."""
        return _KINDS[self.program.type]

    @property
    def name(self) -> str:
        """``kind:name#id``: names are not unique, ids are."""
        return f"{self.kind}:{self.program.name}#{self.program.id}"

    @property
    def refusal(self) -> str:
        """Why it can't be traced, ``""`` if nothing is known against it."""
        return "" if self.program.function else "it was loaded without BTF, which tells where it begins"


@dataclass(frozen=True, slots=True)
class ProgramProbe:
    """A BPF program to be traced, and the probe ids of its entry and, one more, of its exit."""

    traced: TraceableProgram
    probe_id: int

    @property
    def name(self) -> str:
        """The entry's name; the exit's is ``name returns``."""
        return self.traced.name


def traceable_programs() -> list[TraceableProgram]:
    """Return the XDP and tc programs of this host, whatever namespace they are attached in, by id.

    Raises NotPermittedError without CAP_SYS_ADMIN, which the kernel wants for it.
    """
    try:
        return [TraceableProgram(one) for one in loaded_programs(_KINDS)]
    except BpfError as error:
        if error.errno != errno.EPERM:
            raise
        raise NotPermittedError("to find the BPF programs of others takes root (CAP_SYS_ADMIN)") from error


def choose_programs(patterns: Sequence[str]) -> list[TraceableProgram]:
    """Return the programs that one of ``patterns`` names: ``xdp``, ``tc``, an id, or a glob over names.

    Raises UsageError for a pattern that names none, with what there is.
    """
    known = traceable_programs()
    chosen: dict[int, TraceableProgram] = {}
    for pattern in patterns:
        found = [one for one in known if _matches(pattern, one)]
        if not found:
            raise UsageError(_no_match(pattern, known))
        chosen |= {one.program.id: one for one in found}
    return [one for one in known if one.program.id in chosen]


def _matches(pattern: str, candidate: TraceableProgram) -> bool:
    if pattern in ("xdp", "tc"):
        return candidate.kind == pattern
    program = candidate.program
    if pattern.isdigit():
        return program.id == int(pattern)
    return any(
        fnmatch.fnmatchcase(name, pattern) for name in (program.name, program.short_name, candidate.name)
    )


def _no_match(pattern: str, known: Sequence[TraceableProgram]) -> str:
    there = ", ".join(one.name for one in known[:_NAMED]) or "none"
    if len(known) > _NAMED:
        there += f", ... ({len(known)})"
    listed = f"programs that can be traced: {there}"
    if pattern in ("xdp", "tc"):
        return f"there is no {'XDP' if pattern == 'xdp' else 'tc'} program on this host; {listed}"
    if pattern.isdigit():
        try:
            with Program.from_id(int(pattern)) as other:
                kind = name_of(ProgramType, other.type)
            return f"program {pattern} is of type {kind}: only XDP and tc programs can be traced; {listed}"
        except (BpfError, OverflowError):
            return f"there is no program {pattern} on this host; {listed}"
    return f"no XDP or tc program on this host is called {pattern!r}; {listed}"


def number_programs(programs: Iterable[TraceableProgram], first: int) -> tuple[ProgramProbe, ...]:
    """Give programs probe ids from ``first`` on, two each."""
    found = tuple(ProgramProbe(one, first + 2 * index) for index, one in enumerate(programs))
    if found and found[-1].probe_id + 1 > 0xFFFF:
        raise UsageError(
            f"{len(found)} BPF programs on top of {(first - ProbeId.FUNCTION) // 2} functions are too many"
        )
    return found


@dataclass(slots=True)
class ProgramAttacher:
    """Attaches program probes. ``load`` opens an object of the capture and returns its prepared programs.

    ``skipped`` says why programs were left out, by name.
    """

    load: Callable[[str, Sequence[str]], dict[str, PreparedProgram]]
    filter: Filter | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    _attached: dict[int, Program] = field(default_factory=dict)

    def attach(self, probes: Sequence[ProgramProbe], stack: ExitStack) -> list[Link]:
        """Trace all that can be traced; programs are closed by ``stack``, links are the caller's.

        Raises NotSupportedError where that is none.
        """
        self.skipped.clear()
        attached: list[Link] = []
        kinds = {probe.traced.kind for probe in probes}
        names = [f"{kind}_program_{end}" for kind in sorted(kinds) for end in ("exit", "entry")]
        prepared = self.load("programs", names)
        templates = {name: Template.of(each, self.filter) for name, each in prepared.items()}
        refusals = set()
        for probe in probes:
            if reason := probe.traced.refusal:
                self.skipped[probe.name] = reason
                continue
            try:
                attached += self._attach(probe, templates, stack)
            except BpfError as error:
                self.skipped[probe.name] = str(error)
                refusals.add(error.errno)
        if attached:
            return attached
        if refusals == {errno.EPERM}:
            raise NotSupportedError("this kernel lets no BPF program be traced (fentry and fexit: EPERM)")
        name, reason = next(iter(self.skipped.items()))
        raise NotSupportedError(
            f"none of {len(probes)} BPF programs can be traced; {name}: {reason}"
            if len(probes) > 1
            else f"{name} can't be traced: {reason}"
        )

    def missed(self, probe_id: int) -> int:
        """Return how often the kernel left a probe out because it was running on that CPU already."""
        program = self._attached.get(probe_id)
        return program.info().recursion_misses if program else 0

    def _attach(self, probe: ProgramProbe, templates: dict[str, Template], stack: ExitStack) -> list[Link]:
        """Attach to the exit first, so that no entry is shown whose exit is not."""
        kind = probe.traced.kind
        with ExitStack() as undo, Program.from_id(probe.traced.program.id) as target:
            links_ = []
            for end, probe_id in (("exit", probe.probe_id + 1), ("entry", probe.probe_id)):
                program = undo.enter_context(_clone(probe, templates[f"{kind}_program_{end}"], target))
                self._attached[probe_id] = program
                links_.append(undo.enter_context(links.attach_tracing(program)))
            kept = undo.pop_all()
        stack.push(kept)
        return links_


def _clone(probe: ProgramProbe, template: Template, target: Program) -> Program:
    refused: BpfError | None = None
    for words in _RETURN_AT:
        try:
            return template.load(
                probe.probe_id,
                target=probe.name,
                return_at=words,
                attach_prog_fd=target.fd,
                attach_btf_id=probe.traced.program.function,
                log=refused is not None,
            )
        except ProgramLoadError as error:
            refused = error
            if error.errno == errno.EPERM:
                break
    assert refused is not None
    raise refused
