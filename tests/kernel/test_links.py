"""Programs attached to each kind of hook see exactly the packets sent, and nothing stays behind."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from packet_tracer import lab
from packet_tracer.bpf import link as links
from packet_tracer.bpf.enums import AttachType
from packet_tracer.bpf.errors import AttachError, ProgramLoadError
from packet_tracer.bpf.object import LoadedObject
from packet_tracer.errors import EXIT_NOT_SUPPORTED
from packet_tracer.netns import entered
from tests.kernel.loading import counts, gone, link_exists, load, open_object, program_exists

PINGS = 3


@pytest.fixture(scope="module")
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        assert lab.ping(built.route) == 1  # neighbours are known from now on
        yield built


def tc(network: lab.Lab, *words: str) -> str:
    with entered(network.router.netns):
        done = subprocess.run(["tc", *words], capture_output=True, text=True, check=True)
    return done.stdout


def ifindex(network: lab.Lab) -> int:
    """The router's interface towards the client: it receives what the client sends."""
    return network.router.ifindex(network.router.interfaces[0])


def ping(network: lab.Lab) -> None:
    assert lab.ping(network.route, count=PINGS) == PINGS


def detached(loaded: LoadedObject, *attached: links.Link) -> None:
    """Close all and check that the kernel has neither links nor programs of it any more."""
    ids = [each.id for each in attached if not each.closed]
    programs = [each.id for each in loaded.programs.values()]
    links.close_all(attached)
    assert all(each.closed for each in attached)
    links.close_all(attached)
    loaded.close()
    assert gone(link_exists, [each for each in ids if each is not None])
    assert gone(program_exists, programs)


@contextmanager
def skip_unknown(hook: str) -> Iterator[None]:
    """Skip where the kernel says that it does not know the hook; an old one answers EINVAL."""
    try:
        yield
    except (AttachError, ProgramLoadError) as error:
        if error.exit_code != EXIT_NOT_SUPPORTED:
            raise
        pytest.skip(f"this kernel has no {hook}: {error}")


def test_typed_tracepoint(network: lab.Lab) -> None:
    with load("loader", ["on_receive"], netns_inode=network.router.netns.inode) as loaded:
        link = links.attach_tracing(loaded.programs["on_receive"])
        assert (link.kind, link.description) == ("tp_btf", "on_receive at netif_receive_skb")
        assert link.id is not None
        ping(network)
        # Requests in, replies in from the other side.
        assert counts(loaded)["tp_btf"] == 2 * PINGS
        detached(loaded, link)


def test_raw_tracepoint(network: lab.Lab) -> None:
    with load("loader", ["on_receive_raw"], netns_inode=network.router.netns.inode) as loaded:
        link = links.attach_raw_tracepoint(loaded.programs["on_receive_raw"], "netif_receive_skb")
        ping(network)
        assert counts(loaded)["raw_tp"] == 2 * PINGS
        with pytest.raises(AttachError, match="raw_tp can't be attached to nothing_like_it: ENOENT"):
            links.attach_raw_tracepoint(loaded.programs["on_receive_raw"], "nothing_like_it")
        detached(loaded, link)


def test_classic_tracepoint(network: lab.Lab) -> None:
    with load("loader", ["on_receive_classic"]) as loaded:
        program = loaded.programs["on_receive_classic"]
        with pytest.raises(AttachError, match="there is no such tracepoint"):
            links.attach_tracepoint(program, "net", "nothing_like_it")
        try:
            link = links.attach_tracepoint(program, "net", "netif_receive_skb")
        except AttachError as error:
            if error.errno == errno.ENOENT:
                pytest.skip("tracefs is not mounted")
            raise
        ping(network)
        assert counts(loaded)["tracepoint"] >= 2 * PINGS  # of the whole host
        detached(loaded, link)


def test_one_tracing_program_twice(network: lab.Lab) -> None:
    """Two links, two programs, of two loaders at once: each counts for itself."""
    inode = network.router.netns.inode
    with (
        load("loader", ["on_receive"], netns_inode=inode) as first,
        load("loader", ["on_receive"], netns_inode=inode) as second,
        links.attach_tracing(first.programs["on_receive"]),
        links.attach_tracing(second.programs["on_receive"]),
    ):
        ping(network)
        assert counts(first)["tp_btf"] == counts(second)["tp_btf"] == 2 * PINGS


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_xdp(network: lab.Lab, mode: str) -> None:
    with load("loader", ["on_xdp"]) as loaded, entered(network.router.netns):
        link = links.attach_xdp(loaded.programs["on_xdp"], ifindex(network), mode=mode)  # type: ignore[arg-type]
        assert link.mode == ("generic" if mode == "generic" else "native")  # veth has it
        assert link.id is not None
        ping(network)
        assert counts(loaded)["xdp"] == PINGS
        detached(loaded, link)


