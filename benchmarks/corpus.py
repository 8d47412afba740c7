"""Ordinary mixed events without a kernel: many flows, both families, each packet at each of its probes.

What a router with a few hundred connections shows: TCP segments and acknowledgements, DNS exchanges,
pings, ARP, fragments, some drops. Times, identifiers and sequence numbers differ in every record, as they
do in life. There can be any number of flows; in a flood each packet has a source, ports and a TTL of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from packet_tracer.events import Context, DropReasons, EventFlags, FixedNames, Hook, ProbeId, RecordBlock
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.events.records import encode

NETNS = {4026532287: "client", 4026532351: "router", 4026532415: "server"}
INTERFACES = {
    (4026532287, 2): "c0",
    (4026532351, 2): "r0",
    (4026532351, 3): "r1",
    (4026532415, 2): "s0",
}
PATH = (
    (ProbeId.NET_DEV_QUEUE, Hook.TRACEPOINT, 4026532287, 2),
    (ProbeId.NET_DEV_START_XMIT, Hook.TRACEPOINT, 4026532287, 2),
    (ProbeId.NETIF_RX, Hook.TRACEPOINT, 4026532351, 2),
    (ProbeId.NETIF_RECEIVE_SKB, Hook.TRACEPOINT, 4026532351, 2),
    (ProbeId.NETFILTER_IPV4, Hook.NETFILTER, 4026532351, 2),
    (ProbeId.NET_DEV_QUEUE, Hook.TRACEPOINT, 4026532351, 3),
    (ProbeId.NETIF_RECEIVE_SKB, Hook.TRACEPOINT, 4026532415, 2),
    (ProbeId.CONSUME_SKB, Hook.TRACEPOINT, 4026532415, 2),
)


def context() -> Context:
    """Return the names that belong to the corpus."""
    probes = {member.value: member.name.lower() for member in ProbeId}
    return Context(
        probes={**probes, ProbeId.NETFILTER_IPV4: "netfilter:ipv4:prerouting"},
        wall_clock_offset_ns=1_767_225_600_000_000_000,
        interface_names=FixedNames(INTERFACES, NETNS),
        drop_reasons=DropReasons({3: "NO_SOCKET", 6: "NETFILTER_DROP"}),
    )


def _address(text: str) -> bytes:
    address = ip_address(text)
    return address.packed if address.version == 6 else MAPPED_PREFIX + address.packed


def _flow(generator: random.Random, hosts: int) -> dict[str, Any]:
    kind = generator.choices(["tcp", "udp", "icmp", "fragment", "arp"], [60, 25, 8, 4, 3])[0]
    six = generator.random() < 0.3 and kind != "arp"
    host = generator.randrange(1, hosts)
    client = str(ip_address("2001:db8:1::" if six else "10.0.0.0") + host)
    server = "2001:db8:2::2" if six else "198.51.100.2"
    members: dict[str, Any] = {
        "source": _address(client),
        "destination": _address(server),
        "protocol": 0x86DD if six else 0x0800,
        "flags": EventFlags.IP | EventFlags.LINK_HEADER,
        "ttl": 64,
    }
    ports = {"source_port": generator.randrange(32768, 61000)}
    if kind == "tcp":
        members |= {"l4_protocol": 6, **ports, "destination_port": generator.choice([22, 80, 443, 5432])}
        members["flags"] |= EventFlags.PORTS | EventFlags.TCP
    elif kind == "udp":
        members |= {"l4_protocol": 17, **ports, "destination_port": generator.choice([53, 123, 4433])}
        members["flags"] |= EventFlags.PORTS
    elif kind == "icmp":
        members |= {"l4_protocol": 58 if six else 1, "icmp_type": 128 if six else 8}
        members |= {"icmp_id": generator.randrange(65536)}
        members["flags"] |= EventFlags.ICMP
    elif kind == "fragment":
        members |= {"l4_protocol": 17, "fragment_offset": 1480}
        members["flags"] |= EventFlags.FRAGMENT
    else:
        members |= {"protocol": 0x0806, "arp_operation": 1, "flags": EventFlags.ARP | EventFlags.LINK_HEADER}
    return members


def _choose(generator: random.Random, known: list[dict[str, Any]]) -> dict[str, Any]:
    if known:
        return generator.choice(known)
    return _flow(generator, 1 << 24) | {"ttl": generator.randrange(1, 256)}


def records(count: int, *, flows: int | None = 400, snaplen: int = 96, seed: int = 1) -> Iterator[bytes]:
    """Yield ``count`` records, padded to eight bytes, of ``flows`` flows: the same ones with any seed.

    Each host has two flows on average. Without ``flows`` it is a flood.
    """
    generator = random.Random(flows or 0)
    known = [_flow(generator, flows // 2) for _ in range(flows)] if flows else []
    names = (b"curl", b"nginx", b"ksoftirqd/1", b"dnsmasq")
    tasks = [(generator.randrange(300, 30000), name) for name in names]
    generator = random.Random(seed)
    timestamp, packet, made = 10**12, 10**15, 0
    while made < count:
        flow, packet = _choose(generator, known), packet + generator.randrange(1, 1000)
        length = generator.choice([66, 78, 98, 590, 1514])
        changing = {
            "packet_id": packet,
            "skb_address": 0xFFFF888000000000 + generator.randrange(1 << 24) * 256,
            "head_address": 0xFFFF888000000000 + generator.randrange(1 << 24) * 512,
            "packet_length": length,
            "hash": generator.randrange(1 << 32),
            "tcp_sequence": generator.randrange(1 << 32),
            "tcp_acknowledgement": generator.randrange(1 << 32),
            "ip_id": generator.randrange(65536),
            "icmp_sequence": generator.randrange(1000),
            "stack_id": -1,
        }
        if flow.get("l4_protocol") == 6:
            changing["tcp_flags"] = generator.choice([0x10, 0x10, 0x18, 0x02, 0x11])
        pid, comm = generator.choice(tasks)
        dropped = generator.random() < 0.05
        for probe, hook, netns, ifindex in PATH[: generator.randrange(2, 6) if dropped else None]:
            timestamp += generator.randrange(200, 5000)
            place = {
                "timestamp_ns": timestamp,
                "hook": hook,
                "probe_id": probe,
                "netns_inode": netns,
                "netns_cookie": netns & 0xFFF,
                "ifindex": ifindex,
                "mtu": 1500,
                "cpu": packet & 1,
                "pid": pid,
                "tgid": pid,
                "comm": comm,
            }
            yield encode(bytes(min(length, snaplen)), **(flow | changing | place))
            made += 1
        if dropped:
            timestamp += 500
            flags = flow["flags"] | EventFlags.DROP_REASON | EventFlags.DROP_LOCATION
            drop = {
                "probe_id": ProbeId.KFREE_SKB,
                "hook": Hook.TRACEPOINT,
                "drop_reason": generator.choice([3, 6]),
            }
            drop |= {"timestamp_ns": timestamp, "flags": flags, "location": 0xFFFFFFFF81000100}
            yield encode(bytes(min(length, snaplen)), **(flow | changing | place | drop))
            made += 1


def block(count: int, **options: Any) -> RecordBlock:
    """Return about ``count`` records (a packet's events are not cut off) as the reader hands them over."""
    return RecordBlock.from_bytes(b"".join(records(count, **options)))
