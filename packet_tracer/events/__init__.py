"""Records decoded: events, packets, columns, and the names of what is in them.

The way in is :class:`EventBatch`: iterate it for :class:`Event` objects, or take it whole with
``to_numpy()`` or ``to_tuples()``. A :class:`Context` holds the names that a record does not carry itself.
"""

from packet_tracer.events._layout import Direction, EventFlags, Hook, ProbeId
from packet_tracer.events.batch import EventBatch, RecordBlock
from packet_tracer.events.context import Context, FixedNames, wall_clock_offset_ns
from packet_tracer.events.drop_reasons import DropReasons
from packet_tracer.events.event import Event, Namespace, Packet, Vlan
from packet_tracer.events.records import FIELD_NAMES
from packet_tracer.events.symbols import Symbols

__all__ = [
    "FIELD_NAMES",
    "Context",
    "Direction",
    "DropReasons",
    "Event",
    "EventBatch",
    "EventFlags",
    "FixedNames",
    "Hook",
    "Namespace",
    "Packet",
    "ProbeId",
    "RecordBlock",
    "Symbols",
    "Vlan",
    "wall_clock_offset_ns",
]
