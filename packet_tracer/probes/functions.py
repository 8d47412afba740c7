"""The kernel's functions that handle packets, on this kernel, as its BTF describes them.

A function counts that takes an ``sk_buff``, ``xdp_buff`` or ``xdp_frame`` by pointer, const or not, or an
``sk_buff **``, or that returns an ``sk_buff *``. Of those, the ones that can be traced are kept, and for each
other one the reason is known.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from packet_tracer.bpf.btf_functions import FunctionType, Parameter, TypeTable
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.probes.kallsyms import (
    function_addresses,
    function_key,
    is_patched,
    patch_sites,
    read_ahead,
    traceable_functions,
)

BTF_FOLDER = Path("/sys/kernel/btf")
KERNEL = "vmlinux"

#: What the compiler makes of a tracepoint's declaration: it runs beside packets but handles none.
_NOISE = re.compile(
    r"__(probestub|traceiter|bpf_trace|pfx|cfi)_|perf_trace_|trace_event_raw_event_|trace_raw_output_"
)


class ArgumentKind(Enum):
    """What an argument is, as C writes it (qualifiers left out)."""

    SKB = "sk_buff *"
    SKB_POINTER = "sk_buff **"
    XDP_BUFF = "xdp_buff *"
    XDP_FRAME = "xdp_frame *"


_STRUCTS = ("sk_buff", "xdp_buff", "xdp_frame")

#: Functions whose `sk_buff **` or `xdp_buff *` is a place that they fill: on entry it holds what was there
#: before, another packet perhaps. Drivers' are known by what they are usually called.
_FILLS = re.compile(
    r"__skb_try_recv_|prepare_reply$|devlink_(dpipe_send|nl_msg_reply)|xp_alloc_"
    r"|(fill|prepare|init|build)_(xdp|mxbuf)|_build_xdp_|_swbm_rx_frame$"
)
_KINDS = {kind.value: kind for kind in ArgumentKind}


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that leads to a packet.

    ``index`` counts from 0 the registers that carry arguments, as ``bpf_get_func_arg`` does: the place in the
    prototype, but behind an argument of 16 bytes one more.
    """

    index: int
    kind: ArgumentKind


class SkbFunction(NamedTuple):
    """A kernel function that handles packets; one of several, perhaps, that have the same name.

    ``module`` is the one whose BTF has ``btf_id``, ``"vmlinux"`` for the kernel's own. ``address`` is 0 where
    the kernel hides it. ``trampoline`` says whether a BPF trampoline (fentry, fexit) reaches it by
    ``btf_id``: the prototype has to suit one, and of namesakes the kernel finds only the first.
    """

    name: str
    module: str
    address: int
    btf_id: int
    arguments: tuple[Argument, ...]
    returns_skb: bool
    trampoline: bool
    types: TypeTable

    @property
    def prototype(self) -> str:
        """The prototype in C, without a semicolon."""
        return self.types.prototype(self.btf_id)

    @property
    def packet(self) -> Argument | None:
        """The argument that leads to the packet when the function begins; None for one that makes a packet.

        Where a function takes both, an ``xdp_buff`` may be made of the skb in it, an skb of the
        ``xdp_frame``.
        """
        if len(self.arguments) < 2:
            return next(iter(self.arguments), None)
        buffer, frame = self.argument(ArgumentKind.XDP_BUFF), self.argument(ArgumentKind.XDP_FRAME)
        skb = self.argument(ArgumentKind.SKB, ArgumentKind.SKB_POINTER)
        return (frame if buffer is None else None) or skb or buffer

    def argument(self, *kinds: ArgumentKind) -> Argument | None:
        """Return the first argument of one of the kinds (of any, if none is named), or None."""
        return next((one for one in self.arguments if not kinds or one.kind in kinds), None)


class FunctionTable(NamedTuple):
    """All functions of this kernel and its loaded modules that handle packets.

    ``functions`` are those that can be traced, by module (the kernel first), name and address; ``left_out``
    says why the others can't, by key (``"name"`` or ``"name [module]"``). ``source`` is the file that told
    what can be traced, or why there is none: then the rules of BPF trampolines decide.
    """

    functions: tuple[SkbFunction, ...]
    left_out: dict[str, str]
    source: str

    @staticmethod
    def read() -> FunctionTable:
        """Read the running kernel's.

        Some 80 ms, most of it the kernel's, for its 120,000 symbols. Raises NotSupportedError for a kernel
        without BTF.
        """
        read_ahead()
        return build_table(dict(_type_tables()))

    def select(self, patterns: Iterable[str], exclude: Iterable[str] = ()) -> list[SkbFunction]:
        """Return the functions that one of ``patterns`` names and none of ``exclude`` does.

        A pattern is a glob over names (``ip_*``), a regular expression between slashes that is searched for
        (``/^tcp_v[46]_/``), or ``module:NAME``, a glob over modules. No patterns at all means all functions.
        Raises UsageError for a pattern of ``patterns`` that names none.
        """
        chosen = [compile_pattern(pattern) for pattern in patterns]
        unwanted = [compile_pattern(pattern) for pattern in exclude]
        unused = set(chosen)
        selected = []
        for function in self.functions:
            hits = [pattern for pattern in chosen if pattern.matches(function)]
            unused.difference_update(hits)
            if (hits or not chosen) and not any(pattern.matches(function) for pattern in unwanted):
                selected.append(function)
        for pattern in chosen:
            if pattern in unused:
                raise UsageError(self._no_match(pattern.text))
        return selected

    def _no_match(self, text: str) -> str:
        if text.startswith("module:"):
            modules = sorted({function.module for function in self.functions})
            known = ", ".join(modules)
            return f"{text}: no such module is loaded, or none of its functions handles packets (of {known})"
        if reason := self.left_out.get(text):
            return f"{text}: can't be traced: {reason}"
        import difflib  # 3 ms, and only for who mistyped

        close = difflib.get_close_matches(text, {function.name for function in self.functions}, 3, 0.8)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        return f"{text}: no function of this kernel that handles packets is called that{hint}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern of a choice of functions, ready to match."""

    text: str
    matches: Callable[[SkbFunction], bool] = field(compare=False)


