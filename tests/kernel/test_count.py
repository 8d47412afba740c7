"""Counting in the kernel: exact numbers for known traffic, whatever it is counted by."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import time
from collections import Counter as Tally
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from packet_tracer import lab
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.capture import Tracer
from packet_tracer.count import By, Count, Counter, Snapshot
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.events.names import IP_PROTOCOLS
from packet_tracer.filter.predicates import Predicates
from packet_tracer.lab import DROPPED_PORT, Lab
from packet_tracer.netns import entered

from .capturing import ethernet, flood, ipv4, ipv6, on_one_cpu, trace, udp, udp_socket
from .cli import PTRACE, ptrace, until

UDP4, UDP6 = 42 + 40, 62 + 40  # Ethernet, IP and UDP headers, and the payload of a request
ANSWER4, ANSWER6 = 42 + 120, 62 + 120


def counted(counter: Counter, traffic: Callable[[], object]) -> Snapshot:
    """Run the traffic under the counter; return what it counted, exactly."""
    with counter:
        traffic()
        time.sleep(0.05)  # the last packet may still be on its way, on the other CPU
    return counter.snapshot()


def by_key(rows: list[Count], *names: str) -> dict[object, tuple[int, int]]:
    """Return packets and bytes by some members of the rows, which must tell them apart."""
    keys = [tuple(getattr(row, name) for name in names) for row in rows]
    assert len(set(keys)) == len(keys)
    return {
        key[0] if len(key) == 1 else key: (row.packets, row.bytes)
        for key, row in zip(keys, rows, strict=True)
    }


def mixed(network: Lab) -> None:
    """5 IPv4 and 7 IPv6 exchanges with port 53, 3 and 4 pings: at the client as many out as in."""
    lab.udp_exchange(network.route, port=53, count=5)
    lab.udp_exchange(network.route, version=6, port=53, count=7)
    lab.ping(network.route, count=3)
    lab.ping(network.route, version=6, count=4)


PINGS4, PINGS6 = 6 * 98, 8 * 118
PACKETS, BYTES = 38, 5 * (UDP4 + ANSWER4) + 7 * (UDP6 + ANSWER6) + PINGS4 + PINGS6


def test_by_protocol(network: Lab) -> None:
    found = counted(Counter("protocol", netns=network.client.name), lambda: mixed(network))
    assert by_key(found.rows, "protocol", "l4_protocol") == {
        ("ipv4", "udp"): (10, 5 * (UDP4 + ANSWER4)),
        ("ipv6", "udp"): (14, 7 * (UDP6 + ANSWER6)),
        ("ipv4", "icmp"): (6, PINGS4),
        ("ipv6", "icmp6"): (8, PINGS6),
    }
    assert (found.totals.packets, found.totals.bytes) == (PACKETS, BYTES)
    assert [row.packets for row in found.rows] == [14, 10, 8, 6]


def test_by_port_counts_both_ends(network: Lab) -> None:
    found = counted(Counter("port", netns=network.client.name), lambda: mixed(network))
    rows = by_key(found.rows, "l4_protocol", "port")
    assert rows.pop(("udp", 53)) == (24, 5 * (UDP4 + ANSWER4) + 7 * (UDP6 + ANSWER6))
    assert rows.pop(("icmp", None)) == (6, PINGS4)
    assert rows.pop(("icmp6", None)) == (8, PINGS6)
    assert sum(packets for packets, _ in rows.values()) == 24  # the client's ephemeral ports
    assert (found.totals.packets, found.totals.bytes) == (PACKETS, BYTES)  # each once
    assert found.totals.evicted_packets == 0


def test_by_address_counts_both_ends(network: Lab) -> None:
    found = counted(Counter("address", netns=network.client.name), lambda: mixed(network))
    v4, v6 = (16, 5 * (UDP4 + ANSWER4) + PINGS4), (22, 7 * (UDP6 + ANSWER6) + PINGS6)
    assert by_key(found.rows, "address") == {
        ip_address("192.0.2.2"): v4,
        ip_address("198.51.100.2"): v4,
        ip_address("2001:db8:1::2"): v6,
        ip_address("2001:db8:2::2"): v6,
    }
    assert (found.totals.packets, found.totals.bytes) == (PACKETS, BYTES)


def test_by_flow_agrees_with_a_capture(network: Lab) -> None:
    """Each packet that the same tracepoints show is in the row of its flow."""
    tracer = Tracer(
        netns=network.client.name, probes=["netif_receive_skb", "net_dev_start_xmit"], filter="not arp"
    )
    counter = Counter("flow", netns=network.client.name, filter="not arp")

    def traffic() -> None:
        mixed(network)
        lab.http(network.route)
        lab.http(network.route, version=6)
        lab.fragments(network.route)
        lab.fragments(network.route, version=6)

    with counter:
        events = trace(tracer, traffic)
    expected = Tally[object]()
    lengths = Tally[object]()
    for event in events:
        packet = event.packet
        assert packet.l4_protocol is not None
        protocol = IP_PROTOCOLS[packet.l4_protocol]
        flow = protocol, packet.source, packet.source_port, packet.destination, packet.destination_port
        expected[flow] += 1
        lengths[flow] += packet.length
    rows = by_key(counter.read(), "l4_protocol", "source", "source_port", "destination", "destination_port")
    assert {flow: packets for flow, (packets, _) in rows.items()} == expected
    assert {flow: length for flow, (_, length) in rows.items()} == lengths
    assert counter.totals().packets == len(events)


def test_by_netns(network: Lab) -> None:
    names = [node.name for node in network.nodes]
    found = counted(Counter("netns", netns=names), lambda: lab.ping(network.route, count=4))
    assert by_key(found.rows, "netns_name") == {
        network.client.name: (8, 8 * 98),
        network.router.name: (16, 16 * 98),  # in and out again
        network.server.name: (8, 8 * 98),
    }
    assert {row.netns for row in found.rows} == {node.netns.inode for node in network.nodes}


def test_by_drop_reason(network: Lab) -> None:
    def traffic() -> None:
        lab.dropped(network.route, count=6)
        lab.dropped(network.route, version=6, count=5)

    counter = Counter("drop-reason", netns=network.router.name, filter=f"udp port {DROPPED_PORT}")
    if Btf.vmlinux().get("skb_drop_reason", Kind.ENUM) is None:
        with pytest.raises(NotSupportedError, match="no reasons for drops"), counter:
            pass
        pytest.skip("this kernel gives no reasons for drops (before Linux 5.17), and that is said")
    found = counted(counter, traffic)
    rows = by_key(found.rows, "drop_reason")
    assert {name: packets for name, (packets, _) in rows.items()} == {"NETFILTER_DROP": 11}


@pytest.mark.parametrize(("direction", "expected"), [("in", 3), ("out", 3), ("both", 6)])
def test_direction(network: Lab, direction: str, expected: int) -> None:
    counter = Counter("protocol", netns=network.client.name, direction=direction)  # type: ignore[arg-type]
    found = counted(counter, lambda: lab.ping(network.route, count=3))
    assert [row.packets for row in found.rows] == [expected]


def test_loopback_counts_once(network: Lab) -> None:
    """As tcpdump has it: what goes out there comes in there."""
    route = lab.Route(
        network.client.netns, network.client.netns, network.route.client_addresses, {4: "127.0.0.1", 6: "::1"}
    )
    found = counted(Counter("address", interface="lo", netns=network.client.name), lambda: lab.ping(route))
    assert by_key(found.rows, "address") == {ip_address("127.0.0.1"): (2, 2 * 98)}


@pytest.mark.parametrize("by", ["protocol", "port", "address", "flow", "netns"])
def test_filters_are_honoured(network: Lab, by: By) -> None:
    counter = Counter(by, netns=network.client.name, filter="ip6 and udp dst port 53")
    found = counted(counter, lambda: mixed(network))
    assert (found.totals.packets, found.totals.bytes) == (7, 7 * UDP6)
    large = Predicates(length=(ANSWER6, ANSWER6))
    found = counted(Counter(by, netns=network.client.name, predicates=large), lambda: mixed(network))
    assert (found.totals.packets, found.totals.bytes) == (7, 7 * ANSWER6)


def test_interface_and_netns_are_honoured(network: Lab) -> None:
    """The packets are at the router's both devices, and in two more namespaces."""
    at_r1 = Counter("flow", netns=network.router.name, interface="r1", filter="dst port 53")
    found = counted(at_r1, lambda: lab.udp_exchange(network.route, count=3))
    assert by_key(found.rows, "source", "destination_port") == {(ip_address("192.0.2.2"), 53): (3, 3 * UDP4)}
    elsewhere = Counter("flow", netns=network.server.name, filter=f"port {DROPPED_PORT}")
    assert counted(elsewhere, lambda: lab.dropped(network.route)).rows == []


