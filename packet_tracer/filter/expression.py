"""A filter expression as one value: compiled once, and put into as many programs as there are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from packet_tracer.filter import cbpf, ebpf, pcap
from packet_tracer.filter.analysis import reads_metadata, validate
from packet_tracer.filter.errors import FilterError, PcapMissingError
from packet_tracer.filter.evaluator import evaluate
from packet_tracer.filter.pcap import LinkType
from packet_tracer.filter.stubs import Access, Stub
from packet_tracer.filter.translate import translate
from packet_tracer.filter.tunnels import ALL, NONE, Tunnel, find_inner, tunnels
from packet_tracer.filter.typed import TypedMemory

_REJECT_ALL = (cbpf.Instruction(cbpf.RET, 0, 0, 0),)
#: The keyword, and not a host of that name or a part of another word.
_VLAN = re.compile(r"(?<![\w.\\-])vlan(?![\w.-])")
#: Keywords that move all that follows them behind a header of the link layer.
_ENCAPSULATION = re.compile(r"(?<![\w.\\-])(vlan|mpls|pppoed|pppoes)(?![\w.-])")
#: What an expression is made of: words, parentheses, and all the rest as it is.
_WORD = re.compile(r"[\w.:\\/-]+|[()]|\|\||\s+|.", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """A pcap-filter expression, ready for packets with and without a link-layer header.

    Make one with :func:`packet_tracer.filter.compile`.
    """

    expression: str
    ethernet: tuple[cbpf.Instruction, ...]
    """Classic BPF for packets that begin with an Ethernet header."""
    raw: tuple[cbpf.Instruction, ...]
    """Classic BPF for packets that begin with an IP header; rejects all if only Ethernet can match.

    Of alternatives (``port 80 or (vlan and port 80)``) those that can are in it."""

    inner: Filter | None = None
    """What the packet inside a tunnel must match as well."""
    tunnels: Tunnel = NONE
    """The kinds of tunnels that ``inner`` is for; a packet of none of them is rejected."""

    @property
    def sees_vlan(self) -> bool:
        """Whether a VLAN tag that the kernel keeps beside the packet is seen as part of its bytes.

        An expression that says ``vlan`` sees the packet as it is on the wire. One that doesn't sees the
        bytes as they lie in memory, so ``tcp`` matches a packet whose tag the device has taken off: as a
        live tcpdump does."""
        return _VLAN.search(self.expression) is not None

    @property
    def reads_metadata(self) -> bool:
        """Whether the answer depends on what lies beside the bytes: VLAN tag, packet type, interface."""
        return self.sees_vlan or any(reads_metadata(i) for i in (*self.ethernet, *self.raw))

    def classic(self, link_type: LinkType) -> tuple[cbpf.Instruction, ...]:
        """Return the classic BPF for packets of ``link_type``."""
        return self.ethernet if link_type is LinkType.ETHERNET else self.raw

    def program(self, stub: Stub, memory: TypedMemory | None = None) -> ebpf.Program:
        """Return the eBPF to put in place of ``stub``, for a kernel that reads memory in place with
        ``memory``.
        """
        return translate(
            self.classic(stub.link_type),
            stub,
            vlan=self.sees_vlan,
            expression=self.expression,
            memory=memory,
        )

    def matches(
        self,
        packet: bytes,
        *,
        length: int | None = None,
        link_type: LinkType = LinkType.ETHERNET,
        metadata: int = 0,
    ) -> bool:
        """Whether the filter accepts ``packet``, decided by running its eBPF in Python.

        ``length``: the packet's length where ``packet`` holds only its beginning.
        """
        stub = Stub(Access.TC, link_type)
        if not evaluate(self.program(stub), stub, packet, length=length, metadata=metadata):
            return False
        if self.inner is None:
            return True
        inside = find_inner(packet, link_type, self.tunnels)
        if inside is None:
            return False
        left = (len(packet) if length is None else length) - inside.offset
        return self.inner.matches(packet[inside.offset :], length=left, link_type=inside.link_type)

    def rodata(self) -> dict[str, int | bytes]:
        """Return the kernel side's configuration variables (bpf_src/filter.bpf.h), by name."""
        return {
            "filter_enabled": 1,
            "filter_reads_metadata": int(self.reads_metadata),
            "filter_inner": int(self.inner is not None),
            "filter_tunnels": int(self.tunnels),
        }