def test_xdp_falls_back_to_generic(network: lab.Lab) -> None:
    """The loopback device's driver has no XDP."""
    with load("loader", ["on_xdp"]) as loaded, entered(network.router.netns):
        with pytest.raises(AttachError, match="its driver has no XDP; generic mode works with any"):
            links.attach_xdp(loaded.programs["on_xdp"], 1, mode="native")
        with links.attach_xdp(loaded.programs["on_xdp"], 1) as link:
            assert link.mode == "generic"
            assert "generic" in link.description


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_xdp_is_not_shared(network: lab.Lab, mode: str) -> None:
    with load("loader", ["on_xdp"]) as loaded, entered(network.router.netns):
        program, device = loaded.programs["on_xdp"], ifindex(network)
        with links.attach_xdp(program, device, mode=mode):  # type: ignore[arg-type]
            for attempt in ("auto", "native", "generic"):
                with pytest.raises(AttachError) as caught:
                    links.attach_xdp(program, device, mode=attempt)  # type: ignore[arg-type]
                assert "another XDP program is attached there" in str(caught.value)
                assert "\n" not in str(caught.value)


def test_no_such_interface() -> None:
    with load("loader", ["on_xdp", "on_tc"]) as loaded:
        with pytest.raises(AttachError, match="xdp can't be attached to interface 99999999"):
            links.attach_xdp(loaded.programs["on_xdp"], 99999999)
        with pytest.raises(AttachError, match="attached to interface 99999999 ingress: ENODEV"):
            links.attach_tcx(loaded.programs["on_tc"], 99999999, "ingress", backend="clsact")


@pytest.mark.parametrize(
    "backend", ["auto", pytest.param("tcx", marks=pytest.mark.requires("tcx")), "clsact"]
)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_tc(network: lab.Lab, backend: str, direction: str) -> None:
    with load("loader", ["on_tc"]) as loaded:
        program = loaded.programs["on_tc"]
        with entered(network.router.netns), skip_unknown("TCX"):
            link = links.attach_tcx(program, ifindex(network), direction, backend=backend)  # type: ignore[arg-type]
        with link:
            assert link.kind in (("tcx", "clsact") if backend == "auto" else (backend,))
            ping(network)
            assert counts(loaded)["tc"] == PINGS
        # Closed in another network namespace than it was made in.
        detached(loaded, link)
        ping(network)
        assert "clsact" not in tc(network, "qdisc", "show")


def test_clsact_is_only_removed_by_who_made_it_and_when_unused(network: lab.Lab) -> None:
    device = network.router.interfaces[0]
    with load("loader", ["on_tc"]) as loaded:
        program = loaded.programs["on_tc"]

        def attach(direction: str) -> links.Link:
            with entered(network.router.netns):
                return links.attach_tcx(program, ifindex(network), direction, backend="clsact")  # type: ignore[arg-type]

        maker = attach("ingress")
        user = attach("egress")
        ping(network)
        assert counts(loaded)["tc"] == 2 * PINGS
        maker.close()
        assert "clsact" in tc(network, "qdisc", "show", "dev", device)  # in use
        ping(network)
        assert counts(loaded)["tc"] == 3 * PINGS
        user.close()
        assert "clsact" in tc(network, "qdisc", "show", "dev", device)  # not made by it
        assert tc(network, "filter", "show", "dev", device, "egress") == ""
        attach("egress").close()
        assert "clsact" in tc(network, "qdisc", "show", "dev", device)
        tc(network, "qdisc", "del", "dev", device, "clsact")


