"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packet_tracer.bpf.enums import ProgramType
from packet_tracer.bpf.features import probe_program_type
from packet_tracer.lab import Lab
from packet_tracer.probes.function_probes import BACKENDS, Backend
from tests.kernel.filling import Filler


@pytest.fixture(scope="module")
def network() -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.requires(name)) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


#: What a backend takes to see returns.
_RETURNING: dict[Backend, str] = {
    "fentry": "fentry",
    "fentry-multi": "fentry-multi",
    "kprobe-multi": "kprobe-session",
    "kprobe": "kprobe",
}


@pytest.fixture(
    params=[pytest.param(each, marks=pytest.mark.requires(_RETURNING[each])) for each in BACKENDS]
)
def returning_backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


@pytest.fixture(scope="module")
def syscall_programs() -> None:
    feature = probe_program_type(ProgramType.SYSCALL)
    if not feature:
        pytest.skip(f"the rings are filled by syscall programs (Linux 5.14): {feature.reason}")


@pytest.fixture
def filler() -> Iterator[Filler]:
    with Filler() as made:
        yield made
