"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packet_tracer.lab import Lab
from packet_tracer.probes.function_probes import BACKENDS, Backend


@pytest.fixture(scope="module")
def network() -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.requires(name)) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name