def test_clsact_beside_another_kind_of_filter(network: lab.Lab) -> None:
    device = network.router.interfaces[0]
    tc(network, "qdisc", "add", "dev", device, "clsact")
    try:
        tc(
            network,
            "filter",
            "add",
            "dev",
            device,
            "ingress",
            "prio",
            "1",
            *"u32 match u32 0 0 flowid 1:1".split(),
        )
        with load("loader", ["on_tc"]) as loaded, entered(network.router.netns):
            link = links.attach_tcx(loaded.programs["on_tc"], ifindex(network), "ingress", backend="clsact")
            shown = tc(network, "filter", "show", "dev", device, "ingress")
            assert "on_tc" in shown
            assert "u32" in shown
            link.close()
            shown = tc(network, "filter", "show", "dev", device, "ingress")
            assert "on_tc" not in shown
            assert "u32" in shown
    finally:
        tc(network, "qdisc", "del", "dev", device, "clsact")


def test_tc_goes_first(network: lab.Lab) -> None:
    """A program that comes later sees a packet before one that was there already."""
    with load("loader", ["on_tc"]) as first, load("loader", ["on_tc"]) as second:
        with entered(network.router.netns):
            one = links.attach_tcx(first.programs["on_tc"], ifindex(network), "ingress")
            two = links.attach_tcx(second.programs["on_tc"], ifindex(network), "ingress")
        with one, two:
            ping(network)
        assert counts(first)["tc"] == counts(second)["tc"] == PINGS


@pytest.mark.requires("netfilter-link")
@pytest.mark.parametrize(("family", "version"), [("ipv4", 4), ("ipv6", 6)])
def test_netfilter(network: lab.Lab, family: str, version: int) -> None:
    with skip_unknown("netfilter links"):
        loaded = load("loader", ["on_netfilter"])
    with loaded:
        program = loaded.programs["on_netfilter"]
        with entered(network.router.netns):
            link = links.attach_netfilter(program, family, 2, -100)  # type: ignore[arg-type]
            with pytest.raises(AttachError, match="netfilter can't be attached to"):
                links.attach_netfilter(program, family, 99, 0)  # type: ignore[arg-type]
        assert lab.ping(network.route, version=version, count=PINGS) == PINGS  # type: ignore[arg-type]
        assert counts(loaded)["netfilter"] == 2 * PINGS  # forwarded both ways
        detached(loaded, link)


def test_cgroup() -> None:
    """Our own cgroup would see other sockets of the machine: nothing is counted, only attached."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.procs").exists():
        found = [
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if " cgroup2 " in line
        ]
        if not found:
            pytest.skip("no cgroup v2 is mounted")
        root = Path(found[0])
    mine = root / "ptrace-test-links"
    mine.mkdir(exist_ok=True)
    try:
        with load("loader", ["on_egress"]) as loaded:
            link = links.attach_cgroup(loaded.programs["on_egress"], mine)
            assert link.kind == "cgroup"
            with pytest.raises(AttachError, match="cgroup can't be attached to /proc"):
                links.attach_cgroup(loaded.programs["on_egress"], "/proc")
            with pytest.raises(AttachError, match="ENOENT"):
                links.attach_cgroup(loaded.programs["on_egress"], mine / "nothing")
            with pytest.raises(AttachError):
                links.attach_cgroup(loaded.programs["on_egress"], mine, AttachType.CGROUP_DEVICE)
            detached(loaded, link)
    finally:
        mine.rmdir()


def test_hooks_this_kernel_does_not_know(network: lab.Lab) -> None:
    """What an old kernel answers for a new attach type is an exit code of its own."""
    error = AttachError("netfilter", "ipv4 hook 0", errno=errno.EINVAL)
    assert error.exit_code == EXIT_NOT_SUPPORTED


def test_everything_closes_even_if_one_fails(network: lab.Lab) -> None:
    class Broken(links.Link):
        def close(self) -> None:
            raise OSError(errno.EIO, "broken")

    with ExitStack() as stack:
        loaded = [stack.enter_context(load("loader", ["on_receive"])) for _ in range(3)]
        attached = [links.attach_tracing(each.programs["on_receive"]) for each in loaded]
        seen: list[int] = []
        with pytest.raises(OSError, match="broken"):
            links.close_all([attached[0], Broken(-1, "x", "y"), *attached[1:]], progress=seen.append)
        assert all(each.closed for each in attached)
        assert seen == [1, 2, 3, 4]


def test_names_of_specs() -> None:
    with open_object("loader") as opened:
        assert opened.programs["on_xdp"].section == "xdp.frags"
        opened.programs["on_receive"].set_attach_target("kfree_skb")
        for spec in opened.programs.values():
            spec.autoload = spec.name == "on_receive"
        with opened.prepare() as prepared, prepared.load() as loaded:
            assert loaded.programs["on_receive"].target == "kfree_skb"
