"""What all backends share: what is loaded, kept, and left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from packet_tracer.bpf.link import Link
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.bpf.targets import open_module
from packet_tracer.errors import BpfError
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import load_filtered
from packet_tracer.probes.function_probes import FunctionProbe
from packet_tracer.probes.functions import KERNEL
from packet_tracer.probes.returns import cookie_with_return

#: Registers that arguments lie in which the kprobe programs read.
_REGISTERS = 6
#: So many functions are tried first: where they all are refused for one reason, so is the backend.
FIRST = 3


@dataclass(slots=True)
class Attaching:
    """One attempt of a backend. ``load`` opens an object of the capture and returns its prepared programs,
    ``maps`` are the capture's, ``stack`` owns what is loaded.

    ``skipped`` says why functions were left out, by name.
    """

    load: Callable[[str, Sequence[str]], dict[str, PreparedProgram]]
    maps: Mapping[str, Map]
    filter: Filter | None
    returns: bool
    stack: ExitStack
    skipped: dict[str, str] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    errors: list[int | None] = field(default_factory=list)

    def load_shared(self, program: PreparedProgram) -> Program:
        """Load a program once, for all functions."""
        return self.keep(load_filtered(program, self.filter))

    def keep(self, program: Program) -> Program:
        """Leave a program to the stack."""
        self.stack.callback(program.close)
        self.programs.append(program)
        return program

    def refuse(self, probe: FunctionProbe, error: BpfError) -> None:
        """Leave a function out that the kernel has refused."""
        self.skipped[probe.name] = str(error)
        self.errors.append(error.errno)

    @property
    def hopeless(self) -> bool:
        """Whether several functions were refused, and all for one reason: the others will be, if none is
        attached.
        """
        return len(self.errors) >= FIRST and len(set(self.errors)) == 1

    def cookie(self, probe: FunctionProbe) -> int:
        """Return what the kernel side is told of a function."""
        return cookie_with_return(probe) if self.returns else probe.cookie

    def with_trampoline(self, probes: Sequence[FunctionProbe]) -> list[FunctionProbe]:
        """Return those that a BPF trampoline reaches."""
        for probe in probes:
            if not probe.function.trampoline:
                self.skipped[probe.name] = "its prototype or its namesakes keep a trampoline off"
        return [probe for probe in probes if probe.name not in self.skipped]

    def in_registers(self, probes: Sequence[FunctionProbe]) -> list[FunctionProbe]:
        """Return those whose packet is in a register that kprobes' programs read."""
        for probe in probes:
            if probe.argument is not None and probe.argument.index >= _REGISTERS:
                self.skipped[probe.name] = "its packet is no register argument"
        return [probe for probe in probes if probe.name not in self.skipped]

    def module_descriptors(self, probes: Sequence[FunctionProbe]) -> dict[str, int]:
        """Return file descriptors of the BTF of functions' modules, by name; the kernel has none."""
        descriptors: dict[str, int] = {}
        for module in {probe.function.module for probe in probes} - {KERNEL}:
            descriptors[module] = open_module(module)
            self.stack.callback(os.close, descriptors[module])
        return descriptors

    def by_halves(
        self, probes: Sequence[FunctionProbe], attach: Callable[[Sequence[FunctionProbe]], Link]
    ) -> Iterator[Link]:
        """Attach to all at once; one that refuses fails all, so it is looked for by halves and left out."""
        try:
            yield attach(probes)
        except BpfError as error:
            if len(probes) == 1:
                self.refuse(probes[0], error)
                return
            middle = len(probes) // 2
            yield from self.by_halves(probes[:middle], attach)
            yield from self.by_halves(probes[middle:], attach)


def functions(count: int) -> str:
    """Return a number of functions in words."""
    return f"{count} function{'s' * (count != 1)}"
