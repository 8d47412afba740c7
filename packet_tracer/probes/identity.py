"""Watching over packets' identity: programs on the kernel functions that move, part, join and end buffers.

They emit no events; what they do to the table of packets is told in bpf_src/identity.bpf.h. Where the kernel
has kprobe sessions (Linux 6.10) one program and one link serve most of the functions: a preemptible kernel
takes 0.1 s to detach a trampoline, and there would be thirty. Older kernels need them, and so does what must
not be missed: a kprobe's program is left out where it interrupts another one on its CPU.
"""

from __future__ import annotations

from contextlib import ExitStack

from packet_tracer.bpf import link as links
from packet_tracer.bpf.btf import Btf, Kind, Prototype, Reference
from packet_tracer.bpf.program import PreparedProgram
from packet_tracer.errors import BpfError
from packet_tracer.probes.memory import UNKNOWN
from packet_tracer.probes.objects import IDENTITY, IDENTITY_SESSION, CaptureObjects

#: Where buffers end (one of two is enough), and where they begin.
_ENDS = ("skb_free_head", "skb_release_data")
_BIRTHS = ("alloc_skb", "netdev_alloc_skb", "napi_alloc_skb")
#: Where they are given away; without the first, and without knowing how they grow, identity is not exact.
_GIVEN_AWAY = ("kfree_skb_partial", "napi_skb_free_stolen_head")
_GROWN = ("pskb_expand_head_before", "pskb_expand_head_after")
#: Where an skb comes from a driver with XDP.
_BEHIND_XDP = "napi_gro_receive_entry"
#: Where an xdp_frame becomes an skb: as on most kernels, and as on older ones.
_FRAME_TO_SKB = ("build_skb_from_frame", "build_skb")
#: Where they are copied, whole or in part.
_COPIED = "skb_copy_header"
_REFINEMENTS = (
    "skb_copy",
    "pskb_copy",
    "skb_copy_expand",
    "skb_segment",
    "ip_frag_next",
    "ip6_frag_next",
    "ip_fraglist_init",
    "ip6_fraglist_init",
    "skb_segment_list",
    "skb_gro_receive",
    "skb_gro_receive_list",
    "skb_try_coalesce",
    "inet_frag_reasm_finish",
    "tcp_retransmit_skb",
    "tcp_retransmit_skb_after",
    "tcp_retransmit_skb_caller",
    "tcp_retransmit_skb_caller_after",
    "tcp_transmit_skb",
    "tcp_fragment",
)

#: The functions of the session, numbered from 1 as in ``enum session_function`` in
#: bpf_src/identity_session.bpf.c, and what the arguments it looks at point to, by their place. It gets bare
#: registers, so whether the kernel's function takes these has to be asked for.
SESSION_FUNCTIONS: dict[str, dict[int, str]] = {
    "pskb_expand_head": {0: "sk_buff"},
    "skb_copy": {0: "sk_buff"},
    "__pskb_copy_fclone": {0: "sk_buff"},
    "skb_copy_expand": {0: "sk_buff"},
    "skb_segment": {0: "sk_buff"},
    "ip_frag_next": {0: "sk_buff"},
    "ip6_frag_next": {0: "sk_buff"},
    "ip_fraglist_init": {0: "sk_buff"},
    "ip6_fraglist_init": {0: "sk_buff"},
    "skb_segment_list": {0: "sk_buff"},
    "skb_gro_receive": {0: "sk_buff", 1: "sk_buff"},
    "skb_gro_receive_list": {0: "sk_buff", 1: "sk_buff"},
    "skb_try_coalesce": {0: "sk_buff", 1: "sk_buff"},
    "inet_frag_reasm_finish": {1: "sk_buff"},
    "__xdp_build_skb_from_frame": {0: "xdp_frame"},
    "__tcp_retransmit_skb": {1: "sk_buff"},
    "tcp_retransmit_skb": {1: "sk_buff"},
    "__tcp_transmit_skb": {1: "sk_buff"},
    "tcp_fragment": {2: "sk_buff"},
}
#: Without it a packet's identity is not exact.
_SESSION_NEEDED = "pskb_expand_head"


