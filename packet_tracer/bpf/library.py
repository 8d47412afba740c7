"""Calling libbpf: what it said meanwhile, opts structs, and errno out of its return values."""

from __future__ import annotations

import os
from typing import Any, Final, TypeAlias

from packet_tracer.bpf._libbpf import ffi, lib

#: A C pointer or struct of cffi's: its members are not known to the type checker.
CData: TypeAlias = Any

#: BPF_OBJ_NAME_LEN without its terminator: the kernel cuts or refuses longer names.
NAME_LENGTH: Final = 15

lib.ptrace_log_install()


def clear_messages() -> None:
    """Forget what libbpf said so far in this thread; call it before what may fail."""
    lib.ptrace_log_clear()


def messages() -> str:
    """Return what libbpf said in this thread since :func:`clear_messages` (the last 4 KiB of it)."""
    return ffi.string(lib.ptrace_log_text()).decode(errors="replace")


def options(name: str, **members: object) -> CData:
    """Return a pointer to a zeroed libbpf opts struct with its size and the given members set."""
    opts = ffi.new(f"struct {name} *")
    opts.sz = ffi.sizeof(opts[0])
    for member, value in members.items():
        setattr(opts, member, value)
    return opts


def text(pointer: CData) -> str:
    """Return a C string, "" for NULL."""
    return ffi.string(pointer).decode(errors="replace") if pointer else ""


def object_name(name: str) -> bytes:
    """Return a name as the kernel takes it: at most 15 of letters, digits, ``_`` and ``.``."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)
    return cleaned[:NAME_LENGTH].encode()


def possible_cpus() -> int:
    """Return the number of possible CPUs: the number of values of an element of a per-CPU map."""
    count = lib.libbpf_num_possible_cpus()
    if count < 0:
        raise OSError(-count, os.strerror(-count))
    return count


def version() -> str:
    """Return libbpf's version: ``"1.7"``."""
    return text(lib.libbpf_version_string()).removeprefix("v")


class Descriptor:
    """Owner of a file descriptor, which is closed exactly once. Base of programs, maps and links."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The file descriptor, close-on-exec. ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._fd

    def fileno(self) -> int:
        """Return :attr:`fd`."""
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the file descriptor; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