def test_odd_headers(network: Lab) -> None:
    """VLAN tags, IPv4 options, IPv6 extension headers, ARP, unknown types, and headers that end too soon."""
    hop_by_hop = bytes([60, 0, 1, 4, 0, 0, 0, 0])
    options = bytes([17, 0, 1, 4, 0, 0, 0, 0])
    fragment = bytes([17, 0, 0, 9]) + bytes(4)  # at byte 8, more to come
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes(6) + bytes([192, 0, 2, 2]) + bytes(6)
    frames = [
        ethernet(struct.pack("!HH", 7, 0x0800) + ipv4(udp(b"x"), 17), 0x8100),
        ethernet(ipv4(udp(b"x"), 17, options=bytes([1] * 8)), 0x0800),
        ethernet(ipv6(hop_by_hop + options + udp(b"x"), 0), 0x86DD),
        ethernet(ipv6(fragment + bytes(16), 44), 0x86DD),
        ethernet(arp + bytes([192, 0, 2, 1]), 0x0806),
        ethernet(b"whatever", 0x88B5),
        ethernet(ipv4(b"", 17)[:12], 0x0800),
    ]
    counter = Counter("flow", netns=network.client.name, direction="out", filter="len < 200")
    found = counted(counter, lambda: [lab.frame(network.client, "c0", frame) for frame in frames])
    names = ("protocol", "l4_protocol", "source", "source_port", "destination_port")
    assert {key: packets for key, (packets, _) in by_key(found.rows, *names).items()} == {
        ("ipv4", "udp", ip_address("192.0.2.2"), 40000, 4000): 2,
        ("ipv6", "udp", ip_address("2001:db8:1::2"), 40000, 4000): 1,
        ("ipv6", "udp", ip_address("2001:db8:1::2"), None, None): 1,
        ("arp", None, ip_address("192.0.2.2"), None, None): 1,
        ("0x88b5", None, None, None, None): 1,
        ("ipv4", None, None, None, None): 1,
    }


