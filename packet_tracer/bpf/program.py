"""Programs: before they are loaded (:class:`PreparedProgram`) and in the kernel (:class:`Program`)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.enums import AttachType, ProgramFlags, ProgramType
from packet_tracer.bpf.errors import BtfError, ProgramLoadError, describe
from packet_tracer.bpf.library import CData, Descriptor, object_name, options, text
from packet_tracer.bpf.targets import kernel_target
from packet_tracer.errors import BpfError

#: The verifier's first buffer, and the largest it takes on every kernel (libbpf: BPF_LOG_BUF_SIZE).
_LOG_SIZE = 1 << 16
_LOG_SIZE_MAX = (1 << 24) - 1

#: Prefix and kind of a kernel target by attach type (libbpf: btf_get_kernel_prefix_kind); else a function.
_TARGETS = {
    AttachType.TRACE_RAW_TP: ("btf_trace_", Kind.TYPEDEF),
    AttachType.TRACE_ITER: ("bpf_iter_", Kind.FUNCTION),
    AttachType.LSM_MAC: ("bpf_lsm_", Kind.FUNCTION),
    AttachType.LSM_CGROUP: ("bpf_lsm_", Kind.FUNCTION),
}


class ProgramInfo(NamedTuple):
    """What the kernel knows of a program (``struct bpf_prog_info``).

    ``run_count`` and ``run_time_ns`` only count while :class:`packet_tracer.bpf.features.RunStatistics` (or
    the sysctl ``kernel.bpf_stats_enabled``) is on. ``recursion_misses`` counts since Linux 5.12, 0 before.
    """

    id: int
    name: str
    type: int
    loaded_at_ns: int
    map_ids: tuple[int, ...]
    btf_id: int
    run_count: int
    run_time_ns: int
    recursion_misses: int
    verified_instructions: int
    attach_btf_id: int
    attach_btf_object_id: int


class TestRun(NamedTuple):
    """Result of a test run: what the program returned, the packet and context it left, nanoseconds a run."""

    return_value: int
    data: bytes
    context: bytes
    duration_ns: int


class Program(Descriptor):
    """A program in the kernel, by file descriptor: a context manager that closes it.

    ``section`` and ``target`` say where it came from and what it was loaded for; both are "" or None for one
    opened by id.
    """

    def __init__(self, fd: int, *, section: str = "", target: str | None = None) -> None:
        """Take over a program's file descriptor."""
        super().__init__(fd)
        self.section = section
        self.target = target
        try:
            info = self._raw_info()
        except BpfError:
            self.close()
            raise
        self.id: int = info.id
        self.name: str = text(info.name)
        self.type: int = info.type
        self.expected_attach_type: int | None = None
        self.flags = 0

    @classmethod
    def from_fd(cls, fd: int) -> Program:
        """Return a program over a duplicate of a file descriptor, which stays its owner's."""
        return cls(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))

    @classmethod
    def from_id(cls, id: int) -> Program:  # noqa: A002
        """Open a program by id. Raises BpfError: ENOENT where there is none, EPERM without CAP_SYS_ADMIN."""
        fd = lib.bpf_prog_get_fd_by_id(id)
        if fd < 0:
            raise BpfError(f"program {id} can't be opened: {describe(-fd)}", errno=-fd)
        return cls(fd)

    @classmethod
    def from_pin(cls, path: Path | str) -> Program:
        """Open the program pinned at a path of a BPF file system."""
        fd = lib.bpf_obj_get(os.fsencode(path))
        if fd < 0:
            raise BpfError(f"program at {path} can't be opened: {describe(-fd)}", errno=-fd)
        return cls(fd)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Program {self.name!r} id {self.id}>"

    def _raw_info(self, info: CData = None) -> CData:
        info = info or ffi.new("struct bpf_prog_info *")
        result = lib.bpf_prog_get_info_by_fd(self.fd, info, ffi.new("__u32 *", ffi.sizeof(info[0])))
        if result < 0:
            raise BpfError(f"fd {self.fd} is not a program: {describe(-result)}", errno=-result)
        return info

    def info(self) -> ProgramInfo:
        """Ask the kernel about the program."""
        first = self._raw_info()
        info, ids = ffi.new("struct bpf_prog_info *"), ffi.new("__u32[]", max(first.nr_map_ids, 1))
        info.nr_map_ids, info.map_ids = first.nr_map_ids, int(ffi.cast("uintptr_t", ids))
        self._raw_info(info)
        return ProgramInfo(
            id=info.id,
            name=text(info.name),
            type=info.type,
            loaded_at_ns=info.load_time,
            map_ids=tuple(ids[index] for index in range(min(first.nr_map_ids, info.nr_map_ids))),
            btf_id=info.btf_id,
            run_count=info.run_cnt,
            run_time_ns=info.run_time_ns,
            recursion_misses=info.recursion_misses,
            verified_instructions=info.verified_insns,
            attach_btf_id=info.attach_btf_id,
            attach_btf_object_id=info.attach_btf_obj_id,
        )

    def main_function(self) -> int:
        """Return the type id of the program's own function in the BTF that ``info().btf_id`` names.

        0 where it was loaded without a description of its functions. The subprograms' follow it.
        """
        first = self._raw_info()
        if not first.nr_func_info:
            return 0
        info, size = ffi.new("struct bpf_prog_info *"), first.func_info_rec_size
        records = ffi.new("char[]", size)
        info.func_info_rec_size, info.nr_func_info = size, 1
        info.func_info = int(ffi.cast("uintptr_t", records))
        self._raw_info(info)
        _offset, type_id = struct.unpack_from("=II", ffi.buffer(records))
        return int(type_id) if info.nr_func_info else 0

    def test_run(
        self,
        data: bytes = b"",
        *,
        context: bytes | None = None,
        repeat: int = 1,
        output_size: int | None = None,
        flags: int = 0,
        cpu: int = 0,
    ) -> TestRun:
        """Run the program on given bytes (bpf(2), BPF_PROG_TEST_RUN).

        ``data`` is a packet (at least 14 bytes for network programs; none for ``syscall`` and raw
        tracepoint ones), ``context`` the program's context struct. ``output_size`` bounds the returned data,
        256 more than given unless told. Raises BpfError; ENOTSUPP where the type can't be run so.
        """
        opts = options("bpf_test_run_opts", flags=flags, cpu=cpu)
        if repeat > 1:
            opts.repeat = repeat
        keep = []
        output = left = None
        if data:
            keep.append(ffi.from_buffer(data))
            opts.data_in, opts.data_size_in = keep[0], len(data)
            size = len(data) + 256 if output_size is None else output_size
            if size:  # the kernel takes a size of 0 for no bound at all
                opts.data_size_out = size
                opts.data_out = output = ffi.new("char[]", size)
        if context is not None:
            keep.append(ffi.from_buffer(context))
            opts.ctx_in, opts.ctx_size_in = keep[-1], len(context)
            # These two take a context but don't give one back.
            if self.type not in (ProgramType.SYSCALL, ProgramType.RAW_TRACEPOINT):
                opts.ctx_out = left = ffi.new("char[]", len(context))
                opts.ctx_size_out = len(context)
        result = lib.bpf_prog_test_run_opts(self.fd, opts)
        if result < 0:
            raise BpfError(f"program {self.name} can't be test-run: {describe(-result)}", errno=-result)
        return TestRun(
            return_value=opts.retval,
            data=bytes(ffi.buffer(output, opts.data_size_out)) if output is not None else b"",
            context=bytes(ffi.buffer(left, opts.ctx_size_out)) if left is not None else b"",
            duration_ns=opts.duration,
        )

    def pin(self, path: Path | str) -> None:
        """Keep the program alive at a path of a BPF file system."""
        result = lib.bpf_obj_pin(self.fd, os.fsencode(path))
        if result < 0:
            raise BpfError(f"{self.name} can't be pinned at {path}: {describe(-result)}", errno=-result)


