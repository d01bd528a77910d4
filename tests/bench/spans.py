"""``python -m tests.bench.spans --server prefect-1``: a drift check, and where its seconds go, as JSON
in the last line."""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import functools  # noqa: E402 - the imports are measured, too
import itertools  # noqa: E402
import json  # noqa: E402
from typing import Any  # noqa: E402

from blocks.ssh import SshShell  # noqa: E402
from flows import drift, report  # noqa: E402

SPANS = (
    "imports",
    "the run",
    "secrets",
    "Google",
    "SSH through IAP",
    "machine and server",
    "report",
)
"""Each up to a mark, the last up to the end."""
MARKS = [
    (drift, "main", "before"),
    (drift, "secrets_or_error", "before"),
    (drift, "reached", "after"),
    (SshShell, "__enter__", "before"),
    (SshShell, "__enter__", "after"),
    (report, "differences", "before"),
]


def marked(times: list[float], owner: Any, name: str, when: str) -> None:
    """A function whose call leaves its time."""
    call = getattr(owner, name)

    @functools.wraps(call)
    def wrapper(*args: Any, **rest: Any) -> Any:
        if when == "before":
            times.append(time.perf_counter())
        result = call(*args, **rest)
        if when == "after":
            times.append(time.perf_counter())
        return result

    setattr(owner, name, wrapper)


def main() -> None:
    times = [BEGAN]
    for owner, name, when in MARKS:
        marked(times, owner, name, when)
    drift.main()
    times.append(time.perf_counter())
    spans = [round(after - before, 2) for before, after in itertools.pairwise(times)]
    print(json.dumps(dict(zip(SPANS, spans, strict=True))))


if __name__ == "__main__":
    main()
