"""Network devices' features by the names that ethtool knows, switched by SIOCETHTOOL (linux/ethtool.h)."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from packet_tracer.errors import NotSupportedError
from packet_tracer.lab import Node
from packet_tracer.netns import entered

_SIOCETHTOOL = 0x8946
_GET_STRINGS, _GET_SET_INFO, _GET_FEATURES, _SET_FEATURES = 0x1B, 0x37, 0x3A, 0x3B
_FEATURES_SET = 4  # ETH_SS_FEATURES
_NAME_BYTES = 32  # ETH_GSTRING_LEN
_HEADER = struct.Struct("=II")
_GET_BLOCK = struct.Struct("=IIII")  # available, requested, active, never changed
_SET_BLOCK = struct.Struct("=II")  # valid, requested


class NoFeatureError(NotSupportedError):
    """The kernel, or this kind of device, has no such feature to be switched."""


@contextmanager
def switched(node: Node, device: str, wanted: dict[str, bool]) -> Iterator[None]:
    """Have features of a device on or off as wanted, and as they were afterwards."""
    with entered(node.netns):
        before = _switch(device, wanted)
    try:
        yield
    finally:
        with entered(node.netns):
            _switch(device, before)


def _switch(device: str, wanted: dict[str, bool]) -> dict[str, bool]:
    """Switch features and return what they were; NoFeatureError where one is unknown or fixed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        bits = _names(handle, device)
        if unknown := wanted.keys() - bits.keys():
            raise NoFeatureError(f"this kernel lacks {', '.join(sorted(unknown))}")
        size = (len(bits) + 31) // 32
        before = _active(handle, device, size)
        blocks = [[0, 0] for _ in range(size)]
        for name, on in wanted.items():
            block, bit = divmod(bits[name], 32)
            blocks[block][0] |= 1 << bit
            blocks[block][1] |= on << bit
        _ask(
            handle, device, _HEADER.pack(_SET_FEATURES, size) + b"".join(_SET_BLOCK.pack(*b) for b in blocks)
        )
        after = _active(handle, device, size)
    if fixed := [name for name, on in wanted.items() if bool(after >> bits[name] & 1) != on]:
        raise NoFeatureError(f"{device} can't switch {', '.join(fixed)}")
    return {name: bool(before >> bits[name] & 1) for name in wanted}


def _names(handle: socket.socket, device: str) -> dict[str, int]:
    """Return the bits' numbers by the features' names."""
    answer = _ask(handle, device, struct.pack("=IIQI", _GET_SET_INFO, 0, 1 << _FEATURES_SET, 0))
    (count,) = struct.unpack_from("=I", answer, 16)
    request = struct.pack("=III", _GET_STRINGS, _FEATURES_SET, count) + bytes(count * _NAME_BYTES)
    answer = _ask(handle, device, request)
    names = struct.iter_unpack(f"{_NAME_BYTES}s", answer[12:])
    return {name.rstrip(b"\0").decode(): number for number, (name,) in enumerate(names)}


def _active(handle: socket.socket, device: str, size: int) -> int:
    """Return what is on, as one number."""
    answer = _ask(handle, device, _HEADER.pack(_GET_FEATURES, size) + bytes(size * _GET_BLOCK.size))
    blocks = _GET_BLOCK.iter_unpack(answer[_HEADER.size :])
    return sum(active << 32 * place for place, (_, _, active, _) in enumerate(blocks))


def _ask(handle: socket.socket, device: str, request: bytes) -> bytes:
    """Return the request as the kernel has filled it in."""
    value = array.array("B", request)
    fcntl.ioctl(handle, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), value.buffer_info()[0]))
    return value.tobytes()
