"""In the kernel a filter gives libpcap's answer, and the verifier takes every program."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from packet_tracer.bpf.enums import ProgramType
from packet_tracer.bpf.features import probe_helper
from packet_tracer.filter import Filter, LinkType, Tunnel
from packet_tracer.filter.expression import compile_filter
from packet_tracer.filter.patch import patch
from packet_tracer.filter.pcap import OfflineFilter
from packet_tracer.filter.typed import typed_memory
from tests.filter_corpus import corpus
from tests.kernel.filter_programs import (
    BATCH,
    ROOM,
    answerable,
    answers,
    filters,
    prepared,
    probe_programs,
    runnable,
)
from tests.tunnel_packets import OTHERS, TUNNELS

_XDP_LOAD_BYTES = 189  # linux/bpf.h


def packets_of(link_type: LinkType, count: int) -> list[bytes]:
    made = corpus(2 * count, link_header=link_type is LinkType.ETHERNET, seed=3)
    return [packet for packet in made if len(packet) <= ROOM][:count]


def compare(filter_: Filter, link_type: LinkType, packets: list[bytes], found: list[bool]) -> int:
    """Assert that there is no difference; return how many packets were accepted."""
    oracle = OfflineFilter(filter_.classic(link_type))
    expected = [oracle.matches(packet) for packet in packets]
    for packet, ours, theirs in zip(packets, found, expected, strict=True):
        assert ours == theirs, (filter_.expression, packet.hex())
    return sum(expected)


@pytest.mark.parametrize(
    ("name", "link_type", "pairs"),
    [("xdp", LinkType.ETHERNET, 30_000), ("xdp", LinkType.RAW, 15_000), ("tc", LinkType.ETHERNET, 30_000)],
)
def test_direct_access_answers_as_libpcap(name: str, link_type: LinkType, pairs: int) -> None:
    compared = accepted = 0
    with prepared(f"filter_{name}", link_header=int(link_type is LinkType.ETHERNET)) as object_:
        packets = runnable(object_.programs["filter"], packets_of(link_type, 200), 100)
        for filter_ in answerable(link_type):
            found = answers(object_.programs["filter"], filter_, packets)
            accepted += compare(filter_, link_type, packets, found)
            compared += len(packets)
    assert compared >= pairs
    assert accepted >= pairs // 20


def test_a_packet_that_begins_behind_the_bytes_of_a_tc_program() -> None:
    """TC at a device whose link-layer header is not Ethernet's: the IP header lies somewhere in the bytes."""
    packets = packets_of(LinkType.RAW, 60)
    with prepared("filter_tc", link_header=0, start=20) as object_:
        for filter_ in answerable(LinkType.RAW):
            # The kernel pulls an Ethernet header off, whatever the bytes are.
            found = answers(
                object_.programs["filter"], filter_, [b"\xa5" * 20 + packet for packet in packets]
            )
            compare(filter_, LinkType.RAW, packets, found)


@pytest.mark.parametrize(("link_type", "pairs"), [(LinkType.ETHERNET, 80_000), (LinkType.RAW, 40_000)])
def test_probes_answer_as_libpcap(link_type: LinkType, pairs: int) -> None:
    packets = [*packets_of(link_type, BATCH - 1), b""]
    compared = accepted = 0
    with probe_programs(link_header=int(link_type is LinkType.ETHERNET)) as programs:
        programs.put(packets)
        for filter_ in answerable(link_type):
            accepted += compare(filter_, link_type, packets, programs.answers(filter_))
            compared += len(packets)
    assert compared >= pairs
    assert accepted >= pairs // 20


@pytest.mark.parametrize("link_type", LinkType)
def test_probes_answer_the_same_through_a_copy(link_type: LinkType) -> None:
    """As on kernels that do not read memory in place."""
    if typed_memory() is None:
        pytest.skip("before bpf_rdonly_cast() (Linux 6.2) all are read so")
    packets = packets_of(link_type, 60)
    with probe_programs(link_header=int(link_type is LinkType.ETHERNET)) as programs:
        programs.put(packets)
        for filter_ in answerable(link_type):
            compare(filter_, link_type, packets, programs.answers(filter_, in_place=False))


@pytest.mark.parametrize("tag", [0x8100 << 16 | 100, 0x88A8 << 16 | 0x6000 | 200])
def test_a_tag_beside_the_packet_is_seen_by_probes(tag: int) -> None:
    packets = packets_of(LinkType.ETHERNET, 200)
    on_wire = [p[:12] + struct.pack("!I", tag) + p[12:] if len(p) >= 12 else p for p in packets]
    with probe_programs(link_header=1) as programs:
        programs.put(packets, metadata=tag | 5 << 32)
        for filter_ in [f for f in answerable(LinkType.ETHERNET) if f.sees_vlan]:
            oracle = OfflineFilter(filter_.ethernet)
            # The length is the packet's own, as for a live tcpdump.
            expected = [oracle.matches(w, length=len(p)) for w, p in zip(on_wire, packets, strict=True)]
            found = programs.answers(filter_)
            differences = [p.hex() for p, a, b in zip(packets, found, expected, strict=True) if a != b]
            assert not differences, filter_.expression


