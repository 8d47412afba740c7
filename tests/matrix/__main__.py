"""``python -m tests.matrix [KERNEL...] [-- COMMAND]``: see ``--help``."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from tests.matrix.errors import GuestDied, GuestTimeout, MatrixError
from tests.matrix.kernels import SUITES, Kernel, default_cache, fetch, parse_name
from tests.matrix.requirements import CAPABILITIES
from tests.matrix.run import run
from tests.matrix.suite import Result, run_tests, warm_up


def main(words: list[str]) -> int:
    """Run and return the exit status: COMMAND's own with one kernel, else 0 if all went well and 1 if not."""
    options, command = _parse(words)
    # So that temporary files and children go the same way as after an ordinary end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.docs:
            from tests.matrix.docs import write_docs

            return write_docs()
        for name in options.kernels:
            parse_name(name)
        if not command and not options.fetch:
            warm_up(options.tests)
        statuses = [_run_one(name, command, options) for name in options.kernels]
    except MatrixError as error:
        _say(error)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return statuses[0] if len(statuses) == 1 else int(any(statuses))


def _run_one(name: str, command: str, options: argparse.Namespace) -> int:
    kernel = fetch(name, options.cache, update=options.update)
    if options.fetch:
        print(f"{kernel.name} {kernel.release} {kernel.image}")
        return 0
    limits = {"memory": options.memory, "cpus": options.cpus, "verbose": options.verbose}
    try:
        if not command:
            return _test_one(kernel, options.tests, timeout=options.timeout, **limits)
        outcome = run(
            kernel,
            command,
            directory=Path.cwd(),
            stdout=sys.stdout.buffer,
            stderr=sys.stderr.buffer,
            timeout=options.timeout,
            count_instructions=options.count_instructions,
            **limits,
        )
    except (GuestDied, GuestTimeout) as error:
        _say(error)
        if not command and not options.tests:
            Result(kernel.name, kernel.release, problem=str(error)).save()
        return error.exit_status
    if options.verbose:
        times = f"up {outcome.boot_seconds:.1f} s when it began, {outcome.seconds:.1f} s in all"
        print(f"matrix: {kernel.name} ({kernel.release}): status {outcome.status}, {times}", file=sys.stderr)
    return outcome.status


def _test_one(kernel: Kernel, tests: list[str], **limits: object) -> int:
    print(f"== {kernel.name} ({kernel.release})", flush=True)
    result = run_tests(kernel, tests, **limits)  # type: ignore[arg-type]
    if not tests or CAPABILITIES.keys() <= result.capabilities.keys():  # what docs/kernels.md is made of
        result.save()
    for failure in result.failures:
        print(f"matrix: {kernel.name}: FAILED {failure}")
    print(f"matrix: {result}", flush=True)
    return 0 if result.ok else 1


def _say(error: MatrixError) -> None:
    print(f"matrix: {error}", *error.details, sep="\n", file=sys.stderr)


def _parse(words: list[str]) -> tuple[argparse.Namespace, str]:
    arguments, command = words, ""
    if "--" in words:
        at = words.index("--")
        arguments, rest = words[:at], words[at + 1 :]
        command = rest[0] if len(rest) == 1 else shlex.join(rest)
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix",
        usage="%(prog)s [options] [KERNEL...] [-- COMMAND]",
        description="Boot Debian kernels under QEMU on a copy-on-write view of this machine's root, and run "
        "COMMAND there as root in the current directory; without it, the project's kernel tests.",
    )
    parser.add_argument(
        "kernels",
        metavar="KERNEL",
        nargs="*",
        help=f"SUITE or SUITE:full, of {', '.join(SUITES)}; all by default",
    )
    parser.add_argument(
        "--tests", action="append", default=[], help="a test file, or any pytest argument; repeatable"
    )
    # All tests take half an hour to an hour where others want the CPUs too; one that hangs fails by itself.
    parser.add_argument(
        "--timeout", type=float, default=5400, metavar="SECONDS", help="for each kernel (%(default)s)"
    )
    parser.add_argument("--memory", default="2G", help="of the guest (2G)")
    parser.add_argument("--cpus", type=int, default=2, help="of the guest (2)")
    parser.add_argument(
        "--count-instructions",
        action="store_true",
        help="for COMMAND: the guest's clock counts instructions, a nanosecond each",
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where kernels are kept (%(default)s)"
    )
    parser.add_argument("--update", action="store_true", help="look for newer kernels")
    parser.add_argument("--fetch", action="store_true", help="only fetch and unpack")
    parser.add_argument("--docs", action="store_true", help="write docs/kernels.md from the last results")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the guest's console and the times")
    options = parser.parse_args(arguments)
    options.kernels = options.kernels or list(SUITES)
    return options, command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
