"""BPF maps: a class for every type, with typed keys and values."""

from packet_tracer.bpf.maps.generic import Map, RawMap

__all__ = ["Map", "RawMap"]
