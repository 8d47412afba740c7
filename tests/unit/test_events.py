"""Records become events: the layout, every member, names, and columns."""

from __future__ import annotations

import ctypes
from array import array
from datetime import datetime, timezone
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.events import (
    FIELD_NAMES,
    Context,
    DropReasons,
    Event,
    EventBatch,
    EventFlags,
    FixedNames,
    Hook,
    ProbeId,
    RecordBlock,
    Symbols,
    Vlan,
    _layout,
)
from packet_tracer.events import names as event_names
from packet_tracer.events.records import Selection, encode

CONTEXT = Context(
    probes={7: "kfree_skb", 8: "consume_skb"},
    wall_clock_offset_ns=1_700_000_000_000_000_000,
    interface_names=FixedNames({(4026532287, 3): "c0"}, {4026532287: "client"}),
    drop_reasons=DropReasons({6: "NETFILTER_DROP"}, {2: "OPENVSWITCH"}),
)


def mapped(text: str) -> bytes:
    address = ip_address(text)
    return address.packed if address.version == 6 else event_names.MAPPED_PREFIX + address.packed


TCP = {
    "hook": Hook.TRACEPOINT,
    "probe_id": ProbeId.KFREE_SKB,
    "timestamp_ns": 123_456_789,
    "packet_id": 42,
    "skb_address": 0xFFFF888012345600,
    "cpu": 0,
    "pid": 12,
    "tgid": 10,
    "netns_inode": 4026532287,
    "ifindex": 3,
    "packet_length": 60,
    "drop_reason": 6,
    "flags": EventFlags.IP
    | EventFlags.PORTS
    | EventFlags.TCP
    | EventFlags.DROP_REASON
    | EventFlags.DROP_LOCATION
    | EventFlags.LINK_HEADER,
    "mtu": 1500,
    "protocol": 0x0800,
    "l4_protocol": 6,
    "direction": 1,
    "source_port": 40000,
    "destination_port": 0,
    "tcp_flags": 0x12,
    "ttl": 64,
    "source": mapped("192.0.2.2"),
    "destination": mapped("198.51.100.2"),
    "comm": b"curl",
    "netns_cookie": 99,
    "location": 0x1234,
    "tcp_sequence": 1000,
    "tcp_acknowledgement": 2000,
    "ip_id": 0,
    "stack_id": -1,
}


def event(data: bytes = b"", **members: Any) -> Event:
    (made,) = EventBatch.from_bytes(encode(data, **members), CONTEXT)
    return made


def test_layout_is_the_header_file_s() -> None:
    """An independent reading of the layout: ctypes lays out the same members by C's rules."""
    types = {"B": "uint8", "H": "uint16", "I": "uint32", "Q": "uint64", "i": "int32", "q": "int64"}

    def ctype(field: _layout.EventField) -> Any:
        if field.format == "s":
            return ctypes.c_char * field.count
        return getattr(ctypes, f"c_{types[field.format]}")

    fields = [(field.name, ctype(field)) for field in _layout.EVENT_FIELDS]
    structure = type("Structure", (ctypes.Structure,), {"_fields_": fields})
    assert ctypes.sizeof(structure) == _layout.EVENT_SIZE
    assert [getattr(structure, field.name).offset for field in _layout.EVENT_FIELDS] == [
        field.offset for field in _layout.EVENT_FIELDS
    ]
    assert np.dtype(_layout.EVENT_DTYPE).itemsize == _layout.EVENT_SIZE
    assert len(FIELD_NAMES) == len(set(FIELD_NAMES)) == len(_layout.EVENT_FIELDS)


def test_a_selection_needs_the_record_s_order() -> None:
    with pytest.raises(ValueError, match=r"records\.h"):
        Selection("timestamp_ns", "size")


