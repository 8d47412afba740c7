"""Expressions that cover pcap-filter(7), and packets to try them on, for the filter's differential tests."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from hypothesis import strategies as st

_PRIMITIVES = """
host 10.0.0.1
src host 10.0.0.1
dst host 10.0.0.2
src or dst host 10.0.0.2
src and dst host 10.0.0.1
ip host 10.0.0.1
arp host 10.0.0.1
rarp host 10.0.0.1
ip6 host fd00::1
host fd00::1
src host fd00::1
dst host fd00::2
src and dst host fd00::2
ether host 02:00:00:00:00:01
ether src 02:00:00:00:00:01
ether dst 02:00:00:00:00:02
ether src or dst 02:00:00:00:00:02
ether src and dst 02:00:00:00:00:02
net 10.0.0.0/8
src net 10.0.0.0/24
dst net 10.0.1.0/24
src and dst net 10.0.0.0/16
net 10
net 10.0.0
net 10.0.0.0 mask 255.255.0.0
net fd00::/16
src net fd00::/64
dst net fd00:1:2:3:4::/80
net fd00::/127
ip6 net fd00::/17
net 0.0.0.0/0
port 80
src port 80
dst port 443
src or dst port 53
src and dst port 53
tcp port 80
tcp src port 80
tcp dst port 443
udp port 53
udp src port 53
udp dst port 53
sctp port 80
portrange 50-100
src portrange 50-100
dst portrange 1000-65535
tcp portrange 80-443
udp dst portrange 1-1023
sctp portrange 80-90
portrange 80-80
less 60
greater 60
less 100
greater 1000
len > 64
len = 74
len <= 1500
len != 60
len - 14 > 50
ip proto 6
ip proto 17
ip proto \\tcp
ip proto \\icmp
ip proto 47
ip6 proto 6
ip6 proto 17
ip6 proto 58
ip6 proto 44
ip6 proto 0
proto 1
proto \\udp
proto 89
ether broadcast
ether multicast
broadcast
multicast
ip multicast
ip6 multicast
ether proto 0x800
ether proto \\ip
ether proto \\ip6
ether proto \\arp
ether proto \\rarp
ether proto 0x88cc
ether proto 0x8100
ether proto \\aarp
ether proto \\atalk
ether proto \\ipx
ether proto \\iso
ether proto \\stp
ether proto \\netbeui
ether proto 0x42
ip
ip6
arp
rarp
atalk
aarp
iso
stp
ipx
netbeui
lat
moprc
mopdl
tcp
udp
icmp
icmp6
igmp
pim
igrp
vrrp
carp
ah
esp
sctp
clnp
esis
isis
iso proto 0x82
l1
l2
iih
lsp
snp
csnp
psnp
vlan
vlan 100
vlan 0
vlan 4095
vlan and ip
vlan and ip6
vlan 100 and tcp
vlan 100 and tcp port 80
vlan 100 and vlan 200
vlan 100 and vlan 200 and udp
vlan and vlan and ip6
vlan and host 10.0.0.1
vlan and ether host 02:00:00:00:00:01
not vlan
mpls
mpls 1000
mpls 1000 and mpls 2000
mpls and ip
mpls 1000 and host 10.0.0.1
mpls 1000 and mpls 2000 and tcp port 80
pppoed
pppoes
pppoes 1
pppoes and ip
pppoes 1 and ip6
pppoes 1 and tcp port 80
geneve
geneve 5
geneve and ip
geneve 5 and tcp port 80
geneve and ip6 host fd00::1
geneve and vlan 100
geneve and geneve
ip[0] = 0x45
ip[0] & 0xf != 5
ip[8] < 64
ip[2:2] > 100
ip[6:2] & 0x1fff = 0
ip[6:2] & 0x1fff != 0
ip[6] & 0x20 != 0
ip[12:4] = 0x0a000001
ip[16:4] & 0xffffff00 = 0x0a000100
ip6[6] = 44
ip6[6] = 6
ip6[0:4] & 0x0ff00000 != 0
ip6[40] = 17
ip6[4:2] > 20
ether[0] & 1 = 1
ether[0] & 1 = 0
ether[6:4] = 0x02000000
ether[12:2] = 0x0800
ether[12:2] > 0x0600
ether[20:2] = 0x6000
ether[3:4] = 1
ether[9:4] > 0x100
ether[1:2] = 5
ether[60] = 0
ether[65:4] = 0
ether[101] = 0
ether[200] = 7
ether[1500] = 7
ether[9000] = 7
ether[65534] = 1
ether[70000] = 1
ether[2147483647] = 1
ether[4294967295] = 1
tcp[13] & 2 != 0
tcp[tcpflags] & (tcp-syn|tcp-fin) != 0
tcp[tcpflags] == tcp-syn
tcp[tcpflags] & tcp-ack != 0
tcp[tcpflags] & (tcp-rst|tcp-push|tcp-urg|tcp-ece|tcp-cwr) = 0
tcp[0:2] = 80
tcp[2:2] >= 1024
tcp[4:4] > 0x10000000
tcp[12] & 0xf0 = 0x50
(tcp[12] & 0xf0) >> 2 > 20
tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420
tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)
udp[4:2] > 20
udp[8:4] = 0
udp[10] & 0x80 != 0
udp[2:2] % 2 = 0
udp[0:2] / udp[2:2] = 1
udp[0:2] % udp[2:2] = 0
udp[0:2] * 3 > 200
udp[0:2] ^ udp[2:2] = 0
udp[0:2] | 0xff = 0x1ff
udp[0:2] + udp[2:2] > 60000
udp[0:2] - udp[2:2] > 60000
udp[4:2] - 8 = 0
-udp[4:2] > 5
udp[8] << udp[9] = 0
udp[8] >> udp[9] = 0
ip[8] << 24 = 0x40000000
ip[12:4] >> 24 = 10
ip[12:4] << ip[8] = 0
ip[12:4] >> ip[8] = 0
icmp[0] = 8
icmp[icmptype] = icmp-echo
icmp[icmptype] = icmp-echoreply
icmp[icmptype] = icmp-unreach
icmp[icmpcode] != 0
icmp[4:2] = icmp[6:2]
icmp6[0] = 128
icmp6[icmp6type] = icmp6-echo
icmp6[icmp6type] = icmp6-neighborsolicit
icmp6[icmp6code] = 0
arp[6:2] = 1
arp[6:2] = 2
arp[14:4] = 0x0a000001
ether[ip[0]] = 0
ether[ip[0] & 0xf] = 2
ether[ip[12:4]] = 2
ether[tcp[0]-5] = 3
ip[ip[2:2]:4] = 0
ip[ip[2:2]-4:4] != 0
ip[4:2] / ip[8] > 5
ip[4:2] / (ip[8] - 64) > 5
ip[4:2] % (ip[8] - 64) = 0
len / ip[8] > 1
len % ip[1] = 0
1 = 1
1 = 2
0 != 0
ip[0:4] > 0x80000000
ip[0:4] >= 0x45000028
not ip[12:4] < 0x80000000
sctp[0:2] = 80
igmp[0] = 0x16
carp[0] = 1
llc
llc i
llc s
llc u
llc rr
llc ui
llc xid
ether[ether[0]:4] = 0
ether[len - 4:4] = 0
ether[len - 1] = 0
ether[len] = 0
ip[ip[0]*ip[1]] = 1
inbound
outbound
ifindex 3
link host 02:00:00:00:00:01
link src 02:00:00:00:00:01
link proto 0x800
ether[14:4] & 0xff000000 = 0x45000000
"""

_COMPOUND = """
tcp port 80 and host 10.0.0.1
tcp port 443 and host 10.0.0.1
tcp and not port 22
not port 22
not tcp
not (tcp or udp)
ip and not tcp and not udp
ip6 and not icmp6
icmp or icmp6
udp and (port 53 or port 5353)
tcp or udp or sctp
host 10.0.0.1 and not port 80
host 10.0.0.1 or host 10.0.0.2 or host fd00::1
src host 10.0.0.1 and dst port 80
src net 10.0.0.0/8 and not dst net 10.0.0.0/8
net 10.0.0.0/8 and (tcp[tcpflags] & tcp-syn != 0) and less 200
arp or (ip and udp and port 67)
arp or icmp or icmp6 or (udp port 53)
ether host 02:00:00:00:00:01 and ip
ether multicast and not ip multicast
broadcast or multicast and not ip6
greater 60 and less 100
len > 60 and len < 1514 and tcp
tcp portrange 1-1023 and not tcp port 80
udp portrange 1024-65535 and not udp port 5353
ip6 and tcp port 80
ip6 and udp port 53 and src host fd00::1
ip6 host fd00::1 or ip host 10.0.0.1
port 80 or (vlan and port 80)
tcp or vlan 100
vlan 100 or vlan 200
vlan 100 or mpls 1000
not vlan 100
vlan and not tcp
vlan 100 and not host 10.0.0.1
vlan 100 and (udp port 53 or tcp port 80)
vlan 100 and ip[8] < 64
vlan 100 and ether[2:2] = 0
vlan and ether[10:4] = 0
vlan and ether[14:4] = 0
vlan and ether[13] = 0
vlan and ether[15] = 100
vlan and ether[len - 4:4] != 1
vlan 100 and tcp[tcpflags] & tcp-syn != 0
vlan and ether[ip[0] & 0xf] = 2
vlan 100 and vlan 200 and vlan 300
vlan 100 and mpls 1000 and ip
vlan 100 and pppoes and ip
vlan 100 and len > 60
vlan 100 and greater 60
mpls 1000 and vlan 100
not arp and not icmp and not icmp6
ip proto 47 or ip proto 4 or ip proto 41
ip[9] = 4 and ip[20+12:4] = 0x0a000001
host 10.0.0.1 and (port 80 or port 443 or port 8080 or port 53 or portrange 9000-9010)
(host 10.0.0.1 and host 10.0.0.2) or (host fd00::1 and host fd00::2)
tcp[0:2] = 80 and tcp[2:2] > 1023 and ip[8] = 64
ip[6:2] & 0x3fff != 0
ip6 proto 44 and ip6[40] = 17
ip6 proto 44 and udp
ip proto \\sctp or ip6 proto \\sctp
tcp and ip[2:2] > 40 and tcp[13] = 0x18
icmp[0] = 8 or icmp[0] = 0
icmp[0] = 3 and icmp[1] = 3
udp port 4789 and udp[8] & 0x08 != 0
inbound and tcp
outbound or ip6
ifindex 3 and not tcp
port 80 and inbound
"""


def expressions() -> list[str]:
    """Return over 400 expressions, each once; libpcap refuses a few of those that are put together."""
    primitives = [line for line in _PRIMITIVES.splitlines() if line]
    compound = [line for line in _COMPOUND.splitlines() if line]
    chosen = random.Random(7)
    simple = [p for p in primitives if " or " not in p and " and " not in p]
    made = []
    for _ in range(80):
        first, second, third = chosen.sample(simple, 3)
        made.append(chosen.choice(
            ["({0}) and ({1})", "({0}) or ({1})", "not ({0}) and ({1})", "({0}) or not (({1}) and ({2}))",
             "({0}) and (({1}) or ({2}))"]
        ).format(first, second, third))  # fmt: skip
    return list(dict.fromkeys(["", *primitives, *compound, *made]))


# Packets

_MACS = [
    b"\x02\0\0\0\0\x01",
    b"\x02\0\0\0\0\x02",
    b"\xff" * 6,
    b"\x01\x00\x5e\0\0\x01",
    b"\x33\x33\0\0\0\x01",
]
_IPV4 = [b"\x0a\0\0\x01", b"\x0a\0\0\x02", b"\x0a\0\x01\x05", b"\xe0\0\0\x01", b"\xc0\xa8\x01\x01"]
_IPV6 = [
    b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02", b"\xff\x02" + bytes(13) + b"\x01",
    b"\xfd\0\0\x01\0\x02\0\x03\0\x04" + bytes(6),
]  # fmt: skip
_LLC = [
    b"\x42\x42\x03", b"\xf0\xf0\x03", b"\xfe\xfe\x03\x83\x1b", b"\xfe\xfe\x03\x82", b"\xfe\xfe\x03\x81",
    b"\xe0\xe0\x03", b"\xaa\xaa\x03\0\0\0\x08\0", b"\xaa\xaa\x03\x08\0\x07\x80\x9b", b"\x42\x42\x01\x01",
    b"\x42\x42\xaf",
]  # fmt: skip
_PORTS = [80, 443, 53, 22, 5353, 1024, 40000, 65535, 8080, 6081, 4789]


class PacketMaker:
    """Makes packets that mean something, from a source of choices: `random.Random`, or hypothesis's."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def _bytes(self, count: int) -> bytes:
        return bytes(self._source.choices(range(256), k=count))

    def _one(self, options: Sequence[bytes]) -> bytes:
        return self._source.choice(list(options))

    def _chance(self, one_in: int) -> bool:
        return self._source.randrange(one_in) == 0

    def transport(self, depth: int) -> tuple[int, bytes]:
        """Return an IP protocol number and what follows the header."""
        kind = self._source.choice("tttuuusiIgGex")
        ports = struct.pack("!HH", self._source.choice(_PORTS), self._source.choice(_PORTS))
        payload = self._bytes(self._source.choice([0, 0, 1, 4, 30, 90]))
        if kind == "t":
            options = self._bytes(self._source.choice([0, 0, 4, 12]))
            flags = self._source.choice([2, 0x12, 0x10, 0x18, 0x11, 4])
            words = struct.pack("!BB", (5 + len(options) // 4) << 4, flags)
            payload = self._one([b"", b"GET / HTTP/1.1\r\n", payload])
            return 6, ports + self._bytes(8) + words + self._bytes(6) + options + payload
        if kind == "u":
            if self._chance(4) and depth:
                inner_type, inner = self._one([b"\x65\x58", b"\x08\x00", b"\x86\xdd"]), b""
                inner = self.ethernet(depth - 1) if inner_type == b"\x65\x58" else self.network(depth - 1)[1]
                option = self._bytes(self._source.choice([0, 0, 4, 8]))
                geneve = bytes([len(option) // 4, 0]) + inner_type + b"\0\0\x05\0" + option
                payload = geneve + inner
                ports = ports[:2] + struct.pack("!H", 6081)
            return 17, ports + struct.pack("!HH", 8 + len(payload), 0) + payload
        if kind == "s":
            return 132, ports + self._bytes(8) + payload
        if kind == "i":
            return 1, bytes(
                [self._source.choice([0, 3, 8, 11]), self._source.choice([0, 0, 3])]
            ) + self._bytes(6) + payload
        if kind == "I":
            return 58, bytes([self._source.choice([1, 128, 129, 135, 136]), 0]) + self._bytes(6) + payload
        if kind == "g":
            return 47, b"\0\0\x08\0" + (self.network(depth - 1)[1] if depth else payload)
        if kind == "G":
            return self._source.choice(
                [(2, b"\x16\0" + self._bytes(6)), (103, payload), (112, b"\x21" + payload)]
            )
        if kind == "e":
            return self._source.choice([4, 41]), (self.network(depth - 1)[1] if depth else payload)
        return self._source.choice([50, 51, 89, 9, 255]), payload

    def network(self, depth: int = 1) -> tuple[int, bytes]:
        """Return an EtherType and a packet that begins with its header."""
        protocol, rest = self.transport(depth)
        if self._chance(2):
            options = self._bytes(self._source.choice([0, 0, 0, 4, 20, 40]))
            fragment = self._source.choice([0, 0, 0, 0x4000, 0x2000, 0x2064, 0x0010])
            length = 20 + len(options) + len(rest)
            identification = self._source.randrange(65536)
            header = struct.pack("!BBHH", 0x45 + len(options) // 4, 0, length, identification)
            header += struct.pack("!HBBH", fragment, self._source.choice([1, 63, 64, 128]), protocol, 0)
            return 0x0800, header + self._one(_IPV4) + self._one(_IPV4) + options + rest
        first = protocol
        for _ in range(self._source.choice([0, 0, 0, 1, 2])):
            kind = self._source.choice([0, 43, 44, 60])
            if kind == 44:
                rest = (
                    bytes([first, 0])
                    + struct.pack("!H", self._source.choice([0, 1, 0x0B8]))
                    + self._bytes(4)
                    + rest
                )
            else:
                rest = bytes([first, 0]) + self._bytes(6) + rest
            first = kind
        header = struct.pack("!IHBB", 6 << 28 | self._source.choice([0, 0x0FF00000]), len(rest), first, 64)
        return 0x86DD, header + self._one(_IPV6) + self._one(_IPV6) + rest

    def ethernet(self, depth: int = 1) -> bytes:
        """Return a frame: IP mostly, behind tags, labels or PPPoE at times; ARP, LLC, LLDP, noise."""
        kind = self._source.randrange(16)
        if kind < 12:
            ether_type, rest = self.network(depth)
        elif kind == 12:
            ether_type = self._source.choice([0x0806, 0x8035])
            rest = b"\0\x01\x08\0\x06\x04\0" + self._one([b"\x01", b"\x02"])
            rest += self._one(_MACS) + self._one(_IPV4) + self._one(_MACS) + self._one(_IPV4)
        elif kind == 13:
            llc = self._one(_LLC)
            rest = llc + self._bytes(30)
            ether_type = len(rest)
        else:
            ether_type = self._source.choice([0x88CC, 0x6000, 0x6004, 0x8137, 0x9000, 0x8863, 0x80F3, 0x809B])
            rest = self._bytes(46)
        tags = b""
        if ether_type in (0x0800, 0x86DD) and self._chance(8):
            tags, ether_type = struct.pack("!H", 0x8847), ether_type
            labels = self._source.choice([[1000], [1000, 2000], [16]])
            for label in labels:
                tags += struct.pack("!I", label << 12 | (0x100 if label == labels[-1] else 0) | 64)
            return self._one(_MACS) + self._one(_MACS) + tags + rest
        if ether_type in (0x0800, 0x86DD) and self._chance(12):
            ppp = b"\0\x21" if ether_type == 0x0800 else b"\0\x57"
            rest = b"\x11\0" + struct.pack("!HH", self._source.choice([1, 7]), len(rest) + 2) + ppp + rest
            ether_type = 0x8864
        for _ in range(self._source.choice([0, 0, 0, 1, 1, 2])):
            tpid = self._source.choice([0x8100, 0x8100, 0x88A8, 0x9100])
            tags = struct.pack("!HH", tpid, self._source.choice([100, 200, 0x6064, 0, 4095])) + tags
        return self._one(_MACS) + self._one(_MACS) + tags + struct.pack("!H", ether_type) + rest

    def any(self, *, link_header: bool = True) -> bytes:
        """Return a frame (or an IP packet), cut off or changed somewhere at times, or noise."""
        packet = self.ethernet() if link_header else self.network()[1]
        fate = self._source.randrange(10)
        if fate == 0:
            return packet[: self._source.randrange(len(packet) + 1)]
        if fate == 1 and packet:
            changed = bytearray(packet)
            for _ in range(3):
                changed[self._source.randrange(len(changed))] = self._source.randrange(256)
            return bytes(changed)
        if fate == 2 and self._chance(3):
            return self._bytes(self._source.randrange(120))
        if fate == 3:
            return packet + bytes(self._source.choice([1, 20, 200]))
        return packet


def corpus(count: int, *, link_header: bool = True, seed: int = 1) -> list[bytes]:
    """Return `count` packets, the same ones each time."""
    maker = PacketMaker(random.Random(seed))
    return [maker.any(link_header=link_header) for _ in range(count)]


def packets(*, link_header: bool = True) -> st.SearchStrategy[bytes]:
    """Return hypothesis's strategy of the same packets."""
    return st.randoms(use_true_random=False).map(
        lambda source: PacketMaker(source).any(link_header=link_header)
    )
