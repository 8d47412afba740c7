"""Codecs of IP addresses, and of the prefixes that key an LPM trie (``struct bpf_lpm_trie_key``)."""

from __future__ import annotations

import ipaddress
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, NamedTuple, TypeVar

from packet_tracer.bpf.maps.codecs.base import Buffer, Codec, refuse

A = TypeVar("A", bound="IPv4Address | IPv6Address")
N = TypeVar("N", bound="IPv4Network | IPv6Network")

_LENGTH = struct.Struct("=I")


class AddressCodec(Codec[A], Generic[A]):
    """An address in network byte order: ``__be32`` / ``struct in_addr``, or ``struct in6_addr``."""

    alignment = 4  # in6_addr too: its union has 32-bit members

    def __init__(self, kind: type[A], size: int) -> None:
        self.kind = kind
        self.size = size

    def encode(self, value: A | str) -> bytes:
        try:
            address = self.kind(value) if isinstance(value, str) else value
        except ValueError:
            raise refuse(self, value) from None
        if not isinstance(address, self.kind):
            raise refuse(self, value)
        return address.packed

    def decode(self, data: Buffer) -> A:
        self._check(data)
        return self.kind(bytes(data))

    def describe(self) -> str:
        return f"an {self.kind.__name__}"


class NetworkCodec(Codec[N], Generic[N]):
    """``{__u32 prefixlen; __u8 data[]}``: the key of an LPM trie of addresses.

    An address is accepted for its full-length prefix. Host bits that a program left set below the
    prefix are dropped when a key is decoded; the kernel ignores them too.
    """

    alignment = 4

    def __init__(self, kind: type[N], size: int) -> None:
        self.kind = kind
        self.size = 4 + size

    def encode(self, value: N | IPv4Address | IPv6Address | str) -> bytes:
        try:
            network = value if isinstance(value, self.kind) else self.kind(value, strict=False)
        except ValueError:
            raise refuse(self, value) from None
        return _LENGTH.pack(network.prefixlen) + network.network_address.packed

    def decode(self, data: Buffer) -> N:
        self._check(data)
        raw = bytes(data)
        return self.kind((raw[4:], _LENGTH.unpack(raw[:4])[0]), strict=False)

    def describe(self) -> str:
        return f"an {self.kind.__name__}"


class Prefix(NamedTuple):
    """A prefix of anything: ``length`` leading bits of ``data`` (which is always whole)."""

    length: int
    data: bytes


class PrefixCodec(Codec[Prefix]):
    """The key of an LPM trie over ``data_size`` bytes (1 to 256) that are not an address."""

    alignment = 4

    def __init__(self, data_size: int) -> None:
        self.size = 4 + data_size

    def encode(self, value: Prefix) -> bytes:
        length, data = value
        if len(data) != self.size - 4 or not 0 <= length <= 8 * len(data):
            raise refuse(self, value)
        return _LENGTH.pack(length) + data

    def decode(self, data: Buffer) -> Prefix:
        self._check(data)
        raw = bytes(data)
        return Prefix(_LENGTH.unpack(raw[:4])[0], raw[4:])

    def describe(self) -> str:
        return f"a Prefix(length, data) over {self.size - 4} bytes"


ipv4 = AddressCodec(ipaddress.IPv4Address, 4)
ipv6 = AddressCodec(ipaddress.IPv6Address, 16)
ipv4_prefix = NetworkCodec(ipaddress.IPv4Network, 4)
ipv6_prefix = NetworkCodec(ipaddress.IPv6Network, 16)