def test_tcp_event() -> None:
    made = event(b"\0" * 20, **TCP)
    assert made.timestamp_ns == 1_700_000_000_123_456_789
    assert made.monotonic_ns == 123_456_789
    assert made.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123456, timezone.utc)
    assert (made.probe, made.probe_id, made.hook) == ("kfree_skb", 7, Hook.TRACEPOINT)
    assert (made.packet_id, made.skb_address, made.parent_id) == (42, 0xFFFF888012345600, None)
    assert (made.cpu, made.pid, made.tgid, made.comm) == (0, 12, 10, "curl")
    assert made.netns == (4026532287, "client", 99)
    assert (made.ifindex, made.interface, made.rx_ifindex, made.mtu) == (3, "c0", None, 1500)
    assert (made.length, made.mark, made.direction) == (60, 0, "ingress")
    assert (made.drop_reason, made.drop_location) == ("NETFILTER_DROP", "0x1234")
    assert (made.verdict, made.return_value, made.duration_ns, made.stack_id) == (None, None, None, None)
    packet = made.packet
    assert packet is made.packet
    assert (packet.source, packet.destination) == (IPv4Address("192.0.2.2"), IPv4Address("198.51.100.2"))
    assert (packet.source_port, packet.destination_port) == (40000, 0)
    assert (packet.protocol, packet.l4_protocol, packet.ttl, packet.tos) == (0x0800, 6, 64, 0)
    assert (packet.tcp_flags, packet.tcp_sequence, packet.tcp_acknowledgement) == (0x12, 1000, 2000)
    assert (packet.ip_id, packet.fragment, packet.fragment_offset) == (0, False, None)
    assert (packet.icmp_type, packet.icmp_id, packet.arp_operation, packet.vlan) == (None,) * 4
    assert made.data == b"\0" * 20
    assert made.raw()["tcp_sequence"] == 1000
    assert Event.from_record(made.record, CONTEXT) == made


def test_what_is_not_known_is_none_not_zero() -> None:
    made = event(hook=Hook.XDP, probe_id=ProbeId.XDP, flags=EventFlags.XDP, packet_type=0xFF)
    assert (made.netns, made.interface, made.mark, made.mtu) == (None, None, None, None)
    assert (made.drop_reason, made.drop_location, made.verdict, made.direction) == (None,) * 4
    packet = made.packet
    for name in (
        "protocol",
        "source",
        "source_port",
        "l4_protocol",
        "ttl",
        "tos",
        "ip_id",
        "tcp_flags",
        "icmp_type",
    ):
        assert getattr(packet, name) is None, name
    assert made.probe == "probe 16"


def test_icmp_fragment_vlan_arp() -> None:
    ping = event(
        flags=EventFlags.IP | EventFlags.ICMP | EventFlags.VLAN,
        l4_protocol=58,
        icmp_type=128,
        icmp_id=0,
        icmp_sequence=7,
        source=mapped("2001:db8::1"),
        destination=mapped("2001:db8::2"),
        vlan_tci=0xB064,
    ).packet
    assert (ping.source, ping.icmp_type, ping.icmp_id, ping.icmp_sequence) == (
        IPv6Address("2001:db8::1"),
        128,
        0,
        7,
    )
    assert ping.vlan == Vlan(100, 5, True, False)
    assert (ping.ip_id, ping.source_port) == (None, None)
    unreachable = event(flags=EventFlags.IP | EventFlags.ICMP, l4_protocol=1, icmp_type=3, icmp_code=3).packet
    assert (unreachable.icmp_code, unreachable.icmp_id) == (3, None)
    fragment = event(
        flags=EventFlags.IP | EventFlags.FRAGMENT, l4_protocol=17, ip_id=0x12345678, fragment_offset=1480
    ).packet
    assert (fragment.fragment, fragment.fragment_offset, fragment.ip_id) == (True, 1480, 0x12345678)
    assert fragment.source_port is None
    arp = event(flags=EventFlags.ARP, protocol=0x0806, arp_operation=2, source=mapped("192.0.2.1")).packet
    assert (arp.source, arp.arp_operation, arp.l4_protocol) == (IPv4Address("192.0.2.1"), 2, None)


