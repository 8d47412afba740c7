"""Map tests name the types they test; where the kernel lacks one, the skip says so, after probing."""

from __future__ import annotations

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.features import probe_map_type


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "map_types(*types): the functional test of these map types")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A skip for want of a type is a failure where PTRACE_REQUIRE has ``map:TYPE``."""
    for item in items:
        for mark in item.iter_markers("map_types"):
            item.add_marker(
                pytest.mark.requires(*(f"map:{MapType(kind).name.lower()}" for kind in mark.args))
            )


@pytest.fixture(autouse=True)
def _types_there(request: pytest.FixtureRequest) -> None:
    for mark in request.node.iter_markers("map_types"):
        for kind in mark.args:
            feature = probe_map_type(kind)
            if feature.supported is False:
                pytest.skip(f"{feature.name}: {feature.reason}")
