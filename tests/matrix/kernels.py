"""Debian's kernels, named by suite: found, fetched and unpacked into a cache.

A suite's name stands for its newest kernel, because exact versions vanish from the mirrors. The packages are
found through apt lists of our own, made from the mirrors that this machine's apt already uses; the system's
apt state is neither read for candidates nor changed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.errors import MissingProgram, UnknownKernel

#: Oldest first. The value says whether kernels also come from the suite's security archive.
SUITES = {"bullseye": True, "bookworm": True, "trixie": True, "sid": False, "trixie-backports": False}
FLAVOURS = {"cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: From 7.x on, `linux-image-*` is empty and its parts come in packages of their own. `linux-base-VERSION`
#: holds modules.builtin, without which `modprobe netkit` fails although the kernel has it.
_PARTS = re.compile(r"\blinux-(?:base|binary|modules)-\d[^\s,|(]*")
_IMAGE = re.compile(r"\blinux-image-\d[^\s,|(]*")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel, unpacked. ``release`` is what ``uname -r`` says, ``version`` the package's version."""

    suite: str
    flavour: str
    package: str
    version: str
    release: str
    tree: Path

    @property
    def name(self) -> str:
        """``"trixie"``, or ``"trixie:full"`` where it is not the cloud flavour."""
        return self.suite if self.flavour == "cloud" else f"{self.suite}:{self.flavour}"

    @property
    def modules(self) -> Path:
        """The directory that a guest has as ``/lib/modules/RELEASE``."""
        return self.tree / "lib/modules" / self.release

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self._installed("vmlinuz")

    @property
    def config(self) -> Path:
        """The options it was built with."""
        return self._installed("config")

    def _installed(self, name: str) -> Path:
        boot = self.tree / f"boot/{name}-{self.release}"
        return boot if boot.exists() else self.modules / name  # where split packages have it


def default_cache() -> Path:
    """Where kernels are kept: ``$PTRACE_MATRIX_CACHE``, or the user's cache directory."""
    if chosen := os.environ.get("PTRACE_MATRIX_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packet-tracer-matrix"


def parse_name(name: str) -> tuple[str, str]:
    """Split ``"trixie:full"`` into suite and flavour; the flavour is ``cloud`` unless named.

    Raises UnknownKernel.
    """
    suite, _, flavour = name.partition(":")
    flavour = flavour or "cloud"
    if suite not in SUITES:
        raise UnknownKernel(f"{name}: no such suite; there are {', '.join(SUITES)}")
    if flavour not in FLAVOURS:
        raise UnknownKernel(f"{name}: no such flavour; there are {', '.join(FLAVOURS)}")
    return suite, flavour


def fetch(name: str, cache: Path, *, update: bool = False) -> Kernel:
    """Return the kernel called ``name``, fetched and unpacked unless the cache has it.

    ``update`` asks the mirror whether there is a newer one. Raises UnknownKernel, MissingProgram.
    """
    suite, flavour = parse_name(name)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        record = cache / f"{suite}-{flavour}.json"
        known = _read_record(record)
        if known and not update:
            return known
        apt = _Apt(suite, cache / "apt" / suite)
        apt.update()
        package, version = apt.newest_image(flavour)
        if known and (known.package, known.version) == (package, version):
            return known
        kernel = _unpack(apt, suite, flavour, package, version, cache)
        fields = dataclasses.asdict(kernel) | {"tree": str(kernel.tree)}
        record.write_text(json.dumps(fields, indent=1))
        if known:
            shutil.rmtree(known.tree)
        return kernel


class _Apt:
    """apt with lists, cache and package status of its own, for one suite."""

    def __init__(self, suite: str, state: Path) -> None:
        self.suite = suite
        sources = state / "sources.list"
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True, exist_ok=True)
        sources.write_text(_sources(suite))
        options = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": state / "lists",
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": state / "cache",
            "Acquire::Languages": "none",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
        }
        self._options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        result = self._call("apt-get", "-qq", "update")
        if result.returncode:
            raise UnknownKernel(f"{self.suite}: the mirror has no such suite: {_last_line(result.stderr)}")

    def show(self, package: str, field: str) -> str:
        """Return a field of the newest version of ``package``, or ``""`` where there is no such package."""
        result = self._call("apt-cache", "--no-all-versions", "show", package)
        found = re.search(rf"^{field}: (.*)$", result.stdout, re.MULTILINE)
        return found[1] if found else ""

    def newest_image(self, flavour: str) -> tuple[str, str]:
        """Return name and version of the package that holds the suite's newest kernel."""
        image = _IMAGE.search(self.show(FLAVOURS[flavour], "Depends"))
        if not image:
            raise UnknownKernel(f"{self.suite}:{flavour}: the suite has no {FLAVOURS[flavour]}")
        return image[0], self.show(image[0], "Version")

    def download(self, packages: list[str], into: Path) -> list[Path]:
        result = self._call("apt-get", "-qq", "download", *packages, directory=into)
        if result.returncode:
            raise UnknownKernel(f"cannot download {' '.join(packages)}: {_last_line(result.stderr)}")
        return sorted(into.glob("*.deb"))

    def _call(self, *command: str, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        return _call([program, *self._options, *arguments], directory=directory)


def _sources(suite: str) -> str:
    """Return a sources.list for ``suite``, on the mirrors that this machine's own apt uses."""
    targets = _call(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)", "Identifier: Packages"]
    )
    mirrors: dict[bool, str] = {}
    for line in targets.stdout.splitlines():
        # The origin is unknown (and the field empty) before the machine's first `apt-get update`.
        uri, release, origin = [*line.split(" "), "", ""][:3]
        if origin in ("Debian", ""):
            mirrors.setdefault(release.endswith("-security"), uri)
    if False not in mirrors:
        raise UnknownKernel(f"{suite}: no Debian mirror among this machine's apt sources")
    lines = [f"deb [signed-by={_KEYRING}] {mirrors[False]} {suite} main"]
    if SUITES[suite] and True in mirrors:
        lines.append(f"deb [signed-by={_KEYRING}] {mirrors[True]} {suite}-security main")
    return "\n".join(lines) + "\n"


