"""The probes by name: the catalogue against the kernel side's numbers and programs, and choosing."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.bpf.object import BpfObject
from packet_tracer.errors import UsageError
from packet_tracer.events._layout import Hook, ProbeId
from packet_tracer.probes.catalogue import PROBES, PROFILES, by_id, probe_names, select
from packet_tracer.probes.objects import objects_directory

NAMES = [probe.name for probe in PROBES]


def test_names_and_ids_are_each_ones_own() -> None:
    assert len(set(NAMES)) == len(PROBES) == 21
    assert len({probe.probe_id for probe in PROBES}) == len(PROBES)
    assert all(0 < probe.probe_id < ProbeId.FUNCTION for probe in PROBES)
    assert probe_names() == {probe.probe_id: probe.name for probe in PROBES}
    assert all(by_id(probe.probe_id) is probe for probe in PROBES)
    with pytest.raises(KeyError):
        by_id(63)


def test_every_number_of_the_kernel_side_has_a_probe() -> None:
    """Were one added to records.h, it would show here."""
    first = {ProbeId.NETFILTER_IPV4, ProbeId.NETFILTER_IPV6}
    expected = {int(each) for each in ProbeId if each not in first | {ProbeId.FUNCTION}}
    expected |= {start + hook for start in first for hook in range(5)}
    assert {int(probe.probe_id) for probe in PROBES} == expected


def test_programs_are_in_the_objects() -> None:
    for name in {probe.object for probe in PROBES}:
        with BpfObject.open(objects_directory() / f"{name}.bpf.o") as opened:
            there = set(opened.programs)
        for probe in PROBES:
            if probe.object == name:
                assert set(probe.programs) <= there, probe.name


def test_what_they_are_attached_to() -> None:
    at_interfaces = {probe.name for probe in PROBES if probe.needs_interface}
    assert at_interfaces == {"xdp", "tc:ingress", "tc:egress"}
    in_namespaces = {probe.name for probe in PROBES if probe.needs_netns}
    assert in_namespaces == at_interfaces | {name for name in NAMES if name.startswith("netfilter:")}
    for probe in PROBES:
        assert (probe.argument is not None) == (probe.hook == Hook.NETFILTER)
        if probe.argument is not None:
            family, hook = probe.argument
            start = ProbeId.NETFILTER_IPV4 if family == "ipv4" else ProbeId.NETFILTER_IPV6
            assert probe.probe_id == start + hook
            assert probe.name.split(":")[1] == family


def test_summaries_are_one_line_each() -> None:
    for probe in PROBES:
        assert probe.summary.strip() == probe.summary
        assert 10 < len(probe.summary) < 80
        assert "\n" not in probe.summary


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_probes_that_need_nothing(profile: str) -> None:
    chosen = select(profile=profile)
    assert [probe.name for probe in chosen] == [name for name in NAMES if name in PROFILES[profile]]
    assert not any(probe.needs_netns for probe in chosen)


def test_default_is_the_default_profile() -> None:
    assert select() == select(profile="tracepoints")
    assert select(["xdp"]) != select()


def test_profile_and_patterns_add_up() -> None:
    assert {probe.name for probe in select(["xdp", "tc:*"], "drops")} == {
        "xdp",
        "tc:ingress",
        "tc:egress",
        "kfree_skb",
    }


@given(
    st.lists(st.sampled_from([*NAMES, "*", "net_*", "netfilter:*:forward", "?dp", "tc:[ie]*"]), min_size=1)
)
def test_choice_is_in_the_catalogues_order_and_each_once(patterns: list[str]) -> None:
    chosen = [probe.name for probe in select(patterns)]
    assert chosen == [
        name for name in NAMES if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["kfree_skp"], r"no probe 'kfree_skp' \(is kfree_skb.* meant\?\); `ptrace probes` lists them"),
        (["KFREE_SKB"], r"no probe 'KFREE_SKB'"),
        (["xdp", "nothing*"], r"no probe 'nothing\*'"),
        ([""], r"no probe ''"),
        (["tc"], r"no probe 'tc'"),
    ],
)
def test_mistakes(patterns: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select(patterns)


def test_no_such_profile() -> None:
    with pytest.raises(UsageError, match="no profile 'all'; there are: path, "):
        select(profile="all")


def test_objects_lie_where_the_package_is() -> None:
    assert objects_directory().parent == Path(select.__code__.co_filename).parents[1] / "_objects"
