"""Which functions handle packets on the running kernel, checked against what libbpf and the kernel say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from packet_tracer.bpf.btf import Btf, Function, Kind, Prototype, Reference
from packet_tracer.probes.functions import ArgumentKind, FunctionTable, SkbFunction

pytestmark = pytest.mark.requires("btf")


@pytest.fixture(scope="module")
def table() -> FunctionTable:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        pytest.skip("this kernel has no BTF")
    return FunctionTable.read()


def _named(table: FunctionTable, name: str) -> SkbFunction:
    (function,) = [one for one in table.functions if one.name == name and one.module == "vmlinux"]
    return function


def test_count(table: FunctionTable, record_property: Callable[[str, object], None]) -> None:
    """pwru finds 1354 on Debian's 5.10 and 1520 on its 7.2; const arguments alone add a hundred."""
    assert len(table.functions) > 1380
    own = [one for one in table.functions if one.module == "vmlinux"]  # modules come and go
    record_property("functions that handle packets", len(own))
    kinds = Counter(argument.kind for one in table.functions for argument in one.arguments)
    assert set(kinds) == set(ArgumentKind)
    assert sum(one.returns_skb and not one.arguments for one in table.functions) > 30


@pytest.mark.parametrize(
    ("name", "index", "kind", "returns_skb"),
    [
        ("ip_rcv", 0, ArgumentKind.SKB, False),
        ("tcp_ack", 1, ArgumentKind.SKB, False),
        ("skb_copy", 0, ArgumentKind.SKB, True),
        ("skb_copy_datagram_iter", 0, ArgumentKind.SKB, False),
        ("sock_queue_rcv_skb_reason", 1, ArgumentKind.SKB, False),
        ("xdp_do_redirect", 1, ArgumentKind.XDP_BUFF, False),
        ("xdp_return_frame", 0, ArgumentKind.XDP_FRAME, False),
    ],
)
def test_well_known(
    table: FunctionTable, name: str, index: int, kind: ArgumentKind, returns_skb: bool
) -> None:
    if name == "sock_queue_rcv_skb_reason" and not any(one.name == name for one in table.functions):
        name = "sock_queue_rcv_skb"  # its name before 5.19 (c1b8a56755ee)
    function = _named(table, name)
    assert (function.arguments[0].index, function.arguments[0].kind) == (index, kind)
    assert function.returns_skb is returns_skb
    assert function.prototype.startswith(("struct sk_buff *" if returns_skb else "", "int ", "void "))
    assert f"{name}(" in function.prototype


def test_only_returned(table: FunctionTable) -> None:
    function = _named(table, "__alloc_skb")
    assert function.returns_skb
    assert not function.arguments


def test_no_tracepoint_machinery(table: FunctionTable) -> None:
    names = [one.name for one in table.functions]
    assert not [name for name in names if name.startswith(("__probestub_", "__traceiter_", "perf_trace_"))]


def test_addresses_tell_namesakes_apart(table: FunctionTable) -> None:
    places = Counter((one.module, one.name, one.address) for one in table.functions)
    assert set(places.values()) == {1}
    assert all(one.address for one in table.functions)
    reachable = Counter((one.module, one.name) for one in table.functions if one.trampoline)
    assert set(reachable.values()) == {1}


def test_only_what_ftrace_lists(table: FunctionTable) -> None:
    path = Path(table.source)
    if not path.is_absolute() or path.name != "available_filter_functions":
        assert not any(one.trampoline is False for one in table.functions)
        pytest.skip(f"ftrace doesn't say what it can trace: {table.source}")
    listed = Counter(line.replace("\t", " ") for line in path.read_text().splitlines())
    for one in table.functions:
        key = one.name if one.module == "vmlinux" else f"{one.name} [{one.module}]"
        assert listed[key] > 0, key


def test_positions_agree_with_libbpf(table: FunctionTable) -> None:
    """The same question, asked one type at a time: each argument's place, among the first four hundred."""
    btf = Btf.vmlinux()
    known: dict[str, Function] = {one.name: one for one in btf.functions("sk_buff")}
    checked = 0
    for one in [one for one in table.functions if one.module == "vmlinux"][:400]:
        function = btf.type(one.btf_id)
        assert isinstance(function, Reference)
        assert (function.kind, function.name) == (Kind.FUNCTION, one.name)
        prototype = btf.type(function.type_id)
        assert isinstance(prototype, Prototype)
        places = [
            place for place, parameter in enumerate(prototype.parameters) if _is_skb(btf, parameter.type_id)
        ]
        wide = any(
            btf.size_of(parameter.type_id) > 8 for parameter in prototype.parameters if parameter.type_id
        )
        if not wide:
            assert [a.index for a in one.arguments if a.kind is ArgumentKind.SKB] == places, one.name
            assert known[one.name].argument == (places[0] if places else -1)
            checked += 1
    assert checked > 350


def _is_skb(btf: Btf, type_id: int) -> bool:
    pointer = btf.resolve(type_id)
    if not isinstance(pointer, Reference) or pointer.kind is not Kind.POINTER or not pointer.type_id:
        return False
    return btf.resolve(pointer.type_id).name == "sk_buff"
