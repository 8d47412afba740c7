"""The table of stages, and the profile made of it."""

from __future__ import annotations

from typing import cast

import pytest

from packet_tracer.bpf.btf_functions import TypeTable
from packet_tracer.errors import NotSupportedError
from packet_tracer.probes.catalogue import PROBES, PROFILES
from packet_tracer.probes.functions import Argument, ArgumentKind, FunctionTable, SkbFunction
from packet_tracer.probes.stages import STAGES, path_functions, stage_of


def function(name: str, kind: ArgumentKind = ArgumentKind.SKB) -> SkbFunction:
    """A function as BTF would describe it."""
    types = cast(TypeTable, None)
    return SkbFunction(name, "vmlinux", 0x1000, 1, (Argument(0, kind),), False, True, types)


def table(*functions: SkbFunction) -> FunctionTable:
    return FunctionTable(functions, {}, "made up")


def test_each_probe_of_the_catalogue_has_a_stage() -> None:
    assert not [probe.name for probe in PROBES if stage_of(probe.name) is None]


def test_a_probe_is_in_one_stage_only() -> None:
    names = [name for members in STAGES.values() for name in members]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    ("probe", "stage"),
    [
        ("ip_forward", "forward"),
        ("netfilter:ipv6:postrouting", "postrouting"),
        ("tcp_v4_rcv returns", "TCP receive"),
        ("ip_rcv@ffffffff81000000", "prerouting"),
        ("kfree_skb", "dropped"),
        ("xdp:firewall#7 returns", "XDP"),
        ("tc:shaper#8", "TC"),
        ("tc:ingress", "TC in"),
        ("ip_options_echo", None),
        ("", None),
    ],
)
def test_the_stage_of_a_probe(probe: str, stage: str | None) -> None:
    assert stage_of(probe) == stage


def test_the_path_is_what_the_kernel_has_of_it_in_its_order() -> None:
    there = table(function("ip_output"), function("ip_rcv"), function("tcp_ack"), function("consume_skb"))
    # tcp_ack is in no stage, and consume_skb is a tracepoint: a function of its name would show it twice.
    assert [found.name for found in path_functions(there)] == ["ip_rcv", "ip_output"]


def test_of_two_that_a_packet_passes_the_one_is_taken_that_all_pass() -> None:
    there = table(function("ip_rcv_core"), function("ip_rcv"), function("ipv6_rcv"))
    assert [found.name for found in path_functions(there)] == ["ip_rcv_core", "ipv6_rcv"]


def test_functions_that_not_every_backend_reaches_are_left_out() -> None:
    there = table(function("do_xdp_generic", ArgumentKind.SKB_POINTER), function("ip_rcv"))
    assert [found.name for found in path_functions(there)] == ["ip_rcv"]


def test_a_kernel_without_any_of_them_is_not_supported() -> None:
    with pytest.raises(NotSupportedError, match="made up"):
        path_functions(table(function("tcp_ack")))


def test_the_profile_names_probes_that_there_are() -> None:
    assert set(PROFILES["path"]) <= {probe.name for probe in PROBES}
