"""Writes the types in docs/maps.md from the classes themselves: ``python -m tests.kernel.maps.docs``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.library import Descriptor
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.maps.registry import CLASSES

TARGET = Path(__file__).parents[3] / "docs" / "maps.md"

#: What follows in the page is made, what precedes is written by hand.
MARKER = "## The types\n"

_SYNTAX = {
    "__getitem__": "m[k]",
    "__setitem__": "m[k] = v",
    "__delitem__": "del m[k]",
    "__contains__": "k in m",
    "__iter__": "iteration",
    "__len__": "len(m)",
}
_HIDDEN = {"describe", "bind", "key_codec", "value_codec", "index", "count"}


def operations(kind: type[Map]) -> list[str]:
    """Return what can be done with a map of a class, beyond what all maps have."""
    found = [text for name, text in _SYNTAX.items() if getattr(kind, name, None) is not None]
    common = set(dir(Map)) | set(dir(Descriptor)) | _HIDDEN
    for name, value in inspect.getmembers(kind):
        if name.startswith("_") or name in common:
            continue
        found.append(f"{name}()" if callable(value) else name)
    return found


def parts(kind: type[Map]) -> tuple[str, str, str]:
    """Return a class's description, the rest of its docstring and its example."""
    text, _, example = inspect.cleandoc(kind.__doc__ or "").partition(">>>")
    first, _, rest = text.partition("\n\n")
    description = re.sub(r"^\w+: ", "", first.replace("\n", " "))
    return description, rest.strip(), f">>>{example}" if example else ""


def markdown(text: str) -> str:
    """Return a docstring's reStructuredText as Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def render() -> str:
    """Return the page, with its introduction as it stands."""
    introduction, marker, _ = TARGET.read_text().partition(MARKER)
    rows = ["| Type | What | Linux | Class | Operations |", "|---|---|---|---|---|"]
    sections = []
    for number in sorted(CLASSES):
        kind, name = CLASSES[number], MapType(number).name
        description, rest, example = parts(kind)
        (version,) = re.findall(r"\(Linux (\d+\.\d+)", description)
        what = re.sub(r"\s*\(Linux [^)]*\)", "", description.split(". ")[0]).rstrip(".")
        done = ", ".join(f"`{operation}`" for operation in operations(kind)) or "-"
        anchor = name.lower()
        rows.append(f"| [{name}](#{anchor}) | {markdown(what)} | {version} | `{kind.__name__}` | {done} |")
        sections.append(f"### {name}\n\n`{kind.__name__}`: {markdown(description)}\n")
        if rest:
            sections.append(markdown(rest) + "\n")
        sections.append(f"```pycon\n{example.strip()}\n```\n")
    return "\n".join([introduction + marker, *rows, "", *sections])


if __name__ == "__main__":
    TARGET.write_text(render())