def test_cpus_are_added_up(network: Lab) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("only one CPU")
    senders = [udp_socket(network.client, ("198.51.100.2", DROPPED_PORT)) for _ in cpus[:2]]
    counter = Counter("port", netns=network.client.name, direction="out", filter=f"dst port {DROPPED_PORT}")
    with counter:
        flood(senders, 500, cpus=cpus[:2])
        session = counter._session
        assert session is not None
        values = session._maps["totals"].raw.lookup(bytes(4)) or b""
    for sender in senders:
        sender.close()
    each = [row[0] for row in struct.iter_unpack("=QQQQQ", values)]
    assert sorted(each)[-2:] == [500, 500]
    assert by_key(counter.read(), "port")[DROPPED_PORT] == (1000, 1000 * 1042)


def test_totals_stay_exact_when_rows_make_room(network: Lab) -> None:
    """More flows than rows: packets of rows that are gone are in the totals, and it is said how many."""
    flows = 3000
    counter = Counter("flow", netns=network.client.name, direction="out", filter="udp", entries=256)

    def traffic() -> None:
        with on_one_cpu():
            for port in range(flows):
                packet = ethernet(ipv4(udp(b"x", source=1000 + port), 17), 0x0800)
                lab.frame(network.client, "c0", packet)

    found = counted(counter, traffic)
    totals = found.totals
    assert (totals.packets, totals.bytes) == (flows, flows * 43)
    assert 0 < totals.rows == len(found.rows) <= 256
    assert totals.evicted_rows == flows - totals.rows
    assert totals.evicted_packets == flows - sum(row.packets for row in found.rows)
    assert totals.failed == 0


