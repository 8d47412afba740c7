"""What the kernel says of a map: ``bpf_map_info``, and what only ``/proc/self/fdinfo`` tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from packet_tracer.bpf.maps.generic import Map


class MapInfo(NamedTuple):
    """A map's properties. Sizes in bytes; ``type`` in words; ``flags`` and ``extra`` as it was made with.

    ``memory_bytes`` is what the kernel counts for it (fdinfo's ``memlock``), None where it does not say;
    for types that allocate entry by entry it grows with them.
    """

    id: int
    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    extra: int
    frozen: bool
    memory_bytes: int | None
    btf_id: int


def read_info(map: Map) -> MapInfo:  # noqa: A002
    """Return a map's properties as they are now."""
    lines = Path(f"/proc/self/fdinfo/{map.fd}").read_text().splitlines()
    more = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return MapInfo(
        id=map.id,
        name=map.name,
        type=map.type_name,
        key_size=map.key_size,
        value_size=map.value_size,
        max_entries=map.max_entries,
        flags=map.flags,
        extra=map.extra,
        frozen=more.get("frozen") == "1",
        memory_bytes=int(more["memlock"]) if "memlock" in more else None,
        btf_id=map.btf_id,
    )
