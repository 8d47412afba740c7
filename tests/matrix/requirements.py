"""What must work on each kernel: given to the tests as ``PTRACE_REQUIRE``, so that a skip against it fails.

A capability has the name that a test asks for with ``@pytest.mark.requires("NAME")``. The table says what
these kernels are known to have (their configuration was read and each was tried). Only the tests look at it:
the tracer itself finds out by trying.
"""

from __future__ import annotations

#: Everything that a kernel of the table can be asked for, in the order that docs/kernels.md lists it.
CAPABILITIES = {
    "btf": "the kernel describes its own types",
    "ring-buffer": "BPF ring buffers",
    "tracepoint": "BTF tracepoints (`tp_btf`)",
    "fentry": "function entry and exit by trampoline",
    "kprobe": "function entry and return by breakpoint or ftrace",
    "xdp": "XDP on a device",
    "tc": "traffic control classifiers (clsact)",
    "cgroup-skb": "packets of a control group",
    "module-btf": "modules describe their types too",
    "cookie": "a cookie for each tracing link, so one program serves many functions",
    "drop-reasons": "`kfree_skb` says why",
    "kprobe-multi": "one program on thousands of functions in one call",
    "kprobe-session": "one program on many functions' entries and returns (`bpf_session_cookie`)",
    "fentry-multi": "one program on thousands of functions in one call, by trampoline",
    "tcx": "traffic control links",
    "netfilter-link": "BPF programs as netfilter hooks",
}

_EVERYWHERE = frozenset({"btf", "ring-buffer", "tracepoint", "fentry", "kprobe", "xdp", "tc", "cgroup-skb"})
_SINCE_6_1 = _EVERYWHERE | {"module-btf", "cookie", "drop-reasons"}
_SINCE_6_12 = _SINCE_6_1 | {"kprobe-multi", "kprobe-session", "tcx", "netfilter-link"}
_SINCE_7_2 = _SINCE_6_12 | {"fentry-multi"}

REQUIREMENTS = {
    "bullseye": _EVERYWHERE,
    "bookworm": _SINCE_6_1,
    "trixie": _SINCE_6_12,
    "sid": _SINCE_7_2,
    "trixie-backports": _SINCE_7_2,
}


def required(suite: str) -> str:
    """Return the value of ``PTRACE_REQUIRE`` for a kernel of ``suite``: names joined by commas."""
    return ",".join(name for name in CAPABILITIES if name in REQUIREMENTS[suite])