def test_reads_while_it_counts(network: Lab) -> None:
    with Counter("protocol", netns=network.client.name) as counter:
        assert counter.read() == []
        lab.ping(network.route)
        assert counter.totals().packets == 2
        lab.ping(network.route)
        assert counter.totals().packets == 4
    assert counter.totals().packets == 4
    with counter:  # a new start counts anew
        assert counter.totals().packets == 0


def test_nothing_stays_attached(network: Lab) -> None:
    with Counter("flow", netns=network.client.name) as counter:
        session = counter._session
        assert session is not None
        ids = {program.id for program in session.programs.values()}
        assert ids <= _program_ids()
    until(lambda: not ids & _program_ids(), "they are still there")  # freed when no CPU runs them any more


def _program_ids() -> set[int]:
    found = subprocess.run(["bpftool", "-j", "prog", "list"], capture_output=True, check=True)
    return {program["id"] for program in json.loads(found.stdout)}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="no interface"):
        Counter("flow", interface="nothing-like-it")


# --- ptrace count ---------------------------------------------------------------------------------


def test_command_counts_as_json(network: Lab) -> None:
    command = [*PTRACE, "count", "--netns", network.client.name, "--by", "port", "--format", "json", "udp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "counting by port" in process.stderr.readline()
        lab.udp_exchange(network.route, port=53, count=9)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    *rows, totals = [json.loads(line) for line in out.splitlines()]
    assert [row["packets"] for row in rows if row["port"] == 53] == [18]
    assert {row["type"] for row in rows} == {"count"}
    assert (totals["type"], totals["packets"], totals["rows"]) == ("counts", 18, 2)
    assert "18 packets" in err


def test_command_prints_a_table(network: Lab) -> None:
    command = [*PTRACE, "count", "--netns", network.client.name, "--by", "address", "--top", "1", "icmp"]
    with subprocess.Popen(
        [*command, "--interval", "100ms", "--duration", "3s"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        lab.ping(network.route, count=5)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    *_, heading, row = out.decode().splitlines()
    assert heading.split() == ["packets", "bytes", "packets/s", "bytes/s", "address"]
    assert row.split()[:2] == ["10", "980"]
    assert row.split()[-1] == "192.0.2.2"
    assert out.decode().count("packets/s") > 3


def test_command_draws_on_a_terminal(network: Lab) -> None:
    """A screen that is written over, with the totals on top."""
    main, other = os.openpty()
    with entered(network.client.netns):
        command = [*PTRACE, "count", "-i", "lo", "--interval", "50ms"]
        process = subprocess.Popen(command, stdout=other, stderr=other, env={**os.environ, "TERM": "xterm"})
    os.close(other)
    seen = b""

    def drawn() -> bool:
        nonlocal seen
        seen += os.read(main, 4096)
        return seen.count(b"\x1b[H") > 2

    until(drawn, "it drew nothing")
    process.send_signal(signal.SIGINT)
    try:
        while part := os.read(main, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    os.close(main)
    assert process.wait(60) == 0
    assert b"0 packets, 0 bytes, 0 rows\x1b[K" in seen
    assert b"packets/s" in seen


def test_command_refuses_what_makes_no_sense() -> None:
    done = ptrace("count", "--by", "drop-reason", "--direction", "in")
    assert (done.returncode, done.stdout) == (2, "")
    assert "drops have no direction" in done.stderr
    assert ptrace("count", "--by", "colour").returncode == 2
    assert ptrace("count", "tcp port").returncode == 2