@pytest.mark.parametrize(
    ("hook", "verdict", "name"),
    [
        (Hook.XDP, 2, "XDP_PASS"),
        (Hook.XDP, 77, "77"),
        (Hook.TC, -1, "TC_ACT_UNSPEC"),
        (Hook.TC, 2, "TC_ACT_SHOT"),
        (Hook.NETFILTER, 0, "NF_DROP"),
        (Hook.NETFILTER, 5 << 16 | 3, "NF_QUEUE(5)"),
        (Hook.CGROUP, 1, "PASS"),
        (Hook.TRACEPOINT, 0, "NETDEV_TX_OK"),
        (Hook.TRACEPOINT, 16, "NETDEV_TX_BUSY"),
        (Hook.TRACEPOINT, -105, "-105"),
    ],
)
def test_verdicts(hook: Hook, verdict: int, name: str) -> None:
    assert event(hook=hook, flags=EventFlags.VERDICT, verdict=verdict).verdict == name


@pytest.mark.parametrize(
    ("flags", "name"), [(EventFlags.XDP, "XDP_DROP"), (EventFlags(0), "TC_ACT_RECLASSIFY")]
)
def test_verdicts_of_traced_programs(flags: EventFlags, name: str) -> None:
    """One number, another name: an XDP program's packet has no skb yet."""
    made = event(hook=Hook.PROGRAM_RETURN, flags=EventFlags.VERDICT | flags, verdict=1, return_value=1)
    assert (made.verdict, made.return_value) == (name, 1)


def test_return_values() -> None:
    made = event(hook=Hook.FUNCTION_RETURN, return_value=-22, duration_ns=0)
    assert (made.return_value, made.duration_ns) == (-22, 0)
    assert event(hook=250).hook == 250


def test_comm_may_hold_anything() -> None:
    assert event(comm=b"\xff\x1b[31m\n").comm == "�\x1b[31m\n"
    assert event(comm=b"sixteen bytes!!!").comm == "sixteen bytes!!!"


def test_headers_with_and_without_link_layer() -> None:
    ip = bytes.fromhex("450000140001000040110000c0000202c6336402")
    ethernet = bytes.fromhex("020000000101020000000102") + b"\x08\x00"
    with_link = event(ethernet + ip, flags=EventFlags.LINK_HEADER).headers
    without = event(ip, flags=EventFlags.IP, protocol=0x0800).headers
    assert [type(layer).__name__ for layer in with_link] == ["Ethernet", "Ipv4"]
    assert [type(layer).__name__ for layer in without] == ["Ipv4"]
    assert with_link.stopped == without.stopped == "UDP: 0 of 8 bytes"


def test_drop_reasons() -> None:
    looked: list[str] = []

    def find(subsystem: str) -> dict[int, str]:
        looked.append(subsystem)
        return {2 << 16 | 1: "OVS_DROP_LAST_ACTION"}

    reasons = DropReasons({6: "NETFILTER_DROP"}, {2: "OPENVSWITCH"}, find_subsystem=find)
    assert reasons.name(6) == "NETFILTER_DROP"
    assert reasons.name(999) == "REASON_999"
    assert reasons.name(5 << 16 | 3) == "SUBSYSTEM_5_3"
    assert looked == []
    assert reasons.name(2 << 16 | 1) == "OVS_DROP_LAST_ACTION"
    assert reasons.name(2 << 16 | 9) == "OPENVSWITCH_9"
    assert looked == ["OPENVSWITCH"]
    assert reasons.number("skb_drop_reason_netfilter_drop") == 6
    with pytest.raises(KeyError):
        reasons.number("NO_SUCH")
    loaded = DropReasons(load=lambda: DropReasons({3: "NO_SOCKET"}))
    assert loaded.name(3) == "NO_SOCKET"
    assert dict(DropReasons().names) == {}


def test_drop_reasons_of_this_kernel() -> None:
    reasons = DropReasons.of_this_kernel()
    if not reasons.names:
        pytest.skip("this kernel gives no drop reasons (before 5.17, or without BTF)")
    assert reasons.name(reasons.number("NETFILTER_DROP")) == "NETFILTER_DROP"
    assert all(reasons.number(name) == value for value, name in dict(reasons.names).items())
    assert not any(name.startswith("SKB_") for name in reasons.names.values())


def batch(*records: bytes, room: int | None = None) -> EventBatch:
    """Records as the ring hands them over: with the room they were reserved, not only what they use."""
    offsets, sizes, data = array("I"), array("I"), b""
    for record in records:
        offsets.append(len(data))
        padded = record.ljust(room or len(record), b"\xee")
        sizes.append(len(padded))
        data += padded
    block = RecordBlock(len(records), memoryview(data), memoryview(offsets), memoryview(sizes))
    return EventBatch(block, CONTEXT)


