"""Why the kernel dropped a packet, by name.

The numbers of ``enum skb_drop_reason`` change from kernel to kernel, so they are read from the running
kernel's BTF. A subsystem's reasons carry its number in the upper 16 bits (``SKB_DROP_REASON_SUBSYS_*``,
Linux 6.4; include/net/dropreason.h) and have an enum of their own, often in a module. Kernels before
5.17 give no reasons at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packet_tracer.bpf.btf import Btf

_PREFIX = "SKB_DROP_REASON_"
_SUBSYSTEM_PREFIX = "SKB_DROP_REASON_SUBSYS_"
_SHIFT = 16  # SKB_DROP_REASON_SUBSYS_SHIFT
_MODULES = Path("/sys/kernel/btf")

#: A kernel enum by name: ``{enumerator: value}``, empty where there is none.
EnumReader = Callable[[str], Mapping[str, int]]


class DropReasons:
    """Names of drop reasons by number, and back.

    ``names`` and ``subsystems`` are those known from the start. ``load`` reads the kernel's when the
    first question is asked that they don't answer, ``find_subsystem`` those of one subsystem.
    """

    def __init__(
        self,
        names: Mapping[int, str] | None = None,
        subsystems: Mapping[int, str] | None = None,
        *,
        load: Callable[[], DropReasons] | None = None,
        find_subsystem: Callable[[str], Mapping[int, str]] | None = None,
    ) -> None:
        self._names: dict[int, str] = dict(names or {})
        self._subsystems: dict[int, str] = dict(subsystems or {})
        self._load = load
        self._find_subsystem = find_subsystem
        self._searched: set[int] = set()

    @staticmethod
    def from_btf(btf: Btf) -> DropReasons:
        """Return the reasons that a kernel's BTF knows; none (not an error) before they were introduced."""
        subsystems = {
            value: name.removeprefix(_SUBSYSTEM_PREFIX)
            for name, value in _enum(btf, "skb_drop_reason_subsys").items()
            if not name.endswith("_NUM")
        }
        return DropReasons(
            _core_names(_enum(btf, "skb_drop_reason")),
            subsystems,
            find_subsystem=lambda name: _subsystem_names(btf, name),
        )

    @staticmethod
    def of_this_kernel() -> DropReasons:
        """Return the running kernel's reasons, read when first needed; none where it has no BTF."""

        def load() -> DropReasons:
            from packet_tracer.bpf.btf import Btf
            from packet_tracer.bpf.errors import BtfError

            try:
                return DropReasons.from_btf(Btf.vmlinux())
            except BtfError:
                return DropReasons()

        return DropReasons(load=load)

    @property
    def names(self) -> Mapping[int, str]:
        """All names known, by number; empty where the kernel gives no reasons."""
        self._read()
        return self._names

    def _read(self) -> None:
        load, self._load = self._load, None
        if load is not None:
            loaded = load()
            self._names = {**loaded._names, **self._names}
            self._subsystems = {**loaded._subsystems, **self._subsystems}
            self._find_subsystem = self._find_subsystem or loaded._find_subsystem

    def _read_subsystem(self, subsystem: int) -> None:
        """Read the reasons of a subsystem, once."""
        if subsystem in self._searched or subsystem not in self._subsystems:
            return
        self._searched.add(subsystem)
        if self._find_subsystem is not None:
            self._names.update(self._find_subsystem(self._subsystems[subsystem]))

    def name(self, reason: int) -> str:
        """Return a reason's name: ``NETFILTER_DROP``, or as its subsystem has it, ``OVS_DROP_EXPLICIT``.

        A number without a name is given as ``REASON_123``, or with its subsystem as ``OPENVSWITCH_7``.
        """
        found = self._names.get(reason)
        if found is not None:
            return found
        self._read()
        subsystem, number = reason >> _SHIFT, reason & 0xFFFF
        if subsystem:
            self._read_subsystem(subsystem)
        found = self._names.get(reason)
        if found is None:
            found = f"{self._subsystems.get(subsystem, f'SUBSYSTEM_{subsystem}')}_{number}"
            found = found if subsystem else f"REASON_{number}"
        return found

    def number(self, name: str) -> int:
        """Return a reason's number, its name given with or without ``SKB_DROP_REASON_`` in any case.

        Raises KeyError where there is none of that name.
        """
        self._read()
        wanted = name.upper().removeprefix(_PREFIX)
        for subsystem in (0, *self._subsystems):  # the core's first: subsystems may have to be looked for
            if subsystem:
                self._read_subsystem(subsystem)
            for value, known in self._names.items():
                if known == wanted:
                    return value
        raise KeyError(name)


def _core_names(core: Mapping[str, int]) -> dict[int, str]:
    # SKB_NOT_DROPPED_YET and SKB_CONSUMED have another prefix; _MAX and the subsystem mask are not reasons.
    return {
        value: name.removeprefix(_PREFIX).removeprefix("SKB_")
        for name, value in core.items()
        if name not in ("SKB_DROP_REASON_MAX", "SKB_DROP_REASON_SUBSYS_MASK")
    }


def _enum(btf: Btf, name: str) -> Mapping[str, int]:
    from packet_tracer.bpf.errors import BtfError

    try:
        return btf.enum(name)
    except BtfError:
        return {}


def _subsystem_names(btf: Btf, subsystem: str) -> dict[int, str]:
    """Return the reasons of one subsystem, from the kernel or the module that is called like it.

    ``MAC80211_UNUSABLE`` is looked for as ``mac80211_drop_reason`` in the kernel, then in the module
    mac80211; ``OPENVSWITCH`` as ``ovs_drop_reason`` in openvswitch: so every enum that ends
    in ``_drop_reason``.
    """
    from packet_tracer.bpf.btf import Btf, Kind
    from packet_tracer.bpf.errors import BtfError

    number = _enum(btf, "skb_drop_reason_subsys").get(_SUBSYSTEM_PREFIX + subsystem, 0)
    found = _reasons_of(btf, btf.index(Kind.ENUM), number)
    if found:
        return found
    stem = subsystem.lower().split("_")[0]
    for module in sorted(path.name for path in _MODULES.glob("*")) if _MODULES.is_dir() else ():
        if stem in module and module != "vmlinux":
            try:
                types = Btf.module(module)
                found = _reasons_of(types, types.index(Kind.ENUM), number)
            except BtfError:  # unloaded meanwhile, or its BTF is not for this kernel
                continue
            if found:
                return found
    return {}


def _reasons_of(btf: Btf, enums: Iterable[str], subsystem: int) -> dict[int, str]:
    for enum in enums:
        if enum.endswith("_drop_reason") and enum != "skb_drop_reason":
            values = {value: name for name, value in _enum(btf, enum).items() if value >> _SHIFT == subsystem}
            if values:
                return {value: name for value, name in values.items() if not name.startswith("__")}
    return {}