def compile_pattern(text: str) -> Pattern:
    """Return the pattern that ``text`` writes; see :meth:`FunctionTable.select`. Raises UsageError."""
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        try:
            expression = re.compile(text[1:-1])
        except re.error as error:
            raise UsageError(f"{text}: not a regular expression: {error}") from None
        return Pattern(text, lambda function: bool(expression.search(function.name)))
    if text.startswith("module:"):
        module = text.removeprefix("module:")
        return Pattern(text, lambda function: fnmatch.fnmatchcase(function.module, module))
    if text == "*":
        return Pattern(text, lambda function: True)
    return Pattern(text, lambda function: fnmatch.fnmatchcase(function.name, text))


@cache
def kernel_types() -> TypeTable:
    """Return the running kernel's types, read once. Raises NotSupportedError where it has none."""
    try:
        return TypeTable.read(BTF_FOLDER / KERNEL)
    except FileNotFoundError:
        raise NotSupportedError(
            "this kernel doesn't describe its types (CONFIG_DEBUG_INFO_BTF is off), so not its functions"
        ) from None


def _type_tables() -> Iterator[tuple[str, TypeTable]]:
    kernel = kernel_types()
    yield KERNEL, kernel
    for path in sorted(BTF_FOLDER.iterdir()):
        if path.name != KERNEL:
            try:
                yield path.name, TypeTable.read(path, base=kernel)
            except FileNotFoundError:  # unloaded meanwhile
                continue


def build_table(tables: dict[str, TypeTable]) -> FunctionTable:
    """Return the table of the functions that ``tables`` (by module) describe and this kernel can trace."""
    described: dict[str, list[FunctionType]] = {}
    modules: dict[str, str] = {}
    for module, types in tables.items():
        for function in types.functions(_STRUCTS):
            if (function.parameters or function.returned == "sk_buff") and not _NOISE.match(function.name):
                key = function_key(function.name, module)
                described.setdefault(key, []).append(function)
                modules[key] = module
    addresses = function_addresses([*described, "_sinittext", "_einittext"])
    traceable = traceable_functions(described)
    # Functions that ran at boot only: their code is gone, their names and types remain.
    gone = range(*(addresses.get(name, [0])[0] for name in ("_sinittext", "_einittext")))
    counts: Counter[str] = traceable.counts or Counter()
    some = [key for key, found in addresses.items() if 0 < counts.get(key, 0) < len(found)]
    sites = patch_sites(some) if some else {}
    functions: list[SkbFunction] = []
    left_out: dict[str, str] = {}
    for key, candidates in described.items():
        known = [address for address in addresses.get(key, []) if address not in gone]
        if reason := _refusal(key, candidates, known, traceable.counts, hidden=not addresses):
            left_out[key] = reason
            continue
        first = candidates[0]
        arguments = _arguments(first)
        if not arguments and first.returned != "sk_buff":
            left_out[key] = "it has no packet when it begins, or a list of them"
            continue
        if key in sites and counts[key] < len(known):
            known = [address for address in known if is_patched(address, sites[key])] or known
        functions += [
            SkbFunction(
                first.name,
                modules[key],
                address,
                first.id,
                arguments,
                first.returned == "sk_buff",
                first.trampoline and number == 0,
                tables[modules[key]],
            )
            for number, address in enumerate(known or [0])
        ]
    functions.sort(key=lambda one: (one.module != KERNEL, one.module, one.name, one.address))
    return FunctionTable(tuple(functions), left_out, traceable.source)


def _refusal(
    key: str,
    candidates: Collection[FunctionType],
    addresses: Collection[int],
    traceable: Counter[str] | None,
    *,
    hidden: bool,
) -> str:
    """Return why a function can't be traced, or ""."""
    first, *others = candidates
    alike = all((one.parameters, one.returned) == (first.parameters, first.returned) for one in others)
    if first.prototypes > len(candidates) or not alike:
        return f"{first.prototypes} functions have this name and arguments in different places"
    if traceable is not None:
        return (
            ""
            if traceable[key]
            else "ftrace can't: it is inlined, changed by the compiler, or marked notrace"
        )
    if not addresses and not hidden:
        return "it has no code of its own: inlined, changed by the compiler, or gone since the kernel started"
    return "" if first.trampoline else "a BPF trampoline can't take its arguments"


def _arguments(function: FunctionType) -> tuple[Argument, ...]:
    found = tuple(_each_argument(function.parameters))
    if not _FILLS.search(function.name):
        return found
    return tuple(one for one in found if one.kind in (ArgumentKind.SKB, ArgumentKind.XDP_FRAME))


def _each_argument(parameters: Iterable[Parameter]) -> Iterator[Argument]:
    for parameter in parameters:
        if kind := _KINDS.get(f"{parameter.struct} {'*' * parameter.pointers}"):
            yield Argument(parameter.slot, kind)
