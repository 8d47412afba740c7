"""Several programs verified at once, or maps created: each may take 20 ms, and it does not mind company."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from packet_tracer.bpf.library import Descriptor
from packet_tracer.errors import BpfError

Name = TypeVar("Name")
Loaded = TypeVar("Loaded", bound=Descriptor)

_THREADS_MAX = 8


def load_together(loads: Mapping[Name, Callable[[], Loaded]]) -> dict[Name, Loaded]:
    """Call all, by as many threads as there are CPUs to use, and return what each loaded, in their order.

    Where one raises, those loaded are closed, those not begun are left, and the first error is raised.
    """
    results, errors = _run(loads, lambda error: True)
    if errors:
        for program in results.values():
            program.close()
        raise next(errors[name] for name in loads if name in errors)
    return {name: results[name] for name in loads}


def load_each(loads: Mapping[Name, Callable[[], Loaded]]) -> dict[Name, Loaded | BpfError]:
    """Do the same, but return the BpfError of what is refused in the place of its program."""
    results, errors = _run(loads, lambda error: not isinstance(error, BpfError))
    refused = {name: error for name, error in errors.items() if isinstance(error, BpfError)}
    if len(refused) < len(errors):
        for program in results.values():
            program.close()
        raise next(error for name, error in errors.items() if name not in refused)
    return {name: results[name] if name in results else refused[name] for name in loads}


def _run(
    loads: Mapping[Name, Callable[[], Loaded]], ends: Callable[[BaseException], bool]
) -> tuple[dict[Name, Loaded], dict[Name, BaseException]]:
    """Return what was loaded and what was raised; nothing is begun after an error that ``ends``."""
    names = list(loads)
    results: dict[Name, Loaded] = {}
    errors: dict[Name, BaseException] = {}
    following = iter(names)
    lock = threading.Lock()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            with lock:
                name = next(following, None)
            if name is None:
                return
            try:
                results[name] = loads[name]()
            except BaseException as error:
                errors[name] = error
                if ends(error):
                    ended.set()

    count = min(len(names), len(os.sched_getaffinity(0)), _THREADS_MAX)
    helpers = [threading.Thread(target=work, name="load-bpf", daemon=True) for _ in range(count - 1)]
    for helper in helpers:
        helper.start()
    try:
        work()
    except BaseException as error:  # a signal's exception, between two loads
        errors.setdefault(names[0], error)
        ended.set()
    for helper in helpers:
        helper.join()
    return results, errors
