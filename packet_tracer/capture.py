"""Tracing packets from Python: :class:`Tracer` attaches probes and yields what they see.

from packet_tracer import Tracer
with Tracer(netns="client", interface="c0", profile="drops") as tracer:
    for event in tracer.events(limit=100, timeout=5.0):
        print(event.timestamp, event.probe, event.packet.source, event.drop_reason)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from packet_tracer import netns as namespaces
from packet_tracer.bpf.ring import RingBuffer
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.events import Context, Event, EventBatch
from packet_tracer.events._layout import ProbeId
from packet_tracer.filter import Filter
from packet_tracer.filter import compile as compile_filter
from packet_tracer.filter.predicates import Predicates
from packet_tracer.free_memory import free_memory
from packet_tracer.probes.catalogue import PATH, Probe, probe_names, select
from packet_tracer.probes.function_backends import may_trace_functions
from packet_tracer.probes.function_probes import Backend, number
from packet_tracer.probes.scope import Scope, texts
from packet_tracer.probes.session import ProbeSession
from packet_tracer.probes.setup import Counters, KernelSetup, Tracking, clock_offset_ns
from packet_tracer.probes.stages import choose

if TYPE_CHECKING:
    from packet_tracer.probes.program_probes import ProgramProbe

#: Events made between two looks at the clock: a batch may hold many, and its reader be slow.
_EVENTS_BETWEEN_LOOKS = 64

DEFAULT_SNAPLEN = 96
#: Some 70,000 events without captured bytes. The reader maps rings twice, so a process seems to have twice
#: as much.
DEFAULT_RING_BYTES = 16 << 20
#: A million events without captured bytes.
DEFAULT_BACKLOG_BYTES = 256 << 20


class Tracer:
    """A capture: attached between ``with`` and its end, an iterable of events, in order of time.

    - ``interface``: a name or several; only packets at these devices, or that came in by them. XDP and TC
      probes attach here. ``"any"`` is no filter.
    - ``netns``: name, path, ``pid:N`` or several of them; ``"all"`` is no filter. Without it: the caller's
      namespace if an interface is named, else all. Netfilter probes attach in the given ones (for all: in
      the caller's).
    - ``mark``: the value of ``skb->mark``, or ``(value, mask)``.
    - ``probes``: globs over names that ``ptrace probes`` lists; ``profile``: a named choice. ``"path"`` is
      the whole way: tracepoints and some 60 functions, each with its stage; ``"tracepoints"`` does without
      functions. Nothing named means ``"path"`` where functions can be traced, else ``"tracepoints"``.
    - ``filter``: a pcap-filter(7) expression, decided in the kernel: ``"tcp port 443"``.
    - ``predicates``: filters beside it: processes, cgroups, length, drop reasons, sets of addresses. (Its
      namespaces, interfaces and mark are the arguments of these names.)
    - ``functions``: kernel functions that handle packets, as globs, ``/regular expressions/`` or
      ``module:NAME`` (``"*"``: all of them), but none that ``exclude`` names; ``backend`` forces one of
      ``fentry``, ``kprobe-multi``, ``kprobe``; ``returns`` adds return values.
    - ``trace_programs``: BPF programs of others: ``"xdp"`` or ``"tc"`` (all of a kind), an id, or a glob over
      names. Each has two events a packet, at its entry and, with the verdict, at its exit. With functions or
      programs no probes are the default.
    - ``follow``: show what matched the filter once from then on, whatever becomes of its headers (default:
      with a filter, where the identity of packets is exact). ``stacks``: take kernel stacks.
    - ``snaplen``: bytes kept of each packet, up to 9216. ``ring_bytes``: memory of all ring buffers together.
    - ``backlog_bytes``: memory for what is not read before the rings are full, taken when it is needed;
      0 is none, None is 256 MiB, or a quarter of the free memory if that is less.
    - ``count_rejected``: also count what the filters turn away (a few nanoseconds a packet).

    Raises UsageError for what does not exist, NotPermittedError without the privileges (CAP_BPF,
    CAP_PERFMON and CAP_NET_ADMIN), NotSupportedError and BpfError for what this kernel refuses. One thread
    reads; :meth:`stop` may be called from any, and from a signal handler.
    """

    def __init__(
        self,
        *,
        interface: str | Iterable[str] | None = None,
        netns: str | Iterable[str] | None = None,
        mark: int | tuple[int, int] | None = None,
        probes: str | Iterable[str] = (),
        profile: str | None = None,
        filter: str | Filter | None = None,  # noqa: A002 - what everyone calls it
        predicates: Predicates | None = None,
        functions: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        backend: Backend | None = None,
        returns: bool = False,
        trace_programs: str | Iterable[str] = (),
        follow: bool | None = None,
        stacks: bool = False,
        snaplen: int = DEFAULT_SNAPLEN,
        ring_bytes: int = DEFAULT_RING_BYTES,
        backlog_bytes: int | None = None,
        count_rejected: bool = False,
    ) -> None:
        self.functions = number(choose(texts(functions), texts(exclude), path=profile == PATH))
        self.programs: tuple[ProgramProbe, ...] = ()
        if trace_programs:
            from packet_tracer.probes.program_probes import choose_programs, number_programs

            first = ProbeId.FUNCTION + 2 * len(self.functions)
            self.programs = number_programs(choose_programs(texts(trace_programs)), first)
        chosen = texts(probes)
        inside = bool(self.functions or self.programs)
        #: Nothing was chosen: start() adds the functions of ``path`` where they can be had.
        self._adds_path = not (inside or chosen or profile) and not (
            predicates and predicates.drop_reasons  # functions drop nothing
        )
        self.probes: tuple[Probe, ...] = (
            () if inside and not chosen and profile is None else select(chosen, profile)
        )
        scope = Scope.resolve(netns, interface)
        for probe in self.probes:
            if probe.needs_interface and not scope.points:
                raise UsageError(f"probe {probe.name} is attached to an interface: name one with -i")
        self._predicates = scope.predicates(predicates, mark)
        self._limited = bool(scope.namespaces)
        self._setup = KernelSetup(
            probes=self.probes,
            points=scope.points,
            netns=scope.namespaces or (namespaces.current(),),
            snaplen=snaplen,
            ring_bytes=ring_bytes,
            count_rejected=count_rejected,
            rodata=self._predicates.rodata(),
            filter=compile_filter(filter) if isinstance(filter, str) else filter,
            addresses=self._predicates.addresses,
            functions=self.functions,
            backend=backend,
            returns=returns,
            programs=self.programs,
            follow=inside and filter is not None if follow is None else follow,
            stacks=stacks,
        )
        self._follows_path = filter is not None if follow is None else follow
        self.backlog_bytes = default_backlog_bytes() if backlog_bytes is None else backlog_bytes
        self._session: ProbeSession | None = None
        self._ring: RingBuffer | None = None
        self._context: Context | None = None
        self._counters: Mapping[int, Counters] = {}
        self._missed = 0
        self._rest: Iterator[Event] = iter(())
        self._stopped = False
        self._drained = False

    # Life

    def start(self) -> None:
        """Load and attach. Called by ``with``. A tracer may be started again after its end."""
        if self._session is not None:
            raise ValueError("the tracer is started already")
        if self._context is not None:
            self._stopped = self._drained = False
        session = self._attach()
        try:
            context = Context(probes=self._probe_names(), wall_clock_offset_ns=clock_offset_ns())
            if not self._limited:
                context.interface_names.refresh()
            for netns in self._setup.netns:
                context.interface_names.add(netns)
            self._ring = RingBuffer(session.rings, backlog_bytes=self.backlog_bytes)
        except BaseException:
            session.close()
            raise
        self._session, self._context = session, context

    def _attach(self) -> ProbeSession:
        """Attach what was chosen; if nothing was, with the functions of ``path`` where that works."""
        refusal = ""
        if self._adds_path and not self.functions and may_trace_functions():
            try:
                functions = number(choose((), (), path=True))
                setup = replace(self._setup, functions=functions, follow=self._follows_path)
                session = ProbeSession(setup).__enter__()
            except NotSupportedError as error:
                # If that was not because of the functions, it is said again now.
                refusal = f"without kernel functions: {error}"
            else:
                self.functions, self._setup = functions, setup
                return session
        session = ProbeSession(self._setup).__enter__()
        if refusal:
            session.notes.append(refusal)
        return session

    def stop(self) -> None:
        """End the capture: iterators yield what the rings still hold, then finish. Detaching is left to
        them.
        """
        self._stopped = True
        if self._ring is not None:
            self._ring.wake()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    def close(self) -> None:
        """Detach, and give back all memory. Counters stay readable. Called by ``with``."""
        session, self._session = self._session, None
        if session is None:
            return
        ring, self._ring = self._ring, None
        self._rest = iter(())
        try:
            session.detach()
            self._counters = session.counters()
            self._missed = session.missed_by_functions()
        finally:
            if ring is not None:
                ring.close()
            session.close()

    def __enter__(self) -> Tracer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # What is seen

    @property
    def context(self) -> Context:
        """What names the numbers in this capture's records: probes, interfaces, namespaces, drop reasons,
        clock.
        """
        if self._context is None:
            raise ValueError("the tracer is not started")
        return self._context

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when a ring fills; a quiet one is looked at every 100
        ms.
        """
        return self._reader().fileno()

    def batches(self, *, timeout: float | None = None) -> Iterator[EventBatch]:
        """Yield events by the batch, as fast as they can be had, until the time-out (seconds) or
        :meth:`stop`.

        Batches are never empty, and in order of time; a time-out of 0 asks for what is there.
        After :meth:`stop` the probes are detached and what
        they left in the rings is yielded, so that nothing kept is lost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._stopped:
            wait = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            batch = self._reader().read(wait)
            if batch.count:
                yield EventBatch(batch, self.context)
            if wait == 0:
                return
        yield from self._drain()

    def _drain(self) -> Iterator[EventBatch]:
        reader = self._reader()
        if self._session is not None:
            self._session.detach()
        while not self._drained:
            batch = reader.flush()
            if not batch.count:
                self._drained = True
                return
            yield EventBatch(batch, self.context)

    def events(self, limit: int | None = None, timeout: float | None = None) -> Iterator[Event]:
        """Yield events until ``limit`` of them, ``timeout`` seconds or :meth:`stop`, whichever comes
        first. What a limit, a time-out or the loop's own end leaves of a batch is for the next who asks for
        events.
        """
        self._reader()
        deadline = None if timeout is None else time.monotonic() + timeout
        wait, taken = timeout, 0
        while limit is None or taken < limit:
            for event in self._rest:
                taken += 1
                yield event
                if taken == limit or (taken % _EVENTS_BETWEEN_LOOKS == 0 and _over(deadline)):
                    return
            if wait is not None and wait < 0:
                return
            batch = next(self.batches(timeout=wait), None)
            if batch is None:
                return
            self._rest = iter(batch)
            wait = None if deadline is None else deadline - time.monotonic()

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events without blocking the event loop: it waits for the rings' descriptor."""
        import asyncio  # 20 ms that no other use has to wait for

        loop, ready, descriptor = asyncio.get_running_loop(), asyncio.Event(), self.fileno()
        loop.add_reader(descriptor, ready.set)
        try:
            while True:
                for event in self._rest:
                    yield event
                ready.clear()
                stopped = self._stopped
                batch = next(self.batches() if stopped else self._there(), None)
                if batch is not None:
                    self._rest = iter(batch)
                elif stopped:
                    return
                else:
                    await ready.wait()  # 100 ms at most, see fileno()
                # The events of others have their turn too, however many there are here.
                await asyncio.sleep(0)
        finally:
            loop.remove_reader(descriptor)

    def _there(self) -> Iterator[EventBatch]:
        batch = self._reader().read(0)
        if batch.count:
            yield EventBatch(batch, self.context)

    def stats(self) -> dict[str, Counters]:
        """Return what became of the events of each probe: seen, kept, lost. Live, and after the end."""
        counters = self._session.counters() if self._session is not None else self._counters
        chosen = {probe.probe_id: probe.name for probe in self.probes} | self._function_names()
        return {name: counters.get(probe_id, Counters()) for probe_id, name in chosen.items()}

    def missed(self) -> int:
        """Return how often a probe was left out because it was running on that CPU already, for packets of
        the whole host: those of :meth:`stats`, and all functions together. Live, and after the end.
        """
        if self._session is None:
            functions, counters = self._missed, self._counters
        else:
            functions, counters = self._session.missed_by_functions(), self._session.counters()
        return functions + sum(counters[probe_id].missed for probe_id in self._ids() & counters.keys())

    def tracking(self) -> Tracking:
        """Return how many packets got an id, and how many were forgotten: there were too many."""
        if self._session is None:
            raise ValueError("the tracer is not started" if self._context is None else "the tracer is closed")
        return self._session.tracking()

    def _ids(self) -> set[int]:
        """The probe ids of all that was asked for but functions."""
        of_programs = {traced.probe_id + at for traced in self.programs for at in (0, 1)}
        return {probe.probe_id for probe in self.probes} | of_programs

    def _function_names(self) -> dict[int, str]:
        names = {probe.probe_id: probe.name for probe in self.functions}
        if self._setup.returns:
            calls = [probe for probe in self.functions if probe.argument is not None]
            names |= {probe.probe_id + 1: f"{probe.name} returns" for probe in calls}
        for traced in self.programs:
            names |= {traced.probe_id: traced.name, traced.probe_id + 1: f"{traced.name} returns"}
        return names

    def _probe_names(self) -> dict[int, str]:
        return probe_names() | self._function_names()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how it attached: native or generic XDP, TCX or clsact, functions."""
        return tuple(self._session.notes) if self._session is not None else ()

    @property
    def backend(self) -> Backend | None:
        """What functions are traced by; None without functions, and before the start and after the end."""
        return self._session.backend if self._session is not None else None

    @property
    def exact_identity(self) -> bool:
        """Whether packet ids are exact; else they are by best effort (docs/identity.md)."""
        return self._session is not None and self._session.exact_identity

    @property
    def skipped(self) -> Mapping[str, str]:
        """Functions and BPF programs that were chosen but can't be traced here, with the reason of each."""
        return self._session.skipped if self._session is not None else {}

    def stack(self, stack_id: int) -> tuple[str, ...]:
        """Return the kernel stack of an event's ``stack_id``, innermost first: ``"ip_rcv+0x5"``, or the bare
        address where the kernel hides its symbols.

        Readable from the start until the tracer is closed; ValueError outside of it, KeyError for an id that
        there is not.
        """
        if self._session is None:
            raise ValueError("stacks are read while the tracer is started")
        from packet_tracer.bpf.maps.stacks import StackTrace

        name = self.context.symbols.name
        with StackTrace.from_map(self._session.maps["stacks"]) as stacks:
            return tuple(frame.symbol or f"{frame.address:#x}" for frame in stacks.frames(stack_id, name))

    def _reader(self) -> RingBuffer:
        if self._ring is None:
            raise ValueError("the tracer is not started" if self._context is None else "the tracer is closed")
        return self._ring


def default_backlog_bytes() -> int:
    """Return the memory that a capture's backlog may take unless something else is asked for."""
    free = free_memory()
    return DEFAULT_BACKLOG_BYTES if free is None else min(DEFAULT_BACKLOG_BYTES, free // 4)


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
