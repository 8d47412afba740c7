"""Programs at kernel functions: fentry, fexit, kprobe, and many at once. Not every kernel has them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from packet_tracer import lab
from packet_tracer.bpf import link as links
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.constants import patch_constants
from packet_tracer.bpf.enums import AttachType, LinkType
from packet_tracer.bpf.errors import AttachError, ProgramLoadError
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.object import OpenedObject, PreparedObject
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import ENOTSUPP
from tests.kernel.loading import gone, link_exists, open_object, program_exists

PINGS = 3
FEW = 64


@pytest.fixture(scope="module")
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        assert lab.ping(built.route) == 1
        yield built


def prepare(*names: str) -> PreparedObject:
    with open_object("functions") as opened:
        return only(opened, names).prepare()


def only(opened: OpenedObject, names: tuple[str, ...]) -> OpenedObject:
    for spec in opened.programs.values():
        spec.autoload = spec.name in names
    return opened


def count(counts: Map, slot: int) -> int:
    value = counts.raw.lookup(slot.to_bytes(4, sys.byteorder))
    assert value is not None
    return int.from_bytes(value, sys.byteorder)


def load_here(program: PreparedProgram, **options: object) -> Program:
    """Load, or skip where this kernel or this host does not allow the type."""
    try:
        return program.load(**options)  # type: ignore[arg-type]
    except ProgramLoadError as error:
        refused = not error.log and error.errno in (errno.EPERM, errno.EINVAL, ENOTSUPP)
        if refused or "invalid func unknown" in error.log:  # bpf_get_attach_cookie is of Linux 5.15
            pytest.skip(str(error))
        raise


@pytest.mark.requires("fentry")
def test_clones_for_many_functions(network: lab.Lab) -> None:
    """One template, loaded for each function with a constant of its own."""
    types = Btf.vmlinux()
    functions = {0: "icmp_rcv", 1: "ip_rcv", 2: "icmp_echo", 3: "ip_forward"}
    with prepare("on_entry", "on_exit") as prepared, ExitStack() as stack:
        template = prepared.programs["on_entry"]
        attached = []
        for slot, name in functions.items():
            program = load_here(
                template,
                instructions=patch_constants(template, {"slot": slot}),
                attach_btf_id=types.find(name, Kind.FUNCTION),
                target=name,
            )
            stack.enter_context(program)
            assert program.target == name
            attached.append(stack.enter_context(links.attach_tracing(program)))
            assert attached[-1].kind == "fentry"
            assert attached[-1].description == f"on_entry at {name}"
        template = prepared.programs["on_exit"]
        code = patch_constants(template, {"slot": 5})
        program = stack.enter_context(template.load(instructions=code))
        attached.append(stack.enter_context(links.attach_tracing(program)))
        assert (attached[-1].kind, program.target) == ("fexit", "icmp_rcv")
        assert lab.ping(network.route, count=PINGS) == PINGS
        counts = prepared.maps["counts"]
        found = [count(counts, slot) for slot in range(6)]
        # Of the whole host, so at least: requests and replies are received, and forwarded.
        assert 2 * PINGS <= found[0] <= FEW
        assert found[1] >= 4 * PINGS
        assert found[2] >= PINGS
        assert found[3] >= 2 * PINGS
        assert found[5] >= 2 * PINGS
        ids = [each.id for each in attached]
        links.close_all(attached)
    assert gone(link_exists, [each for each in ids if each])
    assert gone(program_exists, [program.id])


@pytest.mark.requires("module-btf")
def test_a_function_of_a_module(network: lab.Lab) -> None:
    if not Path("/sys/kernel/btf/veth").exists():
        pytest.skip("veth is not a module here, or modules have no BTF")
    with open_object("functions") as opened:
        only(opened, ("on_entry",)).programs["on_entry"].set_attach_target("veth:veth_xmit")
        with opened.prepare() as prepared, load_here(prepared.programs["on_entry"]) as program:
            assert program.target == "veth:veth_xmit"
            with links.attach_tracing(program):
                assert lab.ping(network.route, count=PINGS) == PINGS
            assert count(prepared.maps["counts"], 0) >= 4 * PINGS
    with open_object("functions") as opened:  # found without naming the module
        only(opened, ("on_entry",)).programs["on_entry"].set_attach_target("veth_xmit")
        with opened.prepare() as prepared, load_here(prepared.programs["on_entry"]) as program:
            assert program.info().attach_btf_object_id > 0


def test_a_function_that_is_not_there() -> None:
    with open_object("functions") as opened:
        only(opened, ("on_entry",)).programs["on_entry"].set_attach_target("nothing_like_it")
        with opened.prepare() as prepared, pytest.raises(ProgramLoadError) as caught:
            prepared.load()
        assert caught.value.target == "nothing_like_it"
        assert "this kernel has no function nothing_like_it" in str(caught.value)


@pytest.mark.requires("cookie")
def test_cookies(network: lab.Lab) -> None:
    with prepare("on_entry_cookie") as prepared, load_here(prepared.programs["on_entry_cookie"]) as program:
        with links.attach_tracing(program, cookie=6):
            assert lab.ping(network.route, count=PINGS) == PINGS
        assert count(prepared.maps["counts"], 6) >= 2 * PINGS


@pytest.mark.requires("kprobe")
@pytest.mark.parametrize("returns", [False, True])
def test_kprobe(network: lab.Lab, returns: bool) -> None:
    with prepare("on_kprobe") as prepared, prepared.programs["on_kprobe"].load() as program:
        try:
            link = links.attach_kprobe(program, "icmp_rcv", returns=returns)
        except AttachError as error:
            if "has no kprobes" in str(error):
                pytest.skip(str(error))
            raise
        with link:
            assert link.kind == ("kretprobe" if returns else "kprobe")
            assert lab.ping(network.route, count=PINGS) == PINGS
        found = count(prepared.maps["counts"], 0)
        assert 2 * PINGS <= found <= FEW
        assert lab.ping(network.route) == 1
        assert count(prepared.maps["counts"], 0) == found
        with pytest.raises(AttachError, match="kprobe can't be attached to nothing_like_it: E"):
            links.attach_kprobe(program, "nothing_like_it")


@pytest.mark.requires("fentry-multi")
def test_fentry_multi(network: lab.Lab) -> None:
    if reason := links.tracing_multi_missing():
        pytest.skip(reason)
    kernel = Btf.vmlinux().enum("bpf_attach_type") | Btf.vmlinux().enum("bpf_link_type")
    for member in (
        AttachType.TRACE_FENTRY_MULTI,
        AttachType.TRACE_FEXIT_MULTI,
        AttachType.TRACE_FSESSION_MULTI,
        LinkType.TRACING_MULTI,
    ):
        prefix = "BPF" if isinstance(member, AttachType) else "BPF_LINK_TYPE"
        assert kernel[f"{prefix}_{member.name}"] == member
    functions = [Btf.vmlinux().find(name, Kind.FUNCTION) for name in ("icmp_rcv", "ip_forward")]
    with prepare("on_entry_cookie") as prepared:
        loaded = prepared.programs["on_entry_cookie"]
        # It is loaded for no function.
        with load_here(
            loaded, attach_btf_id=0, expected_attach_type=AttachType.TRACE_FENTRY_MULTI
        ) as program:
            with links.attach_tracing_multi(program, functions, cookies=[3, 4]) as link:
                assert (link.kind, link.description) == ("fentry-multi", "on_entry_cookie at 2 functions")
                assert lab.ping(network.route, count=PINGS) == PINGS
            counts = prepared.maps["counts"]
            assert 2 * PINGS <= count(counts, 3) <= FEW
            found = count(counts, 4)
            assert found >= 2 * PINGS
            assert lab.ping(network.route) == 1
            assert count(counts, 4) == found
            with pytest.raises(ValueError, match="1 cookies for 2 functions"):
                links.attach_tracing_multi(program, functions, cookies=[3])
            gone = Btf.vmlinux().find("start_kernel", Kind.FUNCTION)  # ran at boot, and was freed
            with pytest.raises(AttachError, match="fentry-multi can't be attached to 2 functions: E"):
                links.attach_tracing_multi(program, [functions[0], gone], cookies=[3, 4])


@pytest.mark.requires("kprobe-multi")
def test_kprobe_multi(network: lab.Lab) -> None:
    with prepare("on_kprobe_multi") as prepared:
        program = load_here(prepared.programs["on_kprobe_multi"])
        with program:
            try:
                link = links.attach_kprobe_multi(program, symbols=["icmp_rcv", "ip_forward"], cookies=[3, 4])
            except AttachError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
                    pytest.skip(str(error))
                raise
            with link:
                assert (link.kind, link.description) == ("kprobe-multi", "on_kprobe_multi at 2 functions")
                assert lab.ping(network.route, count=PINGS) == PINGS
            counts = prepared.maps["counts"]
            assert 2 * PINGS <= count(counts, 3) <= FEW
            assert count(counts, 4) >= 2 * PINGS
            with pytest.raises(ValueError, match="1 cookies for 2 functions"):
                links.attach_kprobe_multi(program, symbols=["icmp_rcv", "ip_forward"], cookies=[3])
            with pytest.raises(ValueError, match="either addresses or symbols"):
                links.attach_kprobe_multi(program)
