"""docs/maps.md is what the classes say, and every example in it runs."""

from __future__ import annotations

import doctest
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.bpf import maps
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.features import probe_map_type
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.maps import codecs
from packet_tracer.bpf.maps.registry import CLASSES
from packet_tracer.bpf.object import LoadedObject
from packet_tracer.bpf.program import Program
from packet_tracer.netns import entered
from tests.kernel.maps.docs import TARGET, render
from tests.kernel.maps.support import directory_of, load_maps, own_cgroup, require_inode_storage, xdp_socket


@pytest.fixture(scope="module")
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        yield built


def helpers(network: lab.Lab) -> dict[str, Any]:
    """Return what the page says that its examples take for granted."""

    @contextmanager
    def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
        with ExitStack() as stack, entered(network.client.netns):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            yield client, stack.enter_context(listener.accept()[0])

    @contextmanager
    def reuseport_socket() -> Iterator[socket.socket]:
        with entered(network.client.netns), socket.socket(type=socket.SOCK_DGRAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", 0))
            yield one

    @contextmanager
    def xdp_program() -> Iterator[Program]:
        with load_maps("objects", "landing") as loaded:
            yield loaded.programs["landing"]

    @contextmanager
    def cgroup_directory() -> Iterator[int]:
        with own_cgroup() as path, directory_of(path) as fd:
            yield fd

    def congestion_control() -> LoadedObject:
        return load_maps("struct_ops")

    return {
        **{name: getattr(maps, name) for name in maps.__all__},
        **{name: getattr(codecs, name) for name in codecs.__all__},
        "IPv4Address": IPv4Address,
        "IPv4Network": IPv4Network,
        "os": os,
        "socket": socket,
        "possible_cpus": possible_cpus,
        "xdp_socket": xdp_socket,
        "connection": connection,
        "reuseport_socket": reuseport_socket,
        "xdp_program": xdp_program,
        "cgroup_directory": cgroup_directory,
        "congestion_control": congestion_control,
    }


def test_the_page_is_what_the_classes_say() -> None:
    assert TARGET.read_text() == render(), "run python -m tests.kernel.maps.docs"


@pytest.mark.parametrize("kind", sorted(CLASSES), ids=lambda kind: kind.name)
def test_the_example_of_every_type_runs(kind: MapType, network: lab.Lab) -> None:
    section = re.search(rf"^### {kind.name}\n(.*?)(?=^### |\Z)", TARGET.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    blocks = re.findall(r"```pycon\n(.*?)```", section[1], re.DOTALL)
    assert blocks, "every type has an example"
    feature = probe_map_type(kind)
    if feature.supported is False:
        pytest.skip(f"{feature.name}: {feature.reason}")
    if kind == MapType.INODE_STORAGE:
        require_inode_storage()
    for block in blocks:
        run_example(block, kind.name, helpers(network))


def test_the_other_examples_of_the_classes_run(network: lab.Lab) -> None:
    """Methods have examples too."""
    finder = doctest.DocTestFinder(recurse=True)
    names = helpers(network)
    ran = 0
    for cls in CLASSES.values():
        for example in finder.find(cls, cls.__name__, globs=names):
            if example.name != cls.__name__ and example.examples:
                run_example(example.docstring or "", example.name, names)
                ran += 1
    assert ran > 0


def run_example(text: str, name: str, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(text, dict(names), name, None, None)
    assert test.examples
    output: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
    assert results.failed == 0, "".join(output)
