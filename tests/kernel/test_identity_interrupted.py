"""Exact identity where an interrupt meets a program that runs already, which the kernel then leaves out."""

from __future__ import annotations

import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, islice

import pytest

from packet_tracer.bpf.btf import Btf, Kind, Struct
from packet_tracer.bpf.enums import ProgramType
from packet_tracer.bpf.loaded import loaded_programs
from packet_tracer.bpf.program import Program
from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError
from packet_tracer.lab import Lab
from tests.kernel.capturing import running, udp_socket
from tests.labelled import number_in, payload, payload_template
from tests.mechanism_networks import netem

pytestmark = pytest.mark.requires("fentry")

PORT = 7001


@contextmanager
def one_cpu() -> Iterator[None]:
    """Have all that this process does be done by one CPU, timers and what they send included."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def free_buffers() -> None:
    """Have the kernel free some hundred buffers in one call, where an interrupt may come between."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with sender, receiver:
        sender.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sender.send(b".")
        receiver.recv(1 << 16)


def told_what_was_left_out() -> bool:
    """Whether this kernel counts that, and leaves anything out at all: since Linux 5.12 (9ed9e9ba2337)."""
    btf = Btf.vmlinux()
    info = btf.type(btf.find("bpf_prog_info", Kind.STRUCT))
    assert isinstance(info, Struct)
    return any(member.name == "recursion_misses" for member in info.members)


def left_out() -> list[int]:
    """Return how often the kernel left out each program that watches over the end of buffers."""
    found = []
    for each in loaded_programs([ProgramType.TRACING]):
        if each.name in ("skb_free_head", "skb_release_data"):
            with Program.from_id(each.id) as program:
                found.append(program.info().recursion_misses)
    return found


def enough(seconds: float) -> bool:
    """Whether it went on for long enough: until an interrupt has met a program, where that can be told."""
    return seconds > 20 or (seconds > 3 and (any(left_out()) or not told_what_was_left_out()))


def test_a_packet_that_ends_in_an_interrupt_is_not_taken_for_the_next_in_its_place() -> None:
    """A timer's interrupts have packets sent, one by one, to where nobody takes them, and they end in there.

    Now and then that is while the program for the end of buffers is running on the same CPU, and what is sent
    next has the buffers that it was not told of.
    """
    template, numbers = payload_template(40), count()
    with Lab() as network, ExitStack() as stack:
        nodes = [node.name for node in network.nodes]
        tracer = stack.enter_context(
            running(Tracer(filter=f"udp dst port {PORT}", netns=nodes, functions=["ip_rcv"]))
        )
        try:
            # Slower than they are sent on any host: else none waits for a timer, and no interrupt sends any.
            netem(stack, network.client, "c0", "rate 500kbit")
        except NotSupportedError as error:
            pytest.skip(str(error))
        sender = stack.enter_context(udp_socket(network.client))
        with one_cpu():
            begun = time.monotonic()
            while not enough(time.monotonic() - begun):
                for number in islice(numbers, 200):
                    sender.sendto(payload(template, number), ("198.51.100.2", PORT))
                free_buffers()
        tracer.stop()
        missed = left_out()
        numbers_by_id: dict[int, set[int]] = defaultdict(set)
        for event in tracer.events():
            if found := number_in(event.data):
                numbers_by_id[event.packet_id].add(found[0])
    assert len(numbers_by_id) > 1000
    assert any(missed) or not told_what_was_left_out(), "no interrupt met the program"
    assert {len(each) for each in numbers_by_id.values()} == {1}
