"""docs/kernels.md, written from the last results on each kernel."""

from __future__ import annotations

import sys

from tests.matrix.kernels import SUITES
from tests.matrix.requirements import CAPABILITIES, REQUIREMENTS
from tests.matrix.suite import PROJECT, Result, load_results

_HEAD = """\
# Kernels

The kernel tests run on these Debian kernels under QEMU, and this page is made from what was found there, by
`python -m tests.matrix && python -m tests.matrix --docs`; edit nothing here. `ptrace doctor` says the same of
the kernel it runs on.

- yes: it was tried there and worked.
- no: this kernel lacks it; the reason is below the table.
- In **bold**: required of that kernel. A test run in which it does not work fails, so it is not lost unseen.
"""


def write_docs() -> int:
    """Write the page and return 0, or 1 where there are no results to write it from."""
    results = [result for name, result in load_results().items() if name.partition(":")[0] in SUITES]
    results.sort(key=lambda result: (list(SUITES).index(result.kernel.partition(":")[0]), result.kernel))
    if not results:
        print("matrix: no results yet: run `python -m tests.matrix` first", file=sys.stderr)
        return 1
    page = PROJECT / "docs/kernels.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(render(results))
    return 0


def render(results: list[Result]) -> str:
    """Return the page's text."""
    rows = [
        ["", *(result.kernel for result in results)],
        ["---"] * (len(results) + 1),
        ["release", *(result.release for result in results)],
    ]
    for fact in sorted({name for result in results for name in result.facts}):
        rows.append([fact, *(str(result.facts.get(fact, "")) for result in results)])
    reasons: dict[str, list[str]] = {}
    for name, meaning in CAPABILITIES.items():
        cells = []
        for result in results:
            reason = result.capabilities.get(name)
            cell = "not tried" if reason is None else "no" if reason else "yes"
            required = name in REQUIREMENTS[result.kernel.partition(":")[0]]
            cells.append(f"**{cell}**" if required else cell)
            if reason:
                reasons.setdefault(f"`{name}`: {reason}", []).append(result.kernel)
        rows.append([f"`{name}`: {meaning}", *cells])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text = f"{_HEAD}\n{table}"
    if reasons:
        listed = "".join(f"- {reason} ({', '.join(kernels)})\n" for reason, kernels in reasons.items())
        text += f"\n## Why not\n\n{listed}"
    return text
