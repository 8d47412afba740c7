"""``ptrace capture``: its options, and how they become a tracer, outputs and limits."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from packet_tracer.cli import complete, filtering, values
from packet_tracer.errors import UsageError

if TYPE_CHECKING:
    from packet_tracer.probes.function_probes import Backend as FunctionBackend


class Format(str, Enum):
    """How events are printed."""

    TEXT = "text"
    JSON = "json"


class Backend(str, Enum):
    """How kernel functions are attached to: by what works best, by one means, or not at all."""

    AUTO = "auto"
    FENTRY = "fentry"
    FENTRY_MULTI = "fentry-multi"
    KPROBE_MULTI = "kprobe-multi"
    KPROBE = "kprobe"
    TRACEPOINT = "tracepoint"


class LogFormat(str, Enum):
    """How the tool's own messages are printed."""

    HUMAN = "human"
    JSON = "json"


_FUNCTION_BACKENDS: dict[Backend, FunctionBackend] = {
    Backend.FENTRY: "fentry",
    Backend.FENTRY_MULTI: "fentry-multi",
    Backend.KPROBE_MULTI: "kprobe-multi",
    Backend.KPROBE: "kprobe",
}


def capture(
    expression: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPRESSION", help="Only packets that match, as in pcap-filter(7)."),
    ] = None,
    expression_file: Annotated[
        str | None,
        typer.Option("-F", metavar="FILE", help="Read the expression from a file; - is standard input."),
    ] = None,
    filter_inner: Annotated[
        str | None,
        typer.Option(
            "--filter-inner", metavar="EXPRESSION", help="What the packet inside a tunnel must match too."
        ),
    ] = None,
    tunnel: Annotated[
        list[str] | None,
        typer.Option(
            "--tunnel",
            metavar="vxlan|geneve|gre|ipip",
            help="Only packets in such a tunnel; without --filter-inner EXPRESSION is for the packet inside. "
            "Repeatable.",
        ),
    ] = None,
    dump: Annotated[
        int,
        typer.Option(
            "-d",
            count=True,
            show_default=False,
            help="Print what the expression is compiled to and exit: classic BPF, with -dd eBPF.",
        ),
    ] = 0,
    interface: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--interface",
            metavar="IFACE",
            autocompletion=complete.interfaces,
            help="Only packets at this device or that came in by it; XDP and TC probes attach to it. "
            "Repeatable; 'any' is all.",
        ),
    ] = None,
    netns: Annotated[
        list[str] | None,
        typer.Option(
            "--netns",
            metavar="NAME|PATH|pid:N|all",
            autocompletion=complete.namespaces,
            help="Only packets in this network namespace. Repeatable. "
            "Default: with -i the current one, else all.",
        ),
    ] = None,
    mark: Annotated[
        str | None,
        typer.Option("--mark", metavar="N[/MASK]", help="Only packets with this mark, as 1 or 0x10/0xff."),
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option(
            "--pid", metavar="PID", min=1, help="Only while this process or thread runs. Repeatable."
        ),
    ] = None,
    comm: Annotated[
        list[str] | None,
        typer.Option("--comm", metavar="NAME", help="Only while a task of this name runs. Repeatable."),
    ] = None,
    cgroup: Annotated[
        list[str] | None,
        typer.Option(
            "--cgroup", metavar="PATH|ID", help="Only of this cgroup and those below it. Repeatable."
        ),
    ] = None,
    length: Annotated[
        str | None, typer.Option("--length", metavar="MIN..MAX", help="Only packets of so many bytes.")
    ] = None,
    drop_reason: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-reason",
            metavar="NAME",
            autocompletion=complete.drop_reasons,
            help="Only drops for this reason, as NETFILTER_DROP. Repeatable.",
        ),
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option("--addresses", metavar="FILE", help="Only to or from these prefixes, one a line."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="PROBE",
            autocompletion=complete.probes,
            help="Where to look: a name or a glob, see `ptrace probes`. Repeatable.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            autocompletion=complete.profiles,
            help="A named set of probes: path, tracepoints, drops, device. "
            "Default: path where functions can be traced, else tracepoints.",
        ),
    ] = None,
    functions: Annotated[
        list[str] | None,
        typer.Option(
            "--functions",
            metavar="PATTERN",
            help="Kernel functions that handle packets: a glob, a /regex/ or module:NAME, see "
            "`ptrace probes --functions`. Repeatable.",
        ),
    ] = None,
    all_functions: Annotated[
        bool, typer.Option("--all-functions", help="All of them: it slows the host's network down.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="But not these functions. Repeatable."),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            "--backend",
            help="How functions are attached to: auto is what works best here; with tracepoint none are "
            "traced, and the default profile is tracepoints.",
        ),
    ] = Backend.AUTO,
    returns: Annotated[
        bool, typer.Option("--returns", help="What functions return, too, and the time spent in them.")
    ] = False,
    trace_programs: Annotated[
        list[str] | None,
        typer.Option(
            "--trace-programs",
            metavar="xdp|tc|ID|NAME",
            help="BPF programs of others, at entry and, with their verdict, at exit: all XDP or tc programs, "
            "one by id, or by name or glob, see `ptrace probes --programs`. Repeatable.",
        ),
    ] = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="The kernel's stack at each event, innermost function first.")
    ] = False,
    follow: Annotated[
        bool | None,
        typer.Option(
            "--follow/--no-follow",
            show_default=False,
            help="Show a packet that matched once whatever becomes of it. "
            "Default: with functions or BPF programs and a filter.",
        ),
    ] = None,
    journeys: Annotated[
        bool,
        typer.Option(
            "--journeys",
            help="Print packets, each with its whole way once that is over, not events.",
        ),
    ] = False,
    count: Annotated[
        int | None, typer.Option("-c", "--count", metavar="COUNT", min=1, help="Stop after this many events.")
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option("--duration", metavar="TIME", help="Stop after this time: 10s, 500ms, 2m, 1h."),
    ] = None,
    snaplen: Annotated[
        int | None,
        typer.Option(
            "-s",
            "--snaplen",
            metavar="BYTES",
            min=0,
            help="Bytes to keep of each packet. Default: 96 with -w, else none.",
        ),
    ] = None,
    ring_size: Annotated[
        str,
        typer.Option(
            "--ring-size", metavar="SIZE", help="The kernel's memory for events, from the start to the end."
        ),
    ] = "16M",
    backlog: Annotated[
        str | None,
        typer.Option(
            "--backlog",
            metavar="SIZE",
            help="Memory for events not yet written, taken when needed: more of it loses fewer. Default:"
            " 256M, or a quarter of what is free.",
        ),
    ] = None,
    output: Annotated[
        Format | None,
        typer.Option("--format", help="How events are printed. Default: text, or with -w not at all."),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option("-w", "--write", metavar="FILE.jsonl", help="Write JSON lines to a file; - is stdout."),
    ] = None,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Say what is attached, and how; -vv says more.",
        ),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="No status and no totals; loss is told all the same.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="How the messages on stderr are written.")
    ] = LogFormat.HUMAN,
) -> int:
    """Trace packets and print what happens to them, one line an event, until ctrl-C.

    \b
    ptrace capture -i eth0                 what comes and goes at a device
    ptrace capture --profile drops         what is dropped anywhere, and why
    ptrace capture --netns web --probe 'netfilter:*' -c 100 tcp port 443
    ptrace capture --functions 'ip_*' icmp   every step through these functions
    ptrace capture --trace-programs xdp      what each XDP program says to each packet
    ptrace capture --journeys host 192.0.2.1   the whole way of each packet
    ptrace capture -w trace.jsonl --duration 10s
    """
    from packet_tracer import diagnostics
    from packet_tracer.bpf.kprobes import has_kprobes
    from packet_tracer.probes import kallsyms

    diagnostics.configure(log_format.value, verbosity=verbose)
    # The default asks for functions where they can be traced; who says how to trace them, wants them.
    anything = bool(functions or all_functions or probe or profile or trace_programs or drop_reason)
    profile = profile or _default_profile(backend, exclude or returns, anything=anything)
    inside = bool(functions or all_functions or profile == "path")
    _check_backend(backend, exclude or returns, inside=inside)
    if (inside or not (anything or profile)) and not dump and has_kprobes():
        kallsyms.read_ahead()  # while the rest of the program is imported
    pattern = filtering.expression_of(expression or (), expression_file)
    compiled = filtering.compiled(pattern, filter_inner, tunnel or ())
    if dump:
        typer.echo(filtering.dump(compiled, dump))
        return 0
    seconds = values.duration(duration) if duration is not None else None
    ring_bytes = values.size(ring_size)
    backlog_bytes = values.size(backlog, least=0) if backlog is not None else None
    marked = values.mark(mark) if mark is not None else None
    formatted = output.value if output else None
    # Bytes that nobody will see are not captured: text shows what the kernel side read of the headers.
    kept = snaplen if snaplen is not None else (96 if write is not None else 0)

    from packet_tracer.cli import output as outputs

    if journeys:
        if write == "-":
            raise UsageError("-w writes events: for journeys as JSON say --journeys --format json")
        formatted, follow = formatted or "text", follow is not False
    outputs.check(formatted, write)

    from packet_tracer.capture import Tracer
    from packet_tracer.cli.capturing import Capture, Limits

    beside = filtering.predicates(
        pids=pid or (),
        comms=comm or (),
        cgroups=cgroup or (),
        length=values.length_range(length) if length is not None else None,
        drop_reasons=drop_reason or (),
        addresses=addresses,
    )
    tracer = Tracer(
        interface=interface,
        netns=netns,
        mark=marked,
        probes=probe or (),
        profile=profile,
        filter=compiled,
        predicates=beside,
        functions=("*",) if all_functions else functions or (),
        exclude=exclude or (),
        backend=_FUNCTION_BACKENDS.get(backend),
        returns=returns,
        trace_programs=trace_programs or (),
        follow=follow,
        stacks=stack,
        snaplen=kept,
        ring_bytes=ring_bytes,
        backlog_bytes=backlog_bytes,
    )
    frames = tracer.stack if stack else None
    with outputs.choose(
        formatted, write, data=snaplen is not None, frames=frames, journeys=journeys
    ) as chosen:
        limits = Limits(count=count, seconds=seconds)
        Capture(tracer, chosen, limits, snaplen=kept, ring_bytes=ring_bytes, quiet=quiet).run()
    return 0


def _default_profile(backend: Backend, about_functions: object, *, anything: bool) -> str | None:
    """Return the profile of a capture that names none: None leaves it to the tracer."""
    if anything:
        return None
    if backend is Backend.TRACEPOINT:
        return "tracepoints"
    return "path" if about_functions or backend in _FUNCTION_BACKENDS else None


def _check_backend(backend: Backend, about_functions: object, *, inside: bool) -> None:
    """Refuse what can't be meant: to say of functions how they are traced, and not to trace any."""
    if backend is Backend.TRACEPOINT and inside:
        raise UsageError(
            "--backend tracepoint traces no functions: leave it out, or --functions and the like"
        )
    if not inside and (about_functions or backend in _FUNCTION_BACKENDS):
        what = "--exclude, --backend and --returns are about functions"
        raise UsageError(f"{what}: say --profile path, --functions or --all-functions too")
