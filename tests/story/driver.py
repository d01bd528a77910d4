"""The flows, called in one process of the laptop's: a new one for every run would take seconds.

``python -m tests.story.driver`` reads orders from stdin, a line of JSON each: ``flow``,
``parameters`` and ``times``, for so many runs side by side. Its answers are lists of the
fields of Ended. They are flow runs like any other, on
the laptop's server.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flows.findings import DIFFERS, UNCHECKED
from rehearsal import laptop

ROOT = Path(__file__).resolve().parent.parent.parent
Json = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A flow run that came to its end.

    ``rows`` are those of its table: of a bootstrap the resources, of a drift check the findings.
    """

    state: str
    message: str
    seconds: float
    rows: list[Json]

    def outcomes(self, *words: str) -> list[str]:
        """The resources of a bootstrap with one of these outcomes."""
        return [row["resource"] for row in self.rows if row["outcome"] in words]

    @property
    def found(self) -> set[tuple[str, str]]:
        """Resource and attribute of all that a drift check found to differ."""
        rows = (row for row in self.rows if row["class"] in DIFFERS)
        return {(row["resource"], row["attribute"]) for row in rows}

    @property
    def unchecked(self) -> dict[str, str]:
        """What could not be checked, and why."""
        rows = (row for row in self.rows if row["class"] == UNCHECKED and not row["attribute"])
        return {row["resource"]: row["actual"] for row in rows}


@dataclass(frozen=True)
class Driver:
    """The process, and the pipes to it."""

    process: subprocess.Popen[str]
    log: Path

    def run(self, flow: str, parameters: Json, seconds: float, times: int = 1) -> list[Ended]:
        """What became of the runs. Raises AssertionError when they have not ended in time."""
        order = {"flow": flow, "parameters": parameters, "times": times}
        into, out = self._pipes()
        into.write(json.dumps(order) + "\n")
        into.flush()
        ready, _, _ = select.select([out], [], [], seconds)
        line = out.readline() if ready else ""
        ended = f"the log ends: {self.log.read_text(errors='replace')[-2000:]}"
        assert line, f"{flow} has not ended in {seconds:.0f} s; {ended}"
        return [Ended(**answer) for answer in json.loads(line)]

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin
        assert self.process.stdout
        return self.process.stdin, self.process.stdout


@contextmanager
def driver(url: str, log: Path) -> Iterator[Driver]:
    """A process with the laptop's Prefect, whose server is at ``url``, and in the cloud's view."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-m", "rehearsal", "exec", "--", sys.executable, "-m", __name__]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**kept, **laptop.settings(), "PREFECT_API_URL": f"{url}/api"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process:  # which closes its pipes
        try:
            yield Driver(process, log)
        finally:
            process.kill()


def main() -> None:
    """Answer orders until there are no more; what flows print is no answer."""
    from flows.bootstrap import bootstrap_server
    from flows.drift import check_drift

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    flows: dict[str, Any] = {each.name: each for each in (bootstrap_server, check_drift)}

    def run(order: Json) -> Json:
        began = time.monotonic()
        state = flows[order["flow"]](**order["parameters"], return_state=True)
        rows = state.result(raise_on_failure=False)
        return {
            "state": state.name,
            "message": str(state.message),
            "seconds": time.monotonic() - began,
            "rows": rows if isinstance(rows, list) else [],
        }

    for line in sys.stdin:
        order = json.loads(line)
        with ThreadPoolExecutor(order["times"]) as side_by_side:
            ended = list(side_by_side.map(run, [order] * order["times"]))
        print(json.dumps(ended), file=answers, flush=True)


if __name__ == "__main__":
    main()