def test_metadata_is_read() -> None:
    frame = packets_of(LinkType.ETHERNET, 1)
    with probe_programs(link_header=1) as programs:
        for metadata, text, expected in [
            (4 << 60 | 3 << 32, "outbound", True),
            (4 << 60 | 3 << 32, "inbound", False),
            (0, "inbound", True),
            (4 << 60 | 3 << 32, "ifindex 3", True),
            (4 << 32, "ifindex 3", False),
        ]:
            programs.put(frame, metadata=metadata)
            assert programs.answers(compile_filter(text)) == [expected], text


@pytest.mark.parametrize("name", ["filter_tc", "filter_xdp"])
def test_every_expression_passes_the_verifier_with_metadata_as_well(name: str) -> None:
    for link_header in (0, 1):
        with prepared(name, link_header=link_header, filter_reads_metadata=1) as object_:
            program = object_.programs["filter"]
            for filter_ in filters():
                if filter_.reads_metadata:
                    program.load(**patch(program, filter_).arguments()).close()


_INNER = [
    "tcp port 80",
    "host 192.168.7.1",
    "ip6",
    "ether dst 02:00:00:00:00:02",
    "tcp port 81",
    "less 70",
    "",
]


@pytest.mark.parametrize("kind", [*Tunnel, None])
def test_the_packet_in_a_tunnel(kind: Tunnel | None) -> None:
    """However it is read, as the same in Python, which unit tests hold against scapy."""
    packets = [case.packet for case in TUNNELS] + OTHERS
    cut = [packet[: len(packet) - at] for at, packet in enumerate(packets, 1)]
    found = 0
    for inner in _INNER:
        filter_ = compile_filter(
            "not port 4444", inner=inner, tunnel=[kind.name] if kind and kind.name else []
        )
        constants = filter_.rodata()
        with probe_programs(**constants) as programs:
            programs.put([*packets, *cut])
            answered = programs.answers(filter_)
        expected = [filter_.matches(packet) for packet in [*packets, *cut]]
        assert answered == expected, inner
        found += sum(expected)
        for name in ("filter_tc", "filter_xdp"):
            with prepared(name, **constants) as object_:
                program = object_.programs["filter"]
                whole = [packet for packet in [*packets, *cut] if len(packet) > 60]
                assert answers(program, filter_, whole) == [filter_.matches(packet) for packet in whole], (
                    inner
                )
    assert found > 10


def test_bytes_in_the_fragments_of_an_xdp_buffer() -> None:
    """A buffer of several pages: what lies behind the first is reached all the same."""
    packet = bytes(12) + b"\x08\x00" + bytes(4086) + b"\x12\x34\x56\x78" + bytes(2002)
    if not probe_helper(ProgramType.XDP, _XDP_LOAD_BYTES).supported:
        pytest.skip("no buffers of several pages here: 3f364222d032 (v5.18)")
    with prepared("filter_xdp", link_header=1) as object_:
        program = object_.programs["filter"]
        for text, expected in [
            ("ether[4100:4] = 0x12345678", True),
            ("ether[4100:4] = 0x12345679", False),
            ("ip and ether[4102:2] = 0x5678", True),
            ("ether[6105] = 0", True),
            ("ether[6106] = 0", False),
            ("not ether[6106] = 0", False),
            ("greater 6106", True),
            ("greater 6107", False),
            ("ether[len - 1] = 0 and len = 6106", True),
        ]:
            assert len(packet) == 6106
            assert answers(program, compile_filter(text), [packet]) == [expected], text


def test_without_an_expression_a_stub_accepts() -> None:
    packets = [bytes(60), bytes(1500)]
    for name in ("filter_xdp", "filter_tc"):
        with prepared(name) as object_, object_.programs["filter"].load() as program:
            assert all(program.test_run(packet).return_value == 1 for packet in packets)


def test_compiling_and_loading_is_quick() -> None:
    """Under 5 ms an expression: the median of the processor's time, for the machine may be busy."""
    if "QEMU" in Path("/proc/cpuinfo").read_text():
        pytest.skip("an emulated processor is no measure of time")
    times = []
    with prepared("filter_xdp") as object_:
        program = object_.programs["filter"]
        for number in range(60):
            begin = time.process_time()
            filter_ = compile_filter(f"tcp port {number + 1} and host 10.0.0.{number + 1}")
            code = patch(program, filter_).arguments()
            program.load(**code).close()
            times.append(time.process_time() - begin)
    assert sorted(times)[len(times) // 2] < 0.005
