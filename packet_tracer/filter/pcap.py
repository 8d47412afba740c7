"""libpcap, found at run time: pcap-filter text to classic BPF, and libpcap's own answer as an oracle.

Only the shared library is needed, no headers: it is opened at the first expression, so a host
without it loses filter expressions and nothing else. pcap-filter(7) is the language.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from typing import Any

from packet_tracer.filter import cbpf
from packet_tracer.filter.errors import FilterError, PcapMissingError

#: What libpcap calls a packet's greatest length; also what an accepting program returns.
SNAPSHOT_LENGTH = 262144
_NETMASK_UNKNOWN = 0xFFFFFFFF
_LIBRARIES = ("libpcap.so.1", "libpcap.so.0.8", "libpcap.A.dylib")


class LinkType(IntEnum):
    """What a packet's bytes begin with: DLT_EN10MB or DLT_RAW (pcap-linktype(7))."""

    ETHERNET = 1
    RAW = 12


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction))]


class _PacketHeader(ctypes.Structure):
    _fields_ = [
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured_length", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    ]


#: Older libpcap keeps the parser's state in globals; one expression at a time costs nothing.
_lock = threading.Lock()


@cache
def _library() -> Any:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
        library.pcap_compile.argtypes = [
            ctypes.c_void_p,
            ctypes.POINTER(_Program),
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        ]
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = [ctypes.c_void_p]
        library.pcap_freecode.restype = None
        library.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
        library.pcap_close.restype = None
        library.pcap_close.argtypes = [ctypes.c_void_p]
        library.pcap_offline_filter.argtypes = [
            ctypes.POINTER(_Program),
            ctypes.POINTER(_PacketHeader),
            ctypes.c_char_p,
        ]
        library.bpf_validate.argtypes = [ctypes.POINTER(_Instruction), ctypes.c_int]
        library.pcap_lib_version.restype = ctypes.c_char_p
        return library
    raise PcapMissingError()


def version() -> str:
    """Return libpcap's own version text. Raises PcapMissingError without libpcap."""
    text: bytes = _library().pcap_lib_version()
    return text.decode(errors="replace")


def compile_expression(
    expression: str, link_type: LinkType = LinkType.ETHERNET, *, optimize: bool = True
) -> tuple[cbpf.Instruction, ...]:
    """Compile pcap-filter text for packets of ``link_type``.

    Host and port names are resolved now, once, as tcpdump does. Raises FilterError with libpcap's
    message, and PcapMissingError without libpcap.
    """
    if "\0" in expression:
        raise FilterError(expression, "an expression cannot contain a NUL character")
    library = _library()
    with _lock:
        handle = library.pcap_open_dead(int(link_type), SNAPSHOT_LENGTH)
        if not handle:
            raise MemoryError("pcap_open_dead")
        try:
            program = _Program()
            text = expression.encode(errors="surrogateescape")
            if library.pcap_compile(handle, ctypes.byref(program), text, int(optimize), _NETMASK_UNKNOWN):
                raise FilterError(expression, library.pcap_geterr(handle).decode(errors="replace"))
            try:
                rows = program.instructions[: program.length]
                return tuple(cbpf.Instruction(row.code, row.jt, row.jf, row.k) for row in rows)
            finally:
                library.pcap_freecode(ctypes.byref(program))
        finally:
            library.pcap_close(handle)


class OfflineFilter:
    """libpcap's own interpreter (pcap_offline_filter(3PCAP)): the answer that ours must equal."""

    def __init__(self, program: Sequence[cbpf.Instruction]) -> None:
        self._rows = (_Instruction * len(program))(*(_Instruction(*row) for row in program))
        self._program = _Program(len(program), self._rows)
        library = _library()
        # Its interpreter aborts the process at an instruction that it doesn't know.
        if not library.bpf_validate(self._rows, len(program)):
            raise FilterError("", "not a valid classic BPF program")
        self._run = library.pcap_offline_filter

    def matches(self, packet: bytes, *, length: int | None = None) -> bool:
        """Whether the program accepts ``packet``, of which ``length`` bytes were on the wire."""
        header = _PacketHeader(0, 0, len(packet), len(packet) if length is None else length)
        return bool(self._run(ctypes.byref(self._program), ctypes.byref(header), packet))
