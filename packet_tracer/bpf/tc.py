"""The clsact queueing discipline and its BPF filters, over rtnetlink(7): TC for kernels before TCX.

libbpf's ``bpf_tc_*`` do the same but open a socket at each call, in whatever network namespace the thread is
in by then. Here one socket stays open, so that a filter is removed from the namespace that it was put into.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

from packet_tracer.bpf.program import Program

_NLMSG = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10  # errors without a copy of the request
_REQUEST, _ACK, _ECHO, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x8, 0x300, 0x200, 0x400
_ERROR, _DONE = 2, 3
_NEWQDISC, _DELQDISC, _NEWTFILTER, _DELTFILTER, _GETTFILTER = 36, 37, 44, 45, 46
_CLSACT = 0xFFFFFFF1
_CLSACT_HANDLE = 0xFFFF0000
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1
# The lower the earlier. Not 0: then the kernel chooses, before what is there, even a 0 that can't be deleted.
_FIRST, _LAST = range(1, 17), range(0xFFFF, 0xFFEF, -1)
_ALL_PROTOCOLS = socket.htons(0x0003)


class Clsact:
    """One BPF filter behind an interface's clsact queueing discipline."""

    def __init__(self, ifindex: int, direction: Literal["ingress", "egress"]) -> None:
        self._ifindex = ifindex
        self._parent = _PARENTS[direction]
        self._made_queue = False
        self._handle = 0
        self._priority = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)

    @classmethod
    def attach(
        cls, program: Program, ifindex: int, direction: Literal["ingress", "egress"], *, first: bool
    ) -> Clsact:
        """Add the filter, and the queueing discipline if there is none. Raises OSError."""
        clsact = cls(ifindex, direction)
        try:
            clsact._add_queue()
            try:
                clsact._add_filter_among_others(program, _FIRST if first else _LAST)
            except OSError:
                clsact._remove_queue()
                raise
        except OSError:
            clsact._socket.close()
            raise
        return clsact

    def detach(self) -> None:
        """Remove what :meth:`attach` added."""
        message = self._message(self._parent, self._handle, self._priority) + _attribute(_TCA_KIND, b"bpf\0")
        try:
            # The interface or the queueing discipline may be gone, and the filter with it.
            with suppress(OSError):
                self._request(_DELTFILTER, _ACK, message)
            self._remove_queue()
        finally:
            self._socket.close()

    def _message(self, parent: int, handle: int = 0, priority: int = 0) -> bytes:
        return _TCMSG.pack(socket.AF_UNSPEC, self._ifindex, handle, parent, priority << 16 | _ALL_PROTOCOLS)

    def _queue_message(self) -> bytes:
        header = _TCMSG.pack(socket.AF_UNSPEC, self._ifindex, _CLSACT_HANDLE, _CLSACT, 0)
        return header + _attribute(_TCA_KIND, b"clsact\0")

    def _add_queue(self) -> None:
        try:
            self._request(_NEWQDISC, _ACK | _CREATE | _EXCL, self._queue_message())
            self._made_queue = True
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise

    def _remove_queue(self) -> None:
        if not self._made_queue:
            return
        self._made_queue = False
        with suppress(OSError):
            if not any(self._filters(parent) for parent in _PARENTS.values()):
                self._request(_DELQDISC, _ACK, self._queue_message())

    def _add_filter_among_others(self, program: Program, priorities: Iterable[int]) -> None:
        refusal = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for priority in priorities:
            try:
                self._add_filter(program, priority)
                return
            except OSError as error:
                # A priority belongs to one kind of filter: if another kind is there, try the next.
                if error.errno != errno.EINVAL:
                    raise
                refusal = error
        raise refusal

    def _add_filter(self, program: Program, priority: int) -> None:
        attributes = (
            _attribute(_TCA_BPF_FD, struct.pack("=I", program.fd))
            + _attribute(_TCA_BPF_NAME, program.name.encode() + b"\0")
            + _attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        )
        message = (
            self._message(self._parent, 0, priority)
            + _attribute(_TCA_KIND, b"bpf\0")
            + _attribute(_TCA_OPTIONS, attributes)
        )
        # The echo says which handle and priority the kernel chose.
        for type_, body in self._request(_NEWTFILTER, _ACK | _ECHO | _CREATE | _EXCL, message):
            if type_ == _NEWTFILTER:
                _, _, self._handle, _, info = _TCMSG.unpack_from(body)
                self._priority = info >> 16

    def _filters(self, parent: int) -> int:
        header = _TCMSG.pack(socket.AF_UNSPEC, self._ifindex, 0, parent, 0)
        return sum(type_ == _NEWTFILTER for type_, _ in self._request(_GETTFILTER, _DUMP, header))

    def _request(self, type_: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Send a request and return the answers before its end. Raises OSError with the kernel's errno."""
        header = _NLMSG.pack(_NLMSG.size + len(body), type_, flags | _REQUEST, 1, 0)
        self._socket.send(header + body)
        answers: list[tuple[int, bytes]] = []
        while True:
            received = self._socket.recv(1 << 16)
            while len(received) >= _NLMSG.size:
                length, answer, *_ = _NLMSG.unpack_from(received)
                content = received[_NLMSG.size : length]
                received = received[(length + 3) & ~3 :]
                if answer in (_ERROR, _DONE):
                    number = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    if number > 0:
                        raise OSError(number, os.strerror(number))
                    return answers
                answers.append((answer, content))


def _attribute(type_: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), type_) + payload + bytes(-len(payload) % 4)
