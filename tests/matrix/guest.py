"""The guest's initramfs: busybox, the few modules it takes to reach the host's root, and the command."""

from __future__ import annotations

import lzma
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.matrix.errors import MissingProgram
from tests.matrix.kernels import Kernel

_HERE = Path(__file__).parent
_MODULES = ("virtio_pci", "virtio_console", "overlay", "virtiofs")
_DIRECTORIES = ("bin", "dev", "lower", "modules", "new", "overlay", "proc", "sys")
_FILE, _DIRECTORY = 0o100755, 0o040755


def build_initramfs(
    kernel: Kernel,
    command: str,
    *,
    directory: Path,
    environment: Mapping[str, str],
    shares: Mapping[str, Path],
) -> bytes:
    """Return a cpio archive that boots to ``command``, run by ``/bin/sh`` in ``directory``.

    ``shares`` are further virtiofs tags, each mounted read-only at the host's own path. Takes about 0.1 s,
    so it is made anew for each run and nothing stale is ever booted.
    """
    busybox = shutil.which("busybox")
    if not busybox or b"/lib64/ld-linux" in (content := Path(busybox).read_bytes()):
        raise MissingProgram("a static busybox is needed: install busybox-static")
    modules = dict(_modules(kernel))
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    files = {
        "bin/busybox": content,
        "init": (_HERE / "init.sh").read_bytes(),
        "session": (_HERE / "session.sh").read_bytes(),
        "config": kernel.config.read_bytes(),
        "command": f"{command}\n".encode(),
        "environment": "".join(f"{line}\n" for line in exports).encode(),
        "directory": f"{directory}\n".encode(),
        "shares": "".join(f"{tag} {path}\n" for tag, path in shares.items()).encode(),
        "modules/order": "".join(f"{name}\n" for name in modules).encode(),
    } | {f"modules/{name}": code for name, code in modules.items()}
    archive = [_entry(name, _DIRECTORY) for name in _DIRECTORIES]
    archive += [_entry(name, _FILE, data) for name, data in files.items()]
    return b"".join(archive) + _entry("TRAILER!!!", 0)


def _modules(kernel: Kernel) -> Iterator[tuple[str, bytes]]:
    """Yield name and code of each module that the first stage loads, dependencies first."""
    for module in _MODULES:
        # `modprobe` follows dependencies, knows aliases and says "builtin NAME" for what needs no loading.
        command = ["modprobe", "-d", str(kernel.tree), "-S", kernel.release, "--show-depends", module]
        shown = subprocess.run(command, capture_output=True, text=True)
        if shown.returncode:
            raise MissingProgram(f"{kernel.name}: {shown.stderr.strip()}")
        for line in shown.stdout.splitlines():
            kind, *rest = line.split()
            if kind == "insmod":
                path = Path(rest[0])
                code = path.read_bytes()
                yield path.name.removesuffix(".xz"), lzma.decompress(code) if path.suffix == ".xz" else code


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """Return one member of a `newc` cpio archive (the kernel's early-userspace/buffer-format.rst)."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
