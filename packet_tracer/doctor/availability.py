"""Which probes work on this kernel."""

from __future__ import annotations

from collections.abc import Iterable

from packet_tracer.doctor.attempts import examine_hooks, tracepoint_exists
from packet_tracer.doctor.finding import Finding
from packet_tracer.events._layout import Hook
from packet_tracer.probes.catalogue import Probe


def availability(probes: Iterable[Probe]) -> dict[str, Finding]:
    """Return for each probe, by its name, whether it works here, and why or how."""
    hooks = {finding.name: finding for finding in examine_hooks().findings}
    return {probe.name: _of(probe, hooks) for probe in probes}


def _of(probe: Probe, hooks: dict[str, Finding]) -> Finding:
    if probe.hook == Hook.TRACEPOINT:
        if hooks["tracepoint"].works and not tracepoint_exists(probe.name):
            return Finding(probe.name, "this kernel has no such tracepoint", works=False)
        return hooks["tracepoint"]
    if probe.hook == Hook.NETFILTER:
        assert probe.argument is not None
        return hooks[f"netfilter {probe.argument[0]}"]
    return hooks["xdp" if probe.hook == Hook.XDP else "tc"]
