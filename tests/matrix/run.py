"""One command in one guest: QEMU without acceleration, the host's root over virtiofs, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import BinaryIO, ParamSpec

from tests.matrix import cards
from tests.matrix.errors import GuestDied, GuestStumbled, GuestTimeout, MissingProgram
from tests.matrix.guest import build_initramfs
from tests.matrix.kernels import Kernel

P = ParamSpec("P")

#: Distributions agree on neither the place nor the package of virtiofsd.
_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
#: What a kernel says that meets a breakpoint nobody knows of.
_BREAKPOINT = "Oops: int3"
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "modprobe": "kmod",
    "busybox": "busybox-static",
}
#: `nokaslr` and `mitigations=off` save emulated work; expedited RCU makes detaching probes bearable.
_KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 reboot=t mitigations=off random.trust_cpu=on audit=0 rcupdate.rcu_expedited=1"
)
#: How many lines of a dead guest's console are shown.
_CONSOLE_LINES = 25
_FAILURES = ("Kernel panic", "BUG:", "Oops", "matrix: ", "sysrq: Trigger a crash")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended.

    ``boot_seconds`` is the guest's uptime when it began, ``seconds`` the whole run's wall time; ``report`` is
    what it wrote to the file that ``$MATRIX_REPORT`` names.
    """

    status: int
    boot_seconds: float
    seconds: float
    report: bytes


def missing_packages() -> list[str]:
    """Return the names of the Debian packages that a run needs and this machine lacks."""
    missing = {package for program, package in _PROGRAMS.items() if not shutil.which(program)}
    if not any(Path(path).exists() for path in _VIRTIOFSD):
        missing.add("qemu-system-common or virtiofsd")
    return sorted(missing)


def _once_more(boot: Callable[P, Outcome]) -> Callable[P, Outcome]:
    """Run a second time where the guest died of its emulation."""

    @wraps(boot)
    def run(*positional: P.args, **named: P.kwargs) -> Outcome:
        try:
            return boot(*positional, **named)
        except GuestStumbled as error:
            named["stderr"].write(f"matrix: {error}\nmatrix: booting it once more\n".encode())
            return boot(*positional, **named)

    return run


@_once_more
def run(
    kernel: Kernel,
    command: str,
    *,
    directory: Path,
    stdout: BinaryIO,
    stderr: BinaryIO,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
    memory: str = "2G",
    cpus: int = 1,
    count_instructions: bool = False,
    verbose: bool = False,
) -> Outcome:
    """Boot ``kernel``, run ``command`` as root in ``directory`` and return how it ended.

    The guest sees this machine's root copy-on-write: what it writes is gone with it. Of other file systems it
    sees only ``directory``. Output is passed on as it comes. ``timeout`` is in seconds, from power-on.
    ``count_instructions``: the guest's clock goes by a nanosecond with each instruction, whatever time that
    takes, and its CPUs take turns: what is measured by it is the same on every host, however busy.
    A guest that dies of its emulation is booted, and the command run, once more. Raises MissingProgram,
    GuestDied, GuestTimeout.
    """
    if missing := missing_packages():
        raise MissingProgram(f"not installed: {' '.join(missing)}")
    shares = {} if directory.stat().st_dev == Path("/").stat().st_dev else {"work": directory}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="matrix-") as temporary, ExitStack() as stack:
        work = Path(temporary)
        initramfs = work / "initramfs"
        initramfs.write_bytes(
            build_initramfs(
                kernel,
                command,
                directory=directory,
                environment={cards.GUEST: "1"} | dict(environment or {}),
                shares=shares,
            )
        )
        console = work / "console"
        loudness = "loglevel=6" if verbose else "quiet"
        qemu = [
            *("qemu-system-x86_64", "-accel", "tcg", "-machine", "q35,memory-backend=memory", "-cpu", "max"),
            *(
                "-smp",
                str(cpus),
                "-m",
                memory,
                "-object",
                f"memory-backend-memfd,id=memory,size={memory},share=on",
            ),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs), "-serial", f"file:{console}"),
            *("-append", f"{_KERNEL_ARGUMENTS} {loudness}", "-device", "virtio-serial-pci"),
        ]
        qemu += cards.arguments()
        if count_instructions:
            qemu += ["-icount", "shift=0,sleep=off"]
        exported = {"root": Path("/"), "modules": kernel.modules.resolve()} | shares
        for tag, source in exported.items():
            socket = stack.enter_context(_virtiofsd(source, work / tag))
            qemu += ["-chardev", f"socket,id={tag},path={socket}"]
            qemu += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        ports = {"stdout": _Port(stdout), "stderr": _Port(stderr), "status": _Port(), "report": _Port()}
        for number, (name, port) in enumerate(ports.items()):
            qemu += ["-add-fd", f"fd={port.write_fd},set={number}"]
            qemu += ["-chardev", f"file,id={name},path=/dev/fdset/{number},append=on"]
            qemu += ["-device", f"virtserialport,chardev={name},name={name}"]
        with _process(
            qemu, work / "qemu.log", pass_fds=[port.write_fd for port in ports.values()]
        ) as process:
            for port in ports.values():
                port.start()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        for port in ports.values():
            port.join()
        seconds = time.monotonic() - started
        if verbose:
            stderr.write(console.read_bytes())
        said = dict(line.split() for line in ports["status"].content.decode().splitlines())
        if "ended" in said:
            return Outcome(int(said["ended"]), float(said["started"]), seconds, ports["report"].content)
        tail = _tail(work / "qemu.log") + _last_words(console)
        if seconds >= timeout:
            raise GuestTimeout(f"{kernel.name}: timed out after {timeout:g} s", tail)
        raise death(kernel.name, tail, began="started" in said)


