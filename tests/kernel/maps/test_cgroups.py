"""CGROUP_ARRAY, CGROUP_STORAGE, PERCPU_CGROUP_STORAGE: cgroups of our own, and what leaves them."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.bpf.enums import AttachType, MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.link import attach_cgroup
from packet_tracer.bpf.maps import CgroupArray, CgroupKey, CgroupStorage, PerCpuCgroupStorage, PerCpuValues
from packet_tracer.bpf.maps.codecs import u64
from packet_tracer.netns import entered
from tests.kernel.maps.support import (
    covers,
    datagrams,
    directory_of,
    load_maps,
    on_cpu,
    own_cgroup,
    raises_errno,
    run,
    two_cpus,
)


@covers(MapType.CGROUP_ARRAY)
def test_a_program_knows_which_cgroup_it_runs_under() -> None:
    with own_cgroup(enter=True) as mine, own_cgroup() as other, load_maps("objects", "under") as loaded:
        groups: Any = loaded.maps["groups"]
        assert isinstance(groups, CgroupArray)
        under = loaded.programs["under"]
        assert run(under, 0) == -errno.EAGAIN  # the slot is empty
        groups[0] = mine
        with directory_of(other) as fd:
            groups[1] = fd
        assert (run(under, 0), run(under, 1)) == (1, 0)
        del groups[0]
        assert run(under, 0) == -errno.EAGAIN
        with open("/proc/self/exe", "rb") as file:
            raises_errno(MapError, errno.EBADF, lambda: groups.__setitem__(0, file))
        assert not hasattr(groups, "__getitem__")


@covers(MapType.CGROUP_STORAGE, MapType.PERCPU_CGROUP_STORAGE)
def test_an_attached_program_counts_what_leaves_its_cgroup() -> None:
    with own_cgroup(enter=True) as path, load_maps("cgroup") as loaded, lab.Lab() as network:
        sent: Any = loaded.maps["sent"]
        by_cpu: Any = loaded.maps["cpu_sent"]
        assert isinstance(sent, CgroupStorage)
        assert isinstance(by_cpu, PerCpuCgroupStorage)
        key = CgroupKey(path.stat().st_ino, AttachType.CGROUP_INET_EGRESS)
        assert key not in sent
        with pytest.raises(KeyError):
            sent[key] = 1
        first, second = two_cpus()
        with (
            entered(network.client.netns),
            attach_cgroup(loaded.programs["on_egress"], path),
            datagrams() as (sender, listener),
        ):
            assert sent.items() == [(key, 0)]
            for cpu, count in ((first, 2), (second, 3)):
                with on_cpu(cpu):
                    for _ in range(count):
                        sender.sendto(b"x", listener)
            assert sent[key] == 5
            assert (by_cpu[key][first], by_cpu[key][second], by_cpu[key].sum()) == (2, 3, 5)
            sent[key] = 100
            by_cpu[key] = PerCpuValues.same(0)
            sender.sendto(b"x", listener)
            assert sent[key] == 101
            assert by_cpu[key].sum() == 1
            assert len(by_cpu[key]) == possible_cpus()
        assert not hasattr(sent, "__delitem__")


@covers(MapType.CGROUP_STORAGE)
def test_keys_are_a_cgroup_and_a_type_or_a_cgroup_alone() -> None:
    with CgroupStorage.create(value=u64, per_attach_type=False) as shared:
        assert shared.key_size == 8
        assert shared.items() == []
        with pytest.raises(KeyError):
            shared[CgroupKey(1)]
    from packet_tracer.bpf.maps import RawMap

    raises_errno(MapError, errno.EINVAL, lambda: RawMap.create(MapType.CGROUP_STORAGE, 12, 8, 0))
