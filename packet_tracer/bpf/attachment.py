"""What every link has, whatever it is attached to."""

from __future__ import annotations

import os
from pathlib import Path

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.library import Descriptor
from packet_tracer.bpf.program import Program


class Link(Descriptor):
    """A program attached to something, until closed or until the process ends.

    ``kind`` is the sort of link, ``description`` says what is attached to what.
    """

    def __init__(self, fd: int, kind: str, description: str) -> None:
        super().__init__(fd)
        self.kind = kind
        self.description = description

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} {self.description}>"

    @property
    def id(self) -> int | None:
        """The link's id in the kernel; None for a tracepoint on kernels before links had ids."""
        info = ffi.new("struct bpf_link_info *")
        result = lib.bpf_link_get_info_by_fd(self.fd, info, ffi.new("__u32 *", ffi.sizeof(info[0])))
        return info.id if result == 0 else None

    def pin(self, path: Path | str) -> None:
        """Keep the program attached, at a path of a BPF file system, beyond this process."""
        result = lib.bpf_obj_pin(self.fd, os.fsencode(path))
        if result < 0:
            raise AttachError("pin", str(path), errno=-result)


def created(result: int, kind: str, target: str, program: Program, reason: str = "") -> Link:
    if result < 0:
        raise AttachError(kind, target, errno=-result, reason=reason)
    return Link(result, kind, f"{program.name} at {target}")
