"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The hooks each of which alone makes a capture possible, by their names in the report.
CAPTURE_HOOKS = ("tracepoint", "xdp", "tc", "netfilter ipv4", "netfilter ipv6")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``works`` is None for a plain fact, and where it can't be told.

    ``fields`` holds what a program may want to know, under stable names.
    """

    name: str
    detail: str
    works: bool | None = None
    fields: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {"name": self.name, "works": self.works, "detail": self.detail, **self.fields}


@dataclass(frozen=True, slots=True)
class Section:
    """Findings under a heading."""

    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All findings. ``can_capture`` is what it comes down to."""

    sections: tuple[Section, ...]

    def find(self, name: str) -> Finding | None:
        """Return the finding of that name."""
        for section in self.sections:
            for finding in section.findings:
                if finding.name == name:
                    return finding
        return None

    @property
    def can_capture(self) -> bool:
        """Whether `ptrace capture` can run here with some probe: BTF, ring buffers, and a hook that works."""
        base = [self.find(name) for name in ("kernel BTF", "ring buffer")]
        hooks = [self.find(name) for name in CAPTURE_HOOKS]
        return all(found is not None and found.works for found in base) and any(
            found is not None and found.works for found in hooks
        )

    @property
    def lacks_privileges(self) -> bool:
        """Whether it is for want of capabilities that something does not work."""
        found = self.find("capabilities")
        return found is not None and found.works is False

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON: sections as lists of findings."""
        body = {section.name: [found.as_dict() for found in section.findings] for section in self.sections}
        return {"can_capture": self.can_capture, **body}
