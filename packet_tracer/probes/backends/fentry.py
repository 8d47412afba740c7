"""``fentry``: a clone of one program for each function, through a BPF trampoline.

It costs a packet least, and what one of them misses the others don't. To detach one takes a kernel that can
be preempted (CONFIG_PREEMPTION) a tenth of a second: it waits for all tasks to leave the trampoline
(synchronize_rcu_tasks). With returns there are three for each function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from packet_tracer.bpf import link as links
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.parallel import load_each
from packet_tracer.bpf.program import Program
from packet_tracer.errors import BpfError
from packet_tracer.probes.backends.common import FIRST, Attaching
from packet_tracer.probes.function_probes import FunctionProbe
from packet_tracer.probes.functions import ArgumentKind
from packet_tracer.probes.trampolines import Template

#: Object of the templates for a kind of argument, and what their names begin with.
_TEMPLATES = {
    ArgumentKind.SKB: ("fentry", "function"),
    ArgumentKind.SKB_POINTER: ("fentry_read", "pointer"),
    ArgumentKind.XDP_BUFF: ("fentry_read", "buffer"),
    ArgumentKind.XDP_FRAME: ("fentry_read", "buffer"),
}


def attach(attaching: Attaching, probes: Sequence[FunctionProbe]) -> Iterator[Link]:
    """Attach to each function; yield a link for each clone."""
    usable = attaching.with_trampoline(probes)
    wanted: dict[str, dict[str, None]] = {}
    for probe in usable:
        file = _TEMPLATES[probe.argument.kind][0] if probe.argument else "fentry"
        wanted.setdefault(file, {}).update(dict.fromkeys(_clones(probe, attaching)))
    templates = {
        name: Template.of(each, attaching.filter)
        for file, names in wanted.items()
        for name, each in attaching.load(file, list(names)).items()
    }
    descriptors = attaching.module_descriptors(usable)
    attached = False
    for chunk in (usable[:FIRST], usable[FIRST:]):
        loads = {
            (probe, name): partial(
                templates[name].load_for, probe, module_fd=descriptors.get(probe.function.module)
            )
            for probe in chunk
            for name in _clones(probe, attaching)
        }
        for link in _attach_clones(attaching, load_each(loads)):
            attached = True
            yield link
        if attaching.hopeless and not attached:
            return


def _clones(probe: FunctionProbe, attaching: Attaching) -> list[str]:
    if probe.argument is None:
        return ["function_made"]
    prefix = _TEMPLATES[probe.argument.kind][1]
    return [f"{prefix}_{moment}" for moment in ("entry", *(("remember", "return") * attaching.returns))]


def _attach_clones(
    attaching: Attaching, loaded: Mapping[tuple[FunctionProbe, str], Program | BpfError]
) -> Iterator[Link]:
    """Attach what was loaded: all clones of a function, or none."""
    by_probe: dict[FunctionProbe, list[Program]] = {}
    for (probe, _), program in loaded.items():
        if isinstance(program, Program):
            by_probe.setdefault(probe, []).append(attaching.keep(program))
        else:
            attaching.refuse(probe, program)
    for probe, programs in by_probe.items():
        if probe.name in attaching.skipped:
            continue
        attached: list[Link] = []
        try:
            for program in programs:
                attached.append(links.attach_tracing(program))
        except BpfError as error:
            links.close_all(attached)
            attaching.refuse(probe, error)
            continue
        yield from attached
