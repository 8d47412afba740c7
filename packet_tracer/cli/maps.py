"""``ptrace maps``: look at the BPF maps of this host, and change them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from packet_tracer.cli.listing import Format, FormatOption

if TYPE_CHECKING:
    from packet_tracer.bpf.maps.info import MapInfo
    from packet_tracer.bpf.maps.inspect import MapUsers

app = typer.Typer(
    help="Look at the BPF maps of this host, and change them. Needs root.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MapArgument = Annotated[str, typer.Argument(metavar="ID|NAME|PIN", help="Which map; see `ptrace maps list`.")]
KEY_HELP = (
    "A number, an address, a prefix, a name, JSON ('{\"port\": 80}'; fields left out are zero), "
    "or bytes as bpftool takes them ('0x50 0 0 0')."
)


@app.command("list")
def list_command(output: FormatOption = Format.TEXT) -> None:
    """List all maps: id, type, name, entries at most, memory, and who pins or uses them."""
    from packet_tracer.bpf.maps.inspect import description, list_maps
    from packet_tracer.terminal import table

    found = list_maps()
    if output == Format.JSON:
        typer.echo(json.dumps([description(info, users) for info, users in found]))
        return
    rows = [
        (str(info.id), info.type, info.name or "-", str(info.max_entries), _size(info), _users(users))
        for info, users in found
    ]
    for line in table([("ID", "TYPE", "NAME", "ENTRIES", "MEMORY", "USED BY"), *rows]):
        typer.echo(line)


@app.command()
def show(which: MapArgument, output: FormatOption = Format.TEXT) -> None:
    """Tell all about one map: sizes, flags, memory, the types of its keys and values, and who uses it."""
    from packet_tracer.bpf.maps.codecs.plain import example
    from packet_tracer.bpf.maps.inspect import description, find_map, users_of
    from packet_tracer.bpf.maps.keyed import KeyedMap
    from packet_tracer.diagnostics import printable

    with find_map(which) as found:
        info, users = found.info(), users_of(found.id)
        if output == Format.JSON:
            typer.echo(json.dumps(description(info, users)))
            return
        lines = [
            f"{info.id}: {info.type} {info.name or '(unnamed)'}, flags {info.flags:#x}"
            f"{', frozen' if info.frozen else ''}",
            f"key {info.key_size} bytes, value {info.value_size} bytes, {info.max_entries} entries at most, "
            f"memory {_size(info)}",
        ]
        if isinstance(found, KeyedMap) and info.key_size:
            lines.append(f"key: {found.key_codec.describe()}, for example {example(found.key_codec)}")
        if isinstance(found, KeyedMap):
            lines.append(f"value: {found.value_codec.describe()}")
        lines += [f"pinned at {path}" for path in users.pins]
        lines += [f"used by program {program.id} {program.name}" for program in users.programs]
        lines += [f"open in process {process.pid} {process.comm}" for process in users.processes]
        for line in lines:
            typer.echo(printable(line))


@app.command()
def dump(which: MapArgument, output: FormatOption = Format.TEXT) -> None:
    """Print all entries of a map, by the C types of its keys and values if it has any, as bpftool does."""
    from packet_tracer.bpf.maps.inspect import Entries, find_map
    from packet_tracer.bpf.maps.printing import JsonWriter

    with find_map(which) as found:
        entries = Entries(found)
        as_json, typed = output == Format.JSON, entries.printer.typed
        writer = JsonWriter(pretty=not as_json)
        count = 0
        writer.start("[")
        for key, value in entries.all():
            count += 1
            if as_json:
                entries.printer.json(writer, key, value)
            elif typed:
                entries.printer.formatted(writer, key, value)
            else:
                typer.echo(entries.printer.hexadecimal(key, value))
        writer.end("]")
        if as_json or typed:
            typer.echo(writer.text())
        else:
            typer.echo(f"Found {count} element{'' if count == 1 else 's'}")


@app.command(context_settings={"ignore_unknown_options": True})
def get(
    which: MapArgument,
    key: Annotated[str | None, typer.Argument(help=KEY_HELP)] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Print one entry of a map; of a queue or stack, without a key, the next value, which stays there."""
    from packet_tracer.bpf.maps.inspect import Entries, find_map
    from packet_tracer.bpf.maps.printing import JsonWriter

    with find_map(which) as found:
        entries = Entries(found)
        raw_key, value = entries.get(key)
        writer = JsonWriter(pretty=output == Format.TEXT)
        if output == Format.JSON:
            entries.printer.json(writer, raw_key, value)
            typer.echo(writer.text())
        elif entries.printer.typed:
            entries.printer.formatted(writer, raw_key, value)
            typer.echo(writer.text())
        else:
            typer.echo(entries.printer.hexadecimal(raw_key, value))


@app.command("set", context_settings={"ignore_unknown_options": True})
def set_command(
    which: MapArgument,
    words: Annotated[
        list[str], typer.Argument(metavar="[KEY] VALUE", help=f"KEY: {KEY_HELP} VALUE: the same.")
    ],
) -> None:
    """Set the value of a key; for all CPUs alike in a per-CPU map. On a queue or stack: push VALUE."""
    from packet_tracer.bpf.maps.inspect import Entries, find_map

    if len(words) > 2:
        raise typer.BadParameter("put a key or value of several words in quotes", param_hint="[KEY] VALUE")
    with find_map(which) as found:
        Entries(found).set(words[0] if len(words) == 2 else None, words[-1])


@app.command(context_settings={"ignore_unknown_options": True})
def delete(which: MapArgument, key: Annotated[str, typer.Argument(help=KEY_HELP)]) -> None:
    """Remove an entry of a map."""
    from packet_tracer.bpf.maps.inspect import Entries, find_map

    with find_map(which) as found:
        Entries(found).delete(key)


def _size(info: MapInfo) -> str:
    if info.memory_bytes is None:
        return "?"
    size = float(info.memory_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _users(users: MapUsers) -> str:
    words = [*users.pins]
    words += [f"prog {program.id} {program.name}" for program in users.programs]
    words += [f"{process.comm}({process.pid})" for process in users.processes]
    return ", ".join(words) or "-"