def test_columns_of_equal_records_are_a_view() -> None:
    made = batch(*(encode(bytes(8), packet_id=number, cpu=number % 2) for number in range(10)), room=368)
    columns = made.to_numpy()
    assert columns["packet_id"].tolist() == list(range(10))
    assert columns["cpu"].tolist() == [0, 1] * 5
    assert columns.strides == (368,)
    assert np.shares_memory(columns, np.frombuffer(made.records.data, np.uint8))


def test_columns_of_unequal_records_are_gathered() -> None:
    made = batch(*(encode(bytes(8 * number), packet_id=number) for number in range(5)))
    columns = made.to_numpy()
    assert columns["packet_id"].tolist() == [0, 1, 2, 3, 4]
    assert columns["captured_length"].tolist() == [0, 8, 16, 24, 32]
    assert bytes(columns[4]["source"]) == bytes(16)
    assert [made_event.data for made_event in made] == [bytes(8 * number) for number in range(5)]


def test_an_empty_batch() -> None:
    made = batch()
    assert (len(made), list(made), made.to_tuples(), len(made.to_numpy())) == (0, [], [], 0)


@given(st.lists(st.tuples(st.binary(max_size=64), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))))
def test_all_ways_of_decoding_agree(values: list[tuple[bytes, int, int]]) -> None:
    records = [encode(data, packet_id=first, mark=second) for data, first, second in values]
    made = batch(*records)
    events, tuples, columns = list(made), made.to_tuples(), made.to_numpy()
    assert len(events) == len(tuples) == len(columns) == len(made) == len(values)
    for (data, first, second), one, row, column in zip(values, events, tuples, columns, strict=True):
        named = dict(zip(FIELD_NAMES, row, strict=True))
        assert one.packet_id == named["packet_id"] == column["packet_id"] == first
        assert one.mark == named["mark"] == column["mark"] == second
        assert one.data == data
        assert one.raw() == named
    again = EventBatch.from_bytes(b"".join(records), CONTEXT)
    assert list(again) == events


def test_symbols(tmp_path: Any) -> None:
    path = tmp_path / "kallsyms"
    path.write_bytes(
        b"ffffffff81000000 T first\nffffffff81000100 t second\nffffffff81000180 d data\n"
        b"ffffffffc0000000 t nft_do_chain\t[nf_tables]\nffffffff81000200 t \xff\xfe<weird>\x1b[0m\n"
        b"not a line\nffffffff81000300 t\n\nzzzz T nothex\n"
    )
    symbols = Symbols(path)
    assert symbols.name(0xFFFFFFFF81000000) == "first"
    assert symbols.name(0xFFFFFFFF81000142) == "second+0x42"
    assert symbols.name(0xFFFFFFFFC0000010) == "nft_do_chain+0x10 [nf_tables]"
    assert symbols.function(0xFFFFFFFFC0000010) == "nft_do_chain"
    assert symbols.name(0xFFFFFFFF81000201) == "��<weird>\x1b[0m+0x1"
    assert symbols.name(0) is None
    assert symbols.name(0x1000) is None
    assert symbols.name(2**64 - 1) is None


def test_hidden_symbols(tmp_path: Any) -> None:
    path = tmp_path / "kallsyms"
    path.write_bytes(b"0000000000000000 T first\n0000000000000000 t second\n")
    assert Symbols(path).name(0xFFFFFFFF81000000) is None
    assert Symbols(tmp_path / "missing").name(1) is None


def test_symbols_of_what_is_loaded_later(tmp_path: Any) -> None:
    path = tmp_path / "kallsyms"
    path.write_bytes(b"ffffffff81000000 T first\n")
    symbols = Symbols(path, interval=0.0)
    assert symbols.name(0xFFFFFFFFC0000000) is None
    path.write_bytes(b"ffffffff81000000 T first\nffffffffc0000000 t late\t[late]\n")
    assert symbols.name(0xFFFFFFFFC0000004) == "late+0x4 [late]"
