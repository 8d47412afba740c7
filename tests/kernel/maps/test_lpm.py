"""LPM_TRIE: the longest prefix wins, as a plain search over networks finds it."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import LpmTrie, MapFull
from packet_tracer.bpf.maps.codecs import Prefix, PrefixCodec, u32
from tests.kernel.maps.support import covers, load_maps, raises_errno, run


@covers(MapType.LPM_TRIE)
def test_a_program_finds_the_longest_prefix() -> None:
    with load_maps("values", "find_route") as loaded:
        routes, find = loaded.maps["routes"], loaded.programs["find_route"]
        assert isinstance(routes, LpmTrie)
        routes[IPv4Network("10.0.0.0/8")] = 8
        routes[IPv4Network("10.1.2.0/24")] = 24
        for address, expected in (("10.1.2.3", 24), ("10.1.3.3", 8), ("11.0.0.1", 0)):
            number = int.from_bytes(socket.inet_aton(address), "little")
            assert run(find, number) == expected
            assert routes.get(IPv4Address(address), 0) == expected


@covers(MapType.LPM_TRIE)
def test_look_up_is_the_longest_match_and_deletion_exact() -> None:
    with LpmTrie.create(key=IPv6Network, value=u32, max_entries=3, name="six") as trie:
        trie.update_many({IPv6Network("2001:db8::/32"): 32, IPv6Network("2001:db8:1::/48"): 48})
        assert trie[IPv6Address("2001:db8:1::5")] == 48
        assert trie[IPv6Network("2001:db8:2::/64")] == 32
        assert IPv6Address("2001:db9::1") not in trie
        with pytest.raises(KeyError):
            trie[IPv6Address("2001:db9::1")]
        with pytest.raises(KeyError):
            del trie[IPv6Network("2001:db8:1::/64")]
        assert dict(trie.items()) == {IPv6Network("2001:db8:1::/48"): 48, IPv6Network("2001:db8::/32"): 32}
        assert list(trie) == [IPv6Network("2001:db8:1::/48"), IPv6Network("2001:db8::/32")]
        trie[IPv6Network("::/0")] = 0
        error = raises_errno(MapFull, errno.ENOSPC, lambda: trie.__setitem__(IPv6Network("fe80::/10"), 1))
        assert "3 entries at most" in str(error)
        assert trie.delete_many([IPv6Network("::/0"), IPv6Network("::/1")]) == 1
        assert len(trie) == 2
        assert trie.prefix_bits == 128


@covers(MapType.LPM_TRIE)
def test_a_prefix_longer_than_the_data_is_refused() -> None:
    with LpmTrie.create(key=PrefixCodec(2), value=u32, max_entries=3) as trie:
        trie[Prefix(9, b"ab")] = 1
        assert trie[Prefix(16, b"az")] == 1
        raw = trie.raw
        raises_errno(MapError, errno.EINVAL, lambda: raw.update(struct.pack("=I2s", 17, b"ab"), bytes(4)))
        with LpmTrie.from_map(trie) as plain:
            assert [key.length for key in plain] == [9]


networks = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@covers(MapType.LPM_TRIE)
@given(st.dictionaries(networks, st.integers(1, 99), max_size=12), st.lists(st.ip_addresses(v=4), max_size=8))
def test_a_trie_is_what_a_search_would_be(
    routes: dict[IPv4Network, int], addresses: list[IPv4Address]
) -> None:
    with LpmTrie.create(key=IPv4Network, value=u32, max_entries=16) as trie:
        trie.update_many(routes)
        assert dict(trie.items()) == routes
        for address in [*addresses, *(network.broadcast_address for network in routes)]:
            covering = [network for network in routes if address in network]
            longest = max(covering, key=lambda network: network.prefixlen, default=None)
            assert trie.get(address) == (routes[longest] if longest is not None else None)
        for network in routes:
            del trie[network]
        assert len(trie) == 0
