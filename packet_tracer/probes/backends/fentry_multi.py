"""``fentry-multi``: one program and one link for all functions, through BPF trampolines (Linux 7.2).

It costs a packet less than ``kprobe-multi``, and misses more: a program that is preempted is left out on that
CPU, for all functions, until its task runs again. With returns it is a session: one program at entry and
return.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from functools import partial

from packet_tracer.bpf import link as links
from packet_tracer.bpf.enums import AttachType
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.parallel import load_together
from packet_tracer.bpf.program import Program
from packet_tracer.filter.patch import load_filtered
from packet_tracer.probes.backends.common import Attaching, functions
from packet_tracer.probes.function_probes import FunctionProbe

_OBJECT = "fentry_multi"
#: What each program of the object is loaded as.
_TYPES = {
    "multi_entry": AttachType.TRACE_FENTRY_MULTI,
    "multi_call": AttachType.TRACE_FSESSION_MULTI,
    "multi_made": AttachType.TRACE_FEXIT_MULTI,
}


def attach(attaching: Attaching, probes: Sequence[FunctionProbe]) -> Iterator[Link]:
    """Attach to all functions; yield a link for each module and way to come by a packet."""
    if reason := links.tracing_multi_missing():
        raise AttachError("fentry-multi", functions(len(probes)), errno=errno.EOPNOTSUPP, reason=reason)
    groups: dict[tuple[str, str], list[FunctionProbe]] = {}
    usable = attaching.with_trampoline(probes)
    for probe in usable:
        at_entry = "multi_call" if attaching.returns else "multi_entry"
        name = "multi_made" if probe.way == "made" else at_entry
        groups.setdefault((probe.function.module, name), []).append(probe)
    prepared = attaching.load(_OBJECT, sorted({name for _, name in groups}))
    descriptors = attaching.module_descriptors(usable)
    loaded = load_together(
        {
            (module, name): partial(
                load_filtered,
                prepared[name],
                attaching.filter,
                expected_attach_type=_TYPES[name],
                attach_btf_obj_fd=descriptors.get(module),
            )
            for module, name in groups
        }
    )
    for program in loaded.values():
        attaching.keep(program)
    for key, group in groups.items():
        yield from attaching.by_halves(group, partial(_attach_all, attaching, loaded[key]))


def _attach_all(attaching: Attaching, program: Program, probes: Sequence[FunctionProbe]) -> Link:
    return links.attach_tracing_multi(
        program,
        [probe.function.btf_id for probe in probes],
        cookies=[attaching.cookie(probe) for probe in probes],
    )
