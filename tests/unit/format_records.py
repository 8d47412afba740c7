"""What the tests of the formats are made of: one record, and a context that names its numbers."""

from __future__ import annotations

from typing import Any

from packet_tracer.events import Context, DropReasons, EventBatch, EventFlags, FixedNames, Hook, ProbeId
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.events.records import encode

FLAGS = EventFlags.IP | EventFlags.PORTS | EventFlags.TCP | EventFlags.LINK_HEADER


class NoSymbols:
    """Names no address."""

    def name(self, address: int) -> str | None:
        return "nf_hook_slow+0x42" if address == 0x1234 else None


def context(**names: Any) -> Context:
    return Context(
        probes={7: "kfree_skb", 4: "net_dev_queue", 6: "net_dev_xmit", 16: "xdp"},
        wall_clock_offset_ns=1_700_000_000_000_000_000,
        interface_names=FixedNames(
            names.get("interfaces", {(11, 3): "c0"}), names.get("namespaces", {11: "client"})
        ),
        drop_reasons=DropReasons({2: "NOT_SPECIFIED", 6: "NETFILTER_DROP"}),
        symbols=NoSymbols(),  # type: ignore[arg-type]
    )


SYN: dict[str, Any] = {
    "hook": Hook.TRACEPOINT,
    "probe_id": ProbeId.NET_DEV_QUEUE,
    "timestamp_ns": 123_456_789,
    "packet_id": 1 << 50,
    "skb_address": 0xFFFF888012345600,
    "head_address": 0xFFFF888012345000,
    "pid": 12,
    "tgid": 10,
    "netns_inode": 11,
    "ifindex": 3,
    "packet_length": 74,
    "flags": FLAGS,
    "mtu": 1500,
    "protocol": 0x0800,
    "l4_protocol": 6,
    "source_port": 40000,
    "destination_port": 0,
    "tcp_flags": 2,
    "ttl": 64,
    "source": MAPPED_PREFIX + bytes([192, 0, 2, 2]),
    "destination": MAPPED_PREFIX + bytes([198, 51, 100, 2]),
    "comm": b"curl",
    "tcp_sequence": 1000,
    "stack_id": -1,
}
#: Members of an XDP probe's record: there is no skb yet.
AT_XDP = {"hook": Hook.XDP, "probe_id": ProbeId.XDP, "flags": FLAGS | EventFlags.XDP, "packet_type": 0xFF}
SIX = {
    "source": bytes.fromhex("20010db8" + "00" * 11 + "01"),
    "destination": bytes(15) + b"\1",
    "protocol": 0x86DD,
}


def batch(*members: dict[str, Any], data: bytes = b"", **names: Any) -> EventBatch:
    return EventBatch.from_bytes(b"".join(encode(data, **one) for one in members), context(**names))