def death(name: str, evidence: Sequence[str], *, began: bool) -> GuestDied:
    """Return what to raise of a guest that died with ``evidence``; ``began``: its command had."""
    stumbled = not began or any(_BREAKPOINT in line for line in evidence)
    when = "ended" if began else "began"
    kind = GuestStumbled if stumbled else GuestDied
    return kind(f"{name}: the guest died before its command {when}; its last words:", evidence)


class _Port:
    """One of the guest's serial ports: a pipe that QEMU writes, read by a thread to a sink and to memory."""

    def __init__(self, sink: BinaryIO | None = None) -> None:
        self._read_fd, self.write_fd = os.pipe()
        self._sink = sink
        self._thread = threading.Thread(target=self._pump)
        self.content = b""

    def start(self) -> None:
        os.close(self.write_fd)  # QEMU has its own; the pipe has to end with it
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _pump(self) -> None:
        with open(self._read_fd, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                if self._sink is None:
                    self.content += data
                else:
                    self._sink.write(data)
                    self._sink.flush()


@contextmanager
def _virtiofsd(source: Path, work: Path) -> Iterator[Path]:
    """Serve ``source`` read-only and yield the socket's path.

    Read-only is a bind mount in a mount namespace of its own: the guest cannot write to the host whatever it
    does, and the mount goes when the server does. No limit on open files is set because raising it takes
    CAP_SYS_RESOURCE.
    """
    work.mkdir()
    mount, socket = work / "mount", work / "socket"
    mount.mkdir()
    server = next(path for path in _VIRTIOFSD if Path(path).exists())
    script = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'
    options = f"source={mount},sandbox=chroot,cache=always,no_posix_lock,no_flock"
    command = [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "-", str(source), str(mount)),
        *(server, f"--socket-path={socket}", "-o", options, "--rlimit-nofile=0", "-f"),
    ]
    with _process(command, work / "log") as process:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise GuestDied(f"virtiofsd did not start on {source}:", _tail(work / "log"))
            time.sleep(0.01)
        yield socket


@contextmanager
def _process(
    command: list[str], log: Path, *, pass_fds: list[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` for as long as the block lasts; it also dies with this process, however that ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds or (),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _last_words(console: Path) -> list[str]:
    """Return the console's lines from the first that names a failure on, or its last ones."""
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    for number, line in enumerate(lines):
        if any(word in line for word in _FAILURES):
            return lines[number : number + _CONSOLE_LINES]
    return lines[-_CONSOLE_LINES:]


def _tail(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines()[-_CONSOLE_LINES:] if file.exists() else []
