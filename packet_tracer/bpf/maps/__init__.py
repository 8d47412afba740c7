"""BPF maps: the generic :class:`Map` over bytes; typed classes, one a map type, stand beside it."""

from packet_tracer.bpf.maps.generic import Map

__all__ = ["Map"]
