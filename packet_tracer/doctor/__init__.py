"""What this host allows: every backend and hook found out by trying, with the reason for each no.

Nothing of the host is touched: programs do nothing (two instructions), and those that need an interface or a
cgroup get one of their own, which is gone a moment later.
"""

from __future__ import annotations

from packet_tracer.doctor.attempts import examine_hooks
from packet_tracer.doctor.finding import Finding, Report, Section
from packet_tracer.doctor.host import examine_host
from packet_tracer.doctor.others import examine_others

__all__ = ["Finding", "Report", "Section", "examine", "examine_hooks"]


def examine() -> Report:
    """Return all there is to say about this host. It takes some tens of milliseconds."""
    return Report((*examine_host(), examine_hooks(), examine_others()))
