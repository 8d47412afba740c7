"""STACK_TRACE and PERF_EVENT_ARRAY: what a program collects and what it sends."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import PerfEventArray, StackTrace, Unsupported
from packet_tracer.events.symbols import Symbols
from tests.kernel.maps.support import covers, load_maps, on_cpu, raises_errno, run, two_cpus


@covers(MapType.STACK_TRACE)
def test_a_stack_has_the_names_of_the_functions_that_called() -> None:
    with load_maps("objects", "trace_stack") as loaded:
        stacks: Any = loaded.maps["stacks"]
        assert isinstance(stacks, StackTrace)
        assert list(stacks) == []
        stack_id = run(loaded.programs["trace_stack"])
        assert list(stacks) == [stack_id]
        addresses = stacks[stack_id]
        assert 2 <= len(addresses) <= stacks.depth == 32
        frames = stacks.frames(stack_id, Symbols().name)
        assert [frame.address for frame in frames] == list(addresses)
        if any(frame.symbol for frame in frames):  # kptr_restrict hides them even from root
            names = [(frame.symbol or "").split("+")[0] for frame in frames]
            assert "bpf_prog_test_run_raw_tp" in names
            assert any(name.endswith("sys_bpf") for name in names)
        assert [frame.symbol for frame in stacks.frames(stack_id)] == [None] * len(addresses)
        del stacks[stack_id]
        assert stack_id not in stacks
        for action in (lambda: stacks[stack_id], lambda: stacks.__delitem__(stack_id)):
            with pytest.raises(KeyError):
                action()
        raises_errno(MapError, errno.EINVAL, lambda: stacks.raw.update(bytes(4), bytes(stacks.value_size)))
        assert not hasattr(stacks, "__setitem__")


@covers(MapType.PERF_EVENT_ARRAY)
def test_samples_arrive_with_the_cpu_they_came_from() -> None:
    with load_maps("objects", "emit") as loaded:
        events: Any = loaded.maps["events"]
        assert isinstance(events, PerfEventArray)
        emit = loaded.programs["emit"]
        assert run(emit, 1, 2) == -errno.ENOENT  # nobody reads
        cpus = two_cpus()
        with events.reader(pages=8) as reader:
            for cpu in cpus:
                with on_cpu(cpu):
                    assert run(emit, 1000 + cpu, 7) == 0
            samples = reader.read(1.0)
            while len(samples) < 2 and (more := reader.read(1.0)):
                samples += more
            assert sorted((sample.cpu, *struct.unpack("=2Q", sample.data[:16])) for sample in samples) == [
                (cpu, 1000 + cpu, 7) for cpu in cpus
            ]
            assert reader.read() == []
            assert reader.fileno() >= 0
            assert (reader.lost, reader.truncated) == (0, 0)
        with pytest.raises(ValueError, match="closed"):
            reader.read()


@covers(MapType.PERF_EVENT_ARRAY)
def test_a_full_perf_buffer_counts_what_it_lost() -> None:
    with load_maps("objects", "emit") as loaded, loaded.maps["events"].reader(pages=1) as reader:  # type: ignore[attr-defined]
        emit = loaded.programs["emit"]
        (cpu, *_) = two_cpus()
        with on_cpu(cpu):
            refused = sum(run(emit, number) != 0 for number in range(300))
        assert refused > 0
        kept = reader.read(1.0)
        assert kept
        assert len(kept) + refused == 300
        with on_cpu(cpu):  # the loss is told with the next sample that fits
            assert run(emit, 1) == 0
        reader.read(1.0)
        assert reader.lost == refused


@covers(MapType.PERF_EVENT_ARRAY)
def test_only_perf_events_are_taken_and_none_is_told() -> None:
    with PerfEventArray.create() as events, open("/proc/self/exe", "rb") as file:
        raises_errno(MapError, errno.EBADF, lambda: events.__setitem__(0, file))
        assert not hasattr(events, "__getitem__")
        raises_errno(Unsupported, 524, lambda: events.raw.lookup(bytes(4)))
