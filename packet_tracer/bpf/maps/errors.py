"""What a codec refuses. (What the kernel refuses is in :mod:`packet_tracer.bpf.maps.failures`.)"""

from __future__ import annotations

from packet_tracer.errors import BpfError


class CodecError(BpfError, ValueError):
    """A value cannot be laid out as a key or value of this map, or bytes cannot be read as one."""