def _unpack(apt: _Apt, suite: str, flavour: str, package: str, version: str, cache: Path) -> Kernel:
    parts = _PARTS.findall(apt.show(package, "Depends"))
    # A linux-base-VERSION may have vanished from the mirror already; kernels that need it ship it.
    wanted = [package] + [part for part in parts if apt.show(part, "Version")]
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        downloads, tree = Path(temporary) / "debs", Path(temporary) / "tree"
        downloads.mkdir()
        for deb in apt.download(wanted, downloads):
            _check(["dpkg-deb", "--extract", str(deb), str(tree)])
        if not (tree / "lib/modules").exists():  # from 6.12 on, everything lies under usr
            (tree / "lib").mkdir(exist_ok=True)
            (tree / "lib/modules").symlink_to("../usr/lib/modules")
        release = next((tree / "lib/modules").iterdir()).name
        _check(["depmod", "--basedir", str(tree), release])
        target = cache / f"{package}_{version}"
        shutil.rmtree(target, ignore_errors=True)
        tree.rename(target)
    kernel = Kernel(suite, flavour, package, version, release, target)
    if not kernel.image.exists():
        raise UnknownKernel(f"{kernel.name}: {package} {version} holds no vmlinuz")
    return kernel


def _read_record(record: Path) -> Kernel | None:
    try:
        fields = json.loads(record.read_text())
    except FileNotFoundError:
        return None
    kernel = Kernel(**fields | {"tree": Path(fields["tree"])})
    return kernel if kernel.image.exists() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _call(command: list[str], *, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=directory)
    except FileNotFoundError:
        raise MissingProgram(
            f"{command[0]} is not installed; Debian's kernels need apt, dpkg and kmod"
        ) from None


def _check(command: list[str]) -> None:
    result = _call(command)
    if result.returncode:
        raise MissingProgram(f"{command[0]} failed: {_last_line(result.stderr)}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
