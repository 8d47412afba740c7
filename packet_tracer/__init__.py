"""Follow a packet through the Linux kernel: where it went, what happened to it there, and why.

    from packet_tracer import Tracer
    with Tracer(netns="client", interface="c0", profile="drops") as tracer:
        for event in tracer.events(limit=100, timeout=5.0):
            print(event.timestamp, event.probe, event.packet.source, event.drop_reason)

What is named here is loaded when it is first used, so that ``import packet_tracer`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packet_tracer._version import __version__
from packet_tracer.lazy import attributes

if TYPE_CHECKING:
    from packet_tracer.capture import Tracer
    from packet_tracer.count import Count, Counter
    from packet_tracer.errors import (
        BpfError,
        NotPermittedError,
        NotSupportedError,
        PtraceError,
        RecordError,
        UsageError,
    )
    from packet_tracer.events import Event, EventBatch, Packet
    from packet_tracer.lab import Lab
    from packet_tracer.probes.setup import Counters

_MODULES = {
    "BpfError": "errors",
    "Count": "count",
    "Counter": "count",
    "Counters": "probes.setup",
    "Event": "events",
    "EventBatch": "events",
    "Lab": "lab",
    "NotPermittedError": "errors",
    "NotSupportedError": "errors",
    "Packet": "events",
    "PtraceError": "errors",
    "RecordError": "errors",
    "Tracer": "capture",
    "UsageError": "errors",
}

__all__ = [
    "BpfError",
    "Count",
    "Counter",
    "Counters",
    "Event",
    "EventBatch",
    "Lab",
    "NotPermittedError",
    "NotSupportedError",
    "Packet",
    "PtraceError",
    "RecordError",
    "Tracer",
    "UsageError",
    "__version__",
]

__getattr__ = attributes(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
