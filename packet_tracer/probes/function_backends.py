"""Attaching to kernel functions by the best means that this kernel has.

The means are in :mod:`packet_tracer.probes.backends`. Which of them works here is found by trying. A function
that refuses is left out, with the reason.
"""

from __future__ import annotations

import importlib
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from packet_tracer.bpf import link as links
from packet_tracer.bpf.enums import AttachType, ProgramType
from packet_tracer.bpf.idle import QUIET_FUNCTION, idle_program
from packet_tracer.bpf.kprobes import has_kprobes
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import BpfError, NotSupportedError
from packet_tracer.filter.expression import Filter
from packet_tracer.probes.backends.common import Attaching
from packet_tracer.probes.function_probes import Backend, FunctionProbe

#: Up to so many functions, a trampoline for each is worth the time it takes to detach: least is missed.
_FEW = 8
#: Descriptors of a function, one for a program and one for its link, with returns for each of three.
_DESCRIPTORS = 6


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

    def attach(
        self, probes: Sequence[FunctionProbe], backend: Backend | None, stack: ExitStack
    ) -> list[Link]:
        """Attach to all functions that can be had; programs are closed by ``stack``, links are the caller's.

        ``backend`` None means the best that works. Raises NotSupportedError where none does, or not the one
        asked for.
        """
        reasons = []
        for candidate in [backend] if backend else _preferred(len(probes), returns=self.returns):
            attached, reason = self._try(candidate, probes, stack)
            if attached:
                self.backend = candidate
                return attached
            reasons.append(f"{candidate}: {reason}")
        raise NotSupportedError(f"no kernel function can be traced here ({'; '.join(reasons)})")

    def _try(
        self, backend: Backend, probes: Sequence[FunctionProbe], stack: ExitStack
    ) -> tuple[list[Link], str]:
        """Attach as far as can be; return the links, or why there are none."""
        if not backend.endswith("multi"):
            _allow_open_files(_DESCRIPTORS * len(probes))
        attaching = Attaching(self.load, self.maps, self.filter, self.returns, stack)
        attached: list[Link] = []
        try:
            for link in _backend(backend)(attaching, probes):
                attached.append(link)
        except BpfError as error:
            links.close_all(attached)
            return [], str(error)
        except BaseException:
            links.close_all(attached)
            raise
        self.programs += attaching.programs
        self.skipped = attaching.skipped
        return attached, next(iter(attaching.skipped.values()), "no function is left")


def _backend(name: Backend) -> Callable[[Attaching, Sequence[FunctionProbe]], Iterator[Link]]:
    """Return how a backend attaches: its module is imported when it is tried."""
    module = importlib.import_module(f"packet_tracer.probes.backends.{name.replace('-', '_')}")
    attach: Callable[[Attaching, Sequence[FunctionProbe]], Iterator[Link]] = module.attach
    return attach


def _preferred(count: int, *, returns: bool) -> tuple[Backend, ...]:
    """Return the backends in the order in which they are tried: what misses most comes late."""
    if count <= _FEW:
        return ("fentry", "kprobe-multi", "fentry-multi", "kprobe")
    if returns:  # of which kprobes miss some
        return ("kprobe-multi", "fentry-multi", "fentry", "kprobe")
    return ("kprobe-multi", "fentry-multi", "kprobe", "fentry")


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files: each clone is a program and a link, and each is a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + soft
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
