"""Whether this kernel has kprobes: asked before anything is loaded, so it is a module of its own."""

from __future__ import annotations

from pathlib import Path

#: Where perf events of kprobes are described (CONFIG_KPROBE_EVENTS).
KPROBE = Path("/sys/bus/event_source/devices/kprobe")


def has_kprobes() -> bool:
    """Return whether kprobes can be had by perf events."""
    return KPROBE.exists()