class IdentityWatch:
    """Attaches what watches over identity; ``stack`` owns programs and links, ``means`` tells how.

    To be attached before the probes: of several programs on one function the last one attached runs first, so
    a probe still sees the packet that ends there.
    """

    def __init__(self, objects: CaptureObjects, stack: ExitStack) -> None:
        self._objects = objects
        self._stack = stack
        self.means = ""

    def attach(self) -> bool:
        """Attach to what this kernel has of the functions; return whether identity is exact then."""
        if not self._watch_always():
            return False
        if self._watch_by_session():
            self.means = "a kprobe session"
        elif self._watch_by_trampolines():
            self.means = "trampolines"
        return bool(self.means)

    def attach_behind_xdp(self) -> None:
        """Attach to where drivers give on the skb of a packet that was at XDP: bpf_src/handover.bpf.h."""
        self._watch(self._objects.prepare(IDENTITY, [_BEHIND_XDP], UNKNOWN)[_BEHIND_XDP])

    def _watch_always(self) -> bool:
        """Attach trampolines to what must not be missed: where a buffer comes to be another packet's, and
        where generic XDP copies all that an interrupt brings.

        The kernel leaves a program out where an interrupt meets it running, so each function that is called
        outside of interrupts, too, has it twice: whichever is interrupted, the other one runs.
        """
        try:
            prepared = self._objects.prepare(IDENTITY, (*_ENDS, *_BIRTHS, *_GIVEN_AWAY, _COPIED), UNKNOWN)
        except BpfError:
            return False
        final, each = _ENDS
        if not self._watch_twice(prepared[final]):
            if not self._watch_twice(prepared[each]):
                return False
            for name in _BIRTHS:
                self._watch(prepared[name])
        given_away, stolen = _GIVEN_AWAY
        self._watch(prepared[stolen])
        self._watch_twice(prepared[_COPIED])
        return self._watch_twice(prepared[given_away])

    def _watch_by_trampolines(self) -> bool:
        """Attach a program to each of the other functions."""
        try:
            prepared = self._objects.prepare(IDENTITY, (*_GROWN, *_FRAME_TO_SKB, *_REFINEMENTS), UNKNOWN)
        except BpfError:
            return False
        if not all(self._watch(prepared[name]) for name in _GROWN):
            return False
        for name in _REFINEMENTS:
            self._watch(prepared[name])
        any(self._watch(prepared[name]) for name in _FRAME_TO_SKB)
        return True

    def _watch_twice(self, prepared: PreparedProgram) -> bool:
        return self._watch(prepared) and self._watch(prepared)

    def _watch(self, prepared: PreparedProgram) -> bool:
        """Load and attach a program for a function that this kernel may not have; return whether it has."""
        try:
            program = self._stack.enter_context(prepared.load(log=False))
            self._stack.enter_context(links.attach_tracing(program))
        except BpfError:
            return False
        return True

    def _watch_by_session(self) -> bool:
        """Attach one program to all the other functions; return False where this kernel can't."""
        if links.kprobe_session_missing():
            return False
        btf = Btf.vmlinux()
        numbers = {
            name: number
            for number, (name, pointers) in enumerate(SESSION_FUNCTIONS.items(), 1)
            if _takes(btf, name, pointers)
        }
        if _SESSION_NEEDED not in numbers:
            return False
        try:
            (prepared,) = self._objects.prepare(IDENTITY_SESSION, ["watch_identity"], UNKNOWN).values()
            program = self._stack.enter_context(prepared.load(log=False))
            self._stack.enter_context(
                links.attach_kprobe_multi(program, symbols=list(numbers), cookies=list(numbers.values()))
            )
        except BpfError:
            return False
        return True


def _takes(btf: Btf, name: str, pointers: dict[int, str]) -> bool:
    """Return whether the kernel has a function with such arguments: pointers to structs, by their place."""
    found = btf.get(name, Kind.FUNCTION)
    if found is None:
        return False
    function = btf.type(found)
    prototype = btf.type(function.type_id) if isinstance(function, Reference) else function
    if not isinstance(prototype, Prototype):
        return False
    parameters = prototype.parameters
    return all(
        place < len(parameters) and _points_to(btf, parameters[place].type_id) == struct
        for place, struct in pointers.items()
    )


def _points_to(btf: Btf, type_id: int) -> str:
    pointer = btf.resolve(type_id)
    if pointer.kind != Kind.POINTER or not isinstance(pointer, Reference):
        return ""
    return btf.resolve(pointer.type_id).name