def compile_filter(expression: str, *, inner: str | None = None, tunnel: Iterable[str] = ()) -> Filter:
    """Compile ``expression`` (pcap-filter(7)); the empty one accepts every packet.

    ``inner`` is for the packet inside a tunnel, and ``tunnel`` names which kinds count (``vxlan``,
    ``geneve``, ``gre``, ``ipip``; default: all). With ``tunnel`` alone ``expression`` itself is for the inner
    packet.

    Raises FilterError: libpcap's message with the expression, or what cannot run in the kernel
    (``protochain``). Raises PcapMissingError where there is no libpcap, UsageError for an unknown tunnel.
    """
    kinds = tunnels((tunnel,) if isinstance(tunnel, str) else tunnel)
    if inner is None and kinds:
        expression, inner = "", expression
    outer = _compile(expression)
    if inner is None:
        return outer
    return replace(outer, inner=_compile(inner), tunnels=kinds or ALL)


def _compile(expression: str) -> Filter:
    expression = expression.strip()
    ethernet = pcap.compile_expression(expression, LinkType.ETHERNET)
    validate(ethernet, expression)
    raw = _compile_raw(expression) or _compile_alternatives(expression, ethernet)
    return Filter(expression, ethernet, raw or _REJECT_ALL)


def _compile_raw(expression: str) -> tuple[cbpf.Instruction, ...] | None:
    """Compile for packets that begin with IP; None for what speaks of the link layer (``arp``)."""
    try:
        raw = pcap.compile_expression(expression, LinkType.RAW)
        validate(raw, expression)
    except PcapMissingError:
        raise
    except FilterError:
        return None
    return raw


def _compile_alternatives(
    expression: str, ethernet: tuple[cbpf.Instruction, ...]
) -> tuple[cbpf.Instruction, ...] | None:
    """Compile for packets that begin with IP those alternatives of ``a or b`` that ask for no link layer.

    ``port 80 or (vlan and port 80)`` is ``port 80`` there. None where there are none. What stands behind a
    ``vlan`` is not for packets without one: pcap-filter(7).
    """
    parts: list[str] = []
    for part in _alternatives(expression):
        # What needs no link layer stays together: in `port 80 or 443` the second is a port, too.
        if parts and _compile_raw(together := f"{parts[-1]} or {part}"):
            parts[-1] = together
        else:
            parts.append(part)
    whole = " or ".join(f"({part})" for part in parts)
    # `ether host A or B` is no `ether host A` or `B`: whether it was cut in the right places, its code tells.
    try:
        if pcap.compile_expression(whole, LinkType.ETHERNET) != ethernet:
            return None
    except FilterError:
        return None
    usable = itertools.takewhile(lambda part: not _ENCAPSULATION.search(part), parts)
    found = " or ".join(f"({part})" for part in usable if part and _compile_raw(part))
    return _compile_raw(found) if found else None


def _alternatives(expression: str) -> list[str]:
    """Cut an expression at each ``or`` that is in no parentheses."""
    parts, depth = [""], 0
    for word in _WORD.findall(expression):
        depth += (word == "(") - (word == ")")
        if word in ("or", "||") and not depth:
            parts.append("")
        else:
            parts[-1] += word
    return [part.strip() for part in parts]


def disassemble(filter_: Filter, stub: Stub | None = None) -> str:
    """Return the classic program as ``tcpdump -d`` prints it, or the eBPF in place of ``stub``."""
    if stub is None:
        return cbpf.disassemble(filter_.ethernet)
    return ebpf.disassemble(filter_.program(stub))
