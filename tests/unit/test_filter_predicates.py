"""The filters beside the expression: what they turn into, and what they refuse."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from packet_tracer.errors import UsageError
from packet_tracer.filter.addresses import AddressSet
from packet_tracer.filter.predicates import Predicates, cgroup_id


def test_nothing_lets_all_pass() -> None:
    values = Predicates().rodata()
    assert not any(values[name] for name in values if not isinstance(values[name], bytes))


def test_each_becomes_configuration() -> None:
    values = Predicates(
        netns=(5, 6),
        interfaces=((5, 1), (6, 2)),
        mark=0x1F,
        mark_mask=0x0F,
        pids=(7, 8),
        comms=("curl", "sshd"),
        cgroups=(1 << 40,),
        length=(60, 1500),
        drop_reasons=(3,),
        addresses=AddressSet.parse(["10.0.0.0/8"]),
    ).rodata()
    assert values["filter_netns_count"] == 2
    assert struct.unpack_from("=4I", values["filter_interfaces"]) == (5, 1, 6, 2)  # type: ignore[arg-type]
    assert values["filter_mark"] == 0x0F
    assert struct.unpack_from("=3I", values["filter_pids"]) == (7, 8, 0)  # type: ignore[arg-type]
    assert values["filter_comm_count"] == 2
    assert values["filter_comms"][:32] == b"curl".ljust(16, b"\0") + b"sshd".ljust(16, b"\0")  # type: ignore[index]
    assert struct.unpack_from("=Q", values["filter_cgroups"])[0] == 1 << 40  # type: ignore[arg-type]
    assert (values["filter_length"], values["filter_length_minimum"]) == (1, 60)
    assert values["filter_length_maximum"] == 1500
    assert values["filter_drop_reason_count"] == 1
    assert values["filter_addresses"] == 1
    sizes = {name: len(value) for name, value in values.items() if isinstance(value, bytes)}
    assert sizes == {
        "filter_netns": 64,
        "filter_interfaces": 256,
        "filter_pids": 64,
        "filter_comms": 256,
        "filter_cgroups": 64,
        "filter_drop_reasons": 128,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pids": tuple(range(17))}, "17 processes given, at most 16"),
        ({"comms": ("a" * 16,)}, "15 bytes"),
        ({"cgroups": tuple(range(9))}, "9 cgroups"),
        ({"drop_reasons": tuple(range(33))}, "33 drop reasons"),
        ({"length": (100, 50)}, "length"),
        ({"length": (-1, 50)}, "length"),
        ({"netns": tuple(range(17))}, "network namespaces"),
        ({"interfaces": ((1, 1),) * 33}, "interfaces"),
    ],
)
def test_what_there_is_no_room_for(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Predicates(**arguments)  # type: ignore[arg-type]


def test_prefixes_are_read() -> None:
    found = AddressSet.parse(
        ["# ours", "10.0.0.0/8", "10.1.2.3  # one", "", "fd00::/16", "::1", "10.0.0.0/8"]
    )
    keys4 = {found.keys4[start : start + 8] for start in range(0, len(found.keys4), 8)}
    assert keys4 == {struct.pack("=I4B", 8, 10, 0, 0, 0), struct.pack("=I4B", 32, 10, 1, 2, 3)}
    assert len(found.keys6) == 2 * 20
    assert found.count == 4
    assert found.sizes() == {"addresses4": 2, "addresses6": 2}


@pytest.mark.parametrize(
    "line", ["10.0.0.0/33", "10.0.0/8", "fd00::/129", "host.example", "10.0.0.1/x", "10.0.0.1/-1"]
)
def test_a_line_that_is_no_prefix_is_named(line: str) -> None:
    with pytest.raises(UsageError, match=r"file:2: "):
        AddressSet.parse(["10.0.0.1", line], source="file")


def test_a_file_that_is_empty_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(UsageError, match="No such file"):
        AddressSet.read(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no address"):
        AddressSet.read(str(path))


def test_a_hundred_thousand_prefixes_are_read_in_less_than_a_second() -> None:
    lines = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32" for n in range(100_000)]
    begin = time.process_time()
    assert AddressSet.parse(lines).count == 100_000
    assert time.process_time() - begin < 1


def test_a_cgroup_is_a_number_or_a_directory() -> None:
    assert cgroup_id("4711") == 4711
    with pytest.raises(UsageError, match="no cgroup"):
        cgroup_id("/nowhere/at/all")
