"""What the shell completes: names of interfaces, namespaces, probes. Errors complete nothing."""

from __future__ import annotations


def interfaces(incomplete: str) -> list[str]:
    """Return the interfaces of the caller's namespace that begin so."""
    import socket

    return [name for _, name in socket.if_nameindex() if name.startswith(incomplete)]


def namespaces(incomplete: str) -> list[str]:
    """Return the named network namespaces that begin so, and ``all``."""
    from packet_tracer.netns import named

    names = [found.name or "" for found in named()]
    return [name for name in (*names, "all") if name.startswith(incomplete)]


def probes(incomplete: str) -> list[str]:
    """Return the probes that begin so."""
    from packet_tracer.probes.catalogue import PROBES

    return [probe.name for probe in PROBES if probe.name.startswith(incomplete)]


def drop_reasons(incomplete: str) -> list[str]:
    """Return this kernel's drop reasons that begin so."""
    from packet_tracer.events import DropReasons

    names = DropReasons.of_this_kernel().names.values()
    return sorted(name for name in names if name.startswith(incomplete.upper()))


def profiles(incomplete: str) -> list[str]:
    """Return the profiles that begin so."""
    from packet_tracer.probes.catalogue import PROFILES

    return [name for name in PROFILES if name.startswith(incomplete)]
