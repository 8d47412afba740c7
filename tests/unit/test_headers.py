"""Our header parser against scapy's as oracle, and against damage."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

logging.getLogger("scapy").setLevel(logging.ERROR)
scapy = pytest.importorskip("scapy.all")

from packet_tracer.events.headers import (  # noqa: E402
    Arp,
    Authentication,
    Ethernet,
    Geneve,
    Gre,
    Headers,
    Icmp,
    Ipv4,
    Ipv6,
    Ipv6Extension,
    Ipv6Fragment,
    LinkType,
    Sctp,
    Tcp,
    Udp,
    VlanTag,
    Vxlan,
    parse,
)

u8, u16, u32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1)
ipv4 = st.integers(0, 2**32 - 1).map(lambda value: str(IPv4Address(value)))
ipv6 = st.integers(0, 2**128 - 1).map(lambda value: str(IPv6Address(value)))
mac = st.binary(min_size=6, max_size=6).map(lambda value: value.hex(":"))
payload = st.binary(max_size=40)
# Ports that start a tunnel in one parser and not in the other are tested by themselves.
port = u16.filter(lambda value: value not in (4789, 8472, 6081, 4790))


@st.composite
def tcp(draw: st.DrawFn) -> Any:
    options = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("MSS"), u16),
                st.tuples(st.just("WScale"), u8),
                st.just(("SAckOK", b"")),
                st.tuples(st.just("Timestamp"), st.tuples(u32, u32)),
                st.just(("NOP", None)),
            ),
            max_size=3,
        )
    )
    return scapy.TCP(
        sport=draw(port),
        dport=draw(port),
        seq=draw(u32),
        ack=draw(u32),
        flags=draw(u8),
        window=draw(u16),
        urgptr=draw(u16),
        options=options,
    )


@st.composite
def transport(draw: st.DrawFn, version: int) -> Any:
    kind = draw(st.sampled_from(["tcp", "udp", "icmp", "sctp", "none"]))
    if kind == "tcp":
        layer = draw(tcp())
    elif kind == "udp":
        layer = scapy.UDP(sport=draw(port), dport=draw(port))
    elif kind == "sctp":
        layer = scapy.SCTP(sport=draw(port), dport=draw(port), tag=draw(u32))
    elif kind == "icmp" and version == 4:
        layer = scapy.ICMP(type=draw(st.sampled_from([0, 8])), id=draw(u16), seq=draw(u16))
    elif kind == "icmp":
        layer = draw(st.sampled_from([scapy.ICMPv6EchoRequest, scapy.ICMPv6EchoReply]))(
            id=draw(u16), seq=draw(u16)
        )
    else:
        return scapy.Raw(draw(payload))
    return layer / scapy.Raw(draw(payload))


@st.composite
def ipv4_packet(draw: st.DrawFn) -> Any:
    fragment = draw(st.sampled_from([0, 0, 0, 185]))
    inner = draw(transport(4))
    header = scapy.IP(
        src=draw(ipv4),
        dst=draw(ipv4),
        ttl=draw(u8),
        tos=draw(u8),
        id=draw(u16),
        flags=draw(st.sampled_from(["", "DF", "MF"])),
        frag=fragment,
        options=draw(st.sampled_from([[], [scapy.IPOption_RR()], [scapy.IPOption_NOP()] * 4])),
    )
    if isinstance(inner, scapy.Raw):
        header.proto = 253
    return header / inner


@st.composite
def ipv6_packet(draw: st.DrawFn) -> Any:
    packet = scapy.IPv6(
        src=draw(ipv6), dst=draw(ipv6), hlim=draw(u8), tc=draw(u8), fl=draw(st.integers(0, 2**20 - 1))
    )
    extensions = [
        lambda: scapy.IPv6ExtHdrHopByHop(options=[scapy.PadN(optdata=bytes(draw(st.integers(0, 20))))]),
        lambda: scapy.IPv6ExtHdrDestOpt(options=[scapy.PadN(optdata=bytes(draw(st.integers(0, 20))))]),
        lambda: scapy.IPv6ExtHdrRouting(addresses=[draw(ipv6)]),
        lambda: scapy.IPv6ExtHdrFragment(
            offset=draw(st.sampled_from([0, 0, 185])), m=draw(st.integers(0, 1)), id=draw(u32)
        ),
    ]
    for make in draw(st.lists(st.sampled_from(extensions), max_size=4)):
        packet = packet / make()
    inner = draw(transport(6))
    if isinstance(inner, scapy.Raw):
        packet.lastlayer().nh = 59
    return packet / inner


@st.composite
def frame(draw: st.DrawFn) -> Any:
    packet = scapy.Ether(src=draw(mac), dst=draw(mac))
    for tag in draw(st.lists(st.sampled_from([scapy.Dot1Q, scapy.Dot1AD]), max_size=2)):
        packet = packet / tag(vlan=draw(st.integers(0, 4095)), prio=draw(st.integers(0, 7)))
    inner = draw(
        st.one_of(
            ipv4_packet(),
            ipv6_packet(),
            st.builds(
                lambda op, a, b, c, d: scapy.ARP(op=op, hwsrc=a, psrc=b, hwdst=c, pdst=d),
                u16,
                mac,
                ipv4,
                mac,
                ipv4,
            ),
        )
    )
    return packet / inner


def fields_of(layer: Any) -> list[tuple[str, Any]]:
    """What scapy read, in our words: (name of our class, values) of the layers we know."""
    found: list[tuple[str, Any]] = []
    values: Any
    while layer is not None and not isinstance(layer, scapy.NoPayload):
        kind = type(layer)
        if kind is scapy.Ether:
            found.append(("Ethernet", (layer.dst, layer.src, layer.type)))
        elif kind in (scapy.Dot1Q, scapy.Dot1AD):
            found.append(("VlanTag", (layer.vlan, layer.prio, layer.type)))
        elif kind is scapy.ARP:
            found.append(("Arp", (layer.op, layer.hwsrc, layer.psrc, layer.hwdst, layer.pdst)))
        elif kind is scapy.IP:
            values = (
                layer.src,
                layer.dst,
                layer.ttl,
                layer.tos,
                layer.id,
                layer.frag * 8,
                layer.proto,
                layer.len,
            )
            found.append(("Ipv4", (*values, layer.ihl * 4, bool(layer.flags.MF), bool(layer.flags.DF))))
            if layer.frag:
                break
        elif kind is scapy.IPv6:
            source, destination = IPv6Address(layer.src), IPv6Address(layer.dst)
            found.append(
                ("Ipv6", (source, destination, layer.hlim, layer.tc, layer.fl, layer.nh, layer.plen))
            )
        elif kind is scapy.IPv6ExtHdrFragment:
            found.append(("Ipv6Fragment", (layer.nh, layer.offset * 8, bool(layer.m), layer.id)))
            if layer.offset:
                break
        elif kind in (scapy.IPv6ExtHdrHopByHop, scapy.IPv6ExtHdrDestOpt, scapy.IPv6ExtHdrRouting):
            found.append(("Ipv6Extension", (layer.nh,)))
        elif kind is scapy.AH:
            found.append(("Authentication", (layer.nh, layer.spi, layer.seq)))
        elif kind is scapy.TCP:
            values = (layer.sport, layer.dport, layer.seq, layer.ack, int(layer.flags) & 0xFF, layer.window)
            found.append(("Tcp", (*values, layer.urgptr, layer.dataofs * 4)))
        elif kind is scapy.UDP:
            found.append(("Udp", (layer.sport, layer.dport, layer.len, layer.chksum)))
        elif kind is scapy.SCTP:
            found.append(("Sctp", (layer.sport, layer.dport, layer.tag)))
            break  # scapy goes on into chunks
        elif kind in (scapy.ICMP, scapy.ICMPv6EchoRequest, scapy.ICMPv6EchoReply):
            found.append(("Icmp", (layer.type, layer.code, layer.id, layer.seq)))
            break
        else:
            break
        layer = layer.payload
    return found


def ours(headers: Headers) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for layer in headers:
        match layer:
            case Ethernet():
                values: Any = (layer.destination, layer.source, layer.protocol)
            case VlanTag():
                values = (layer.id, layer.priority, layer.protocol)
            case Arp():
                values = (
                    layer.operation,
                    layer.sender_hardware,
                    str(layer.sender),
                    layer.target_hardware,
                    str(layer.target),
                )
            case Ipv4():
                values = (
                    str(layer.source), str(layer.destination), layer.ttl, layer.tos, layer.identification,
                    layer.fragment_offset, layer.protocol, layer.total_length, layer.size,
                    layer.more_fragments, layer.dont_fragment,
                )  # fmt: skip
            case Ipv6():
                values = (
                    layer.source, layer.destination, layer.hop_limit, layer.traffic_class, layer.flow_label,
                    layer.next_header, layer.payload_length,
                )  # fmt: skip
            case Ipv6Fragment():
                values = (
                    layer.next_header,
                    layer.fragment_offset,
                    layer.more_fragments,
                    layer.identification,
                )
            case Ipv6Extension():
                values = (layer.next_header,)
            case Authentication():
                values = (layer.next_header, layer.security_parameters_index, layer.sequence)
            case Tcp():
                values = (
                    layer.source_port, layer.destination_port, layer.sequence, layer.acknowledgement,
                    layer.flags, layer.window, layer.urgent, layer.size,
                )  # fmt: skip
            case Udp():
                values = (layer.source_port, layer.destination_port, layer.length, layer.checksum)
            case Sctp():
                values = (layer.source_port, layer.destination_port, layer.verification_tag)
            case Icmp():
                values = (layer.type, layer.code, layer.identifier, layer.sequence)
            case _:
                raise AssertionError(layer)
        found.append((type(layer).__name__, values))
    return found


def accounts_for_every_byte(headers: Headers, data: bytes) -> bool:
    at = 0
    for layer in headers:
        assert layer.offset == at
        assert layer.size > 0
        at += layer.size
    assert data[at:] == headers.payload + headers.padding
    return True


@given(frame())
def test_frames_agree_with_scapy(packet: Any) -> None:
    data = bytes(packet)
    headers = parse(data)
    assert headers.stopped is None
    assert ours(headers) == fields_of(scapy.Ether(data))
    assert accounts_for_every_byte(headers, data)


@given(st.one_of(ipv4_packet(), ipv6_packet()), st.booleans())
def test_packets_without_a_link_layer_agree_with_scapy(packet: Any, told: bool) -> None:
    data = bytes(packet)
    protocol = 0x0800 if isinstance(packet, scapy.IP) else 0x86DD
    headers = parse(data, LinkType.NONE, protocol=protocol if told else 0)
    assert ours(headers) == fields_of(type(packet)(data))
    assert accounts_for_every_byte(headers, data)


@given(frame(), st.data())
def test_cut_anywhere_it_keeps_what_is_whole(packet: Any, data: st.DataObject) -> None:
    whole = bytes(packet)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    headers, complete = parse(cut), parse(whole)
    assert accounts_for_every_byte(headers, cut)
    kept = [layer for layer in complete if layer.offset + layer.size <= len(cut)]
    assert list(headers) == kept
    assert (headers.stopped is not None) == (len(kept) < len(complete))


@given(st.binary(max_size=300), st.sampled_from(LinkType), u16)
def test_any_bytes_are_parsed_or_stopped(data: bytes, link: LinkType, protocol: int) -> None:
    headers = parse(data, link, protocol=protocol)
    assert accounts_for_every_byte(headers, data)


@given(frame(), st.data())
def test_damaged_frames(packet: Any, data: st.DataObject) -> None:
    damaged = bytearray(bytes(packet))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(u8)
    assert accounts_for_every_byte(parse(bytes(damaged)), bytes(damaged))


def test_padding_is_told_from_payload() -> None:
    data = bytes(scapy.Ether() / scapy.IP() / scapy.UDP(dport=9) / b"abc").ljust(60, b"\0")
    headers = parse(data)
    assert (headers.payload, len(headers.padding)) == (b"abc", 60 - 14 - 20 - 8 - 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes.fromhex("30") + bytes(19), "IPv4: version 3"),
        (bytes.fromhex("42") + bytes(19), "IPv4: header length 8 is below 20"),
        (bytes.fromhex("45000013") + bytes(16), "IPv4: total length 19 is below the header's 20"),
        (
            bytes.fromhex("4500001c000000004011") + bytes(10) + bytes.fromhex("0001000200070000"),
            "UDP: length 7 is below 8",
        ),
        (
            bytes.fromhex("45000028000000004006") + bytes(22) + b"\x40" + bytes(7),
            "TCP: header length 16",
        ),
    ],
)
def test_contradictions(data: bytes, message: str) -> None:
    stopped = parse(data, LinkType.NONE, protocol=0x0800).stopped
    assert stopped is not None
    assert stopped.startswith(message)


def test_bad_tcp_options_keep_the_header() -> None:
    data = bytes(scapy.IP() / scapy.TCP(options=[("MSS", 1460)]))
    headers = parse(data[:-3] + b"\x01" + data[-2:], LinkType.NONE)
    assert headers.stopped == "TCP: option 2 has length 1, 4 bytes are left"
    assert headers.get(Tcp) is not None


def test_segmentation_offload_leaves_lengths_zero() -> None:
    data = bytearray(bytes(scapy.IP() / scapy.TCP() / bytes(100)))
    data[2:4] = b"\0\0"
    headers = parse(bytes(data), LinkType.NONE)
    assert (len(headers.payload), headers.padding) == (100, b"")


def test_tunnels() -> None:
    inner = scapy.Ether() / scapy.IP(src="192.0.2.1") / scapy.UDP(dport=53) / b"x"
    outer = scapy.Ether() / scapy.IP()
    vxlan = parse(bytes(outer / scapy.UDP(dport=4789) / scapy.VXLAN(vni=77) / inner))
    assert [type(layer) for layer in vxlan] == [Ethernet, Ipv4, Udp, Vxlan, Ethernet, Ipv4, Udp]
    found = vxlan.get(Vxlan)
    assert found is not None
    assert found.vni == 77
    assert str(vxlan.all(Ipv4)[1].source) == "192.0.2.1"
    gre = parse(
        bytes(outer / scapy.GRE(key_present=1, key=5, seqnum_present=1, sequence_number=9) / inner[scapy.IP])
    )
    layer = gre.get(Gre)
    assert layer is not None
    assert (layer.key, layer.sequence, layer.protocol) == (5, 9, 0x0800)
    assert len(gre.all(Ipv4)) == 2
    assert [type(one) for one in parse(bytes(outer / inner[scapy.IP]))] == [Ethernet, Ipv4, Ipv4, Udp]
    sit = parse(bytes(outer / scapy.IPv6() / scapy.UDP()))
    assert [type(one) for one in sit] == [Ethernet, Ipv4, Ipv6, Udp]
    geneve_header = bytes.fromhex("0100655800004d00") + bytes(4)
    geneve = parse(bytes(outer / scapy.UDP(dport=6081) / (geneve_header + bytes(inner))))
    tunnel = geneve.get(Geneve)
    assert tunnel is not None
    assert (tunnel.vni, tunnel.options) == (77, bytes(4))
    assert geneve.payload == b"x"


def test_authentication_header() -> None:
    ah = scapy.AH(nh=17, payloadlen=4, spi=7, seq=9, icv=bytes(12))
    for outer in (scapy.IP(proto=51), scapy.IPv6(nh=51)):
        data = bytes(outer / ah / scapy.UDP(sport=1, dport=2))
        headers = parse(data, LinkType.NONE)
        # scapy does not look behind it in IPv4
        assert ours(headers)[:2] == fields_of(type(outer)(data))[:2]
        assert ours(headers)[1:] == [("Authentication", (17, 7, 9)), ("Udp", (1, 2, 8, 0))]


def test_nesting_is_bounded() -> None:
    data = bytes.fromhex("45000014000000000004") + bytes(10)
    headers = parse(bytes(data * 200).replace(b"\x45\x00\x00\x14", b"\x45\x00\x00\x00"), LinkType.NONE)
    assert headers.stopped == "IPv4: more than 64 headers"
    assert len(headers) == 64
