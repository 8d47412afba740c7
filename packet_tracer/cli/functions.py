"""``ptrace probes --functions``: the kernel functions that handle packets, and how each can be traced."""

from __future__ import annotations

import json

import typer

from packet_tracer.doctor import examine_hooks
from packet_tracer.probes.function_probes import BACKENDS
from packet_tracer.probes.functions import FunctionTable, SkbFunction
from packet_tracer.terminal import table


def backends_of(function: SkbFunction, works: dict[str, bool | None]) -> list[str]:
    """Return the backends that reach a function on this kernel, best first."""
    usable = {
        "fentry": function.trampoline,
        "fentry-multi": function.trampoline,
        "kprobe-multi": True,
        "kprobe": True,
    }
    return [name for name, reaches in usable.items() if reaches and works.get(name)]


def list_functions(pattern: str | None, *, as_json: bool) -> None:
    """Print the functions that a pattern names, all without one. Raises UsageError if it names none."""
    found = FunctionTable.read()
    chosen = found.select([pattern] if pattern else [])
    hooks = {finding.name: finding for finding in examine_hooks().findings}
    works = {name: finding.works for name, finding in hooks.items()}
    if as_json:
        for function in chosen:
            described = {
                "name": function.name,
                "module": function.module,
                "address": function.address or None,
                "prototype": function.prototype,
                "backends": backends_of(function, works),
                "returns_skb": function.returns_skb,
            }
            typer.echo(json.dumps(described))
        return
    rows = [
        (function.name, function.module, " ".join(backends_of(function, works)) or "none", function.prototype)
        for function in chosen
    ]
    for line in table([("FUNCTION", "MODULE", "BACKENDS", "PROTOTYPE"), *rows]):
        typer.echo(line)
    if not any(works.get(name) for name in BACKENDS):
        typer.echo("\nNo backend works on this kernel:")
        for name in BACKENDS:
            typer.echo(f"  {name}: {hooks[name].detail}")
