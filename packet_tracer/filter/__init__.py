"""What to keep: pcap-filter expressions and metadata filters, decided in the kernel.

::

    from packet_tracer.filter import compile
    https = compile("tcp port 443 and host 10.0.0.1")
    https.matches(packet)
"""

from packet_tracer.filter.errors import FilterError, PcapMissingError
from packet_tracer.filter.expression import Filter, disassemble
from packet_tracer.filter.expression import compile_filter as compile  # noqa: A004 - as re.compile
from packet_tracer.filter.pcap import LinkType
from packet_tracer.filter.stubs import STUBS, Access, Stub
from packet_tracer.filter.tunnels import Tunnel

__all__ = [
    "STUBS",
    "Access",
    "Filter",
    "FilterError",
    "LinkType",
    "PcapMissingError",
    "Stub",
    "Tunnel",
    "compile",
    "disassemble",
]