class PreparedProgram(NamedTuple):
    """A program fitted to this kernel but not yet verified: relocated, its maps in it by file descriptor.

    It can be loaded many times, changed each time, for as long as its object is not closed. Instructions take
    8 bytes each; ``func_info`` and ``line_info`` are arrays of ``struct bpf_func_info`` (8 bytes) and
    ``struct bpf_line_info`` (16). ``functions`` says at which instruction each function of it starts, itself
    first.
    """

    name: str
    section: str
    type: int
    expected_attach_type: int
    flags: int
    instructions: bytes
    func_info: bytes
    func_info_record_size: int
    line_info: bytes
    line_info_record_size: int
    functions: tuple[tuple[str, int], ...]
    license: str
    target: str | None
    btf_fd: int

    def load(
        self,
        *,
        instructions: bytes | None = None,
        func_info: bytes | None = None,
        line_info: bytes | None = None,
        attach_btf_id: int | None = None,
        attach_btf_obj_fd: int | None = None,
        attach_prog_fd: int | None = None,
        expected_attach_type: int | None = None,
        flags: int | None = None,
        name: str | None = None,
        target: str | None = None,
        log: bool = True,
    ) -> Program:
        """Have the kernel verify and take it (bpf(2), BPF_PROG_LOAD). What is not given is the object's.

        A tracing program whose section or :meth:`ProgramSpec.set_attach_target` names a target is loaded for
        it unless ``attach_btf_id`` says otherwise; ``target`` then is its name in errors. The verifier writes
        its log only on a second try, after a refusal, and not even then with ``log=False``.

        Raises ProgramLoadError; BtfError where the kernel does not have the target.
        """
        code = self.instructions if instructions is None else instructions
        functions = self.func_info if func_info is None else func_info
        lines = self.line_info if line_info is None else line_info
        attach_type = self.expected_attach_type if expected_attach_type is None else expected_attach_type
        opts = options("bpf_prog_load_opts", expected_attach_type=attach_type)
        opts.prog_flags = self.flags if flags is None else flags
        keep = [ffi.from_buffer(code), ffi.from_buffer(functions), ffi.from_buffer(lines)]
        if self.btf_fd >= 0:
            opts.prog_btf_fd = self.btf_fd
            opts.func_info, opts.func_info_rec_size = keep[1], self.func_info_record_size
            opts.func_info_cnt = len(functions) // self.func_info_record_size
            opts.line_info, opts.line_info_rec_size = keep[2], self.line_info_record_size
            opts.line_info_cnt = len(lines) // self.line_info_record_size
        opened = None
        given = attach_btf_id is not None or attach_prog_fd is not None
        if self.needs_target and self.target is not None and not given:
            target = target or self.target
            attach_btf_id, opened = self._kernel_target(attach_type)
            attach_btf_obj_fd = opened
        opts.attach_btf_id = attach_btf_id or 0
        # The two share a place in the system call.
        if attach_prog_fd is not None:
            opts.attach_prog_fd = attach_prog_fd
        elif attach_btf_obj_fd is not None:
            opts.attach_btf_obj_fd = attach_btf_obj_fd
        try:
            fd = self._load(object_name(name or self.name), keep[0], len(code) // 8, opts, target, log)
        finally:
            if opened is not None:
                os.close(opened)
        program = Program(fd, section=self.section, target=target)
        program.expected_attach_type = attach_type
        program.flags = opts.prog_flags
        return program

    @property
    def needs_target(self) -> bool:
        """Whether the verifier must know what the program will be attached to."""
        return self.type in (ProgramType.TRACING, ProgramType.LSM)

    def _kernel_target(self, attach_type: int) -> tuple[int, int | None]:
        prefix, kind = _TARGETS.get(attach_type, ("", Kind.FUNCTION))  # type: ignore[call-overload]
        try:
            return kernel_target(self.target or "", prefix, kind)
        except BtfError as error:
            raise ProgramLoadError(
                self.name, section=self.section, target=self.target, errno=errno.ENOENT, reason=str(error)
            ) from None

    def _load(
        self, name: bytes, code: CData, count: int, opts: CData, target: str | None, want_log: bool
    ) -> int:
        license_ = self.license.encode()
        instructions = ffi.cast("struct bpf_insn *", code)

        def load() -> int:
            return lib.bpf_prog_load(self.type, name, license_, instructions, count, opts)

        fd = load()
        if fd == -errno.EINVAL and opts.prog_flags & ProgramFlags.XDP_HAS_FRAGS:
            # Flag unknown before Linux 5.18 (c2f2cdbeffda): do without, on small frames it is the same.
            opts.prog_flags &= ~ProgramFlags.XDP_HAS_FRAGS
            without = load()
            if without >= 0:
                return without
            opts.prog_flags |= ProgramFlags.XDP_HAS_FRAGS
        size, said = _LOG_SIZE, ""
        while fd < 0 and want_log:
            buffer = ffi.new("char[]", size)
            opts.log_buf, opts.log_size, opts.log_level = buffer, size, 1
            opts.log_true_size = 0
            fd = load()
            said = text(buffer)
            if fd != -errno.ENOSPC or size == _LOG_SIZE_MAX:
                break
            size = min(max(size * 4, opts.log_true_size + 1), _LOG_SIZE_MAX)
        if fd < 0:
            raise ProgramLoadError(
                self.name,
                section=self.section,
                target=target,
                errno=-fd,
                log=said,
                reason=self._reason(-fd, said),
            )
        return fd

    def _reason(self, number: int, log: str) -> str:
        if log.strip():
            return ""
        if number == errno.EINVAL:
            return "this kernel does not know its type, its attach type or a flag"
        if number == errno.E2BIG:
            return f"it has {len(self.instructions) // 8} instructions, more than this kernel takes"
        return ""


def prepared_program(
    program: CData, object_btf: Btf | None, *, license_: str, target: str | None, btf_fd: int
) -> PreparedProgram:
    """Copy what is needed to load a program out of libbpf's object."""

    def copied(pointer: CData, size: int) -> bytes:
        return bytes(ffi.buffer(pointer, size)) if size else b""

    function_size, line_size = ffi.sizeof("struct bpf_func_info"), ffi.sizeof("struct bpf_line_info")
    function_count = lib.bpf_program__func_info_cnt(program)
    functions = lib.bpf_program__func_info(program)
    section = text(lib.bpf_program__section_name(program))
    names = tuple(
        (object_btf.type(functions[index].type_id).name, functions[index].insn_off)
        for index in range(function_count)
        if object_btf is not None
    )
    return PreparedProgram(
        name=text(lib.bpf_program__name(program)),
        section=section,
        type=lib.bpf_program__type(program),
        expected_attach_type=lib.bpf_program__expected_attach_type(program),
        flags=lib.bpf_program__flags(program) | section_flags(section, lib.bpf_program__type(program)),
        instructions=copied(lib.bpf_program__insns(program), lib.bpf_program__insn_cnt(program) * 8),
        func_info=copied(functions, function_count * function_size),
        func_info_record_size=function_size,
        line_info=copied(
            lib.bpf_program__line_info(program), lib.bpf_program__line_info_cnt(program) * line_size
        ),
        line_info_record_size=line_size,
        functions=names,
        license=license_,
        target=target,
        btf_fd=btf_fd,
    )


def section_flags(section: str, type_: int) -> int:
    """Return the load flags that a section's name stands for (libbpf adds them itself only when it loads)."""
    head = section.lstrip("?").split("/", 1)[0]
    if type_ == ProgramType.XDP:
        return ProgramFlags.XDP_HAS_FRAGS if head.startswith("xdp.frags") else 0
    sleepable = head.endswith(".s") or head == "syscall"
    return ProgramFlags.SLEEPABLE if sleepable else 0


def section_target(section: str) -> str | None:
    """Return what a section's name says a program attaches to: ``"kfree_skb"`` of ``"tp_btf/kfree_skb"``."""
    return section.split("/", 1)[1] if "/" in section else None


__all__ = ["PreparedProgram", "Program", "ProgramInfo", "TestRun"]
