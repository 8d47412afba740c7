"""A self-contained network to try things on: three namespaces, and small bounded traffic makers.

>>> from packet_tracer import lab                          # doctest: +SKIP
>>> with lab.Lab() as network:
...     lab.http(network.route)
...     lab.dropped(network.route, version=6)

The demo and the tests use the same one. It touches nothing but its own namespaces.
"""

from packet_tracer.lab.topology import DROPPED_PORT, Lab, Node, Route, reap, run_in
from packet_tracer.lab.traffic import (
    bulk,
    closed_udp,
    dropped,
    fragments,
    frame,
    http,
    ping,
    refused,
    udp_exchange,
    vlan_tagged,
)
from packet_tracer.netns import entered

__all__ = [
    "DROPPED_PORT",
    "Lab",
    "Node",
    "Route",
    "bulk",
    "closed_udp",
    "dropped",
    "entered",
    "fragments",
    "frame",
    "http",
    "ping",
    "reap",
    "refused",
    "run_in",
    "udp_exchange",
    "vlan_tagged",
]
