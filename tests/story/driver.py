"""The flows, called in one process of the laptop's: a new one for every run would take seconds.

``python -m tests.story.driver`` reads orders from stdin, a line of JSON each: ``flow``,
``parameters``, a list for as many runs, and how many of them go ``side_by_side``. Its answers are
lists of the fields of Ended. They are flow runs like any other, on the laptop's server.
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
from functools import partial
from pathlib import Path
from typing import IO, Any

from flows.findings import DIFFERS, UNCHECKED
from rehearsal import laptop

ROOT = Path(__file__).resolve().parent.parent.parent
Json = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A flow run that came to its end.

    ``rows`` are those of its table: of a bootstrap the resources, of a drift check the findings, of
    preflight the prerequisites.
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

    def run(self, flow: str, parameters: Json, seconds: float) -> Ended:
        """What became of a run. Raises AssertionError when it has not ended in time."""
        return self.each(flow, [parameters], seconds)[0]

    def each(
        self, flow: str, parameters: list[Json], seconds: float, side_by_side: int | None = None
    ) -> list[Ended]:
        """What became of a run with each of the parameters, in their order; all of them go side by
        side, or so many at a time. Raises AssertionError when they have not ended in time."""
        at_once = side_by_side or len(parameters)
        order = {"flow": flow, "parameters": parameters, "side_by_side": at_once}
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
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.bootstrap import bootstrap_server
    from flows.drift import check_drift
    from flows.outside import check_server
    from flows.preflight import preflight

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    every: tuple[Any, ...] = (bootstrap_server, check_drift, check_server, preflight)
    flows = {each.name: each for each in every}

    def run(flow: str, parameters: Json) -> Json:
        began = time.monotonic()
        # A flow run's heartbeats cost a second each time; those of the laptop's worker have them.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            state = flows[flow](**parameters, return_state=True)
        rows = state.result(raise_on_failure=False)
        return {
            "state": state.name,
            "message": str(state.message),
            "seconds": time.monotonic() - began,
            "rows": rows if isinstance(rows, list) else [],
        }

    for line in sys.stdin:
        order = json.loads(line)
        with ThreadPoolExecutor(order["side_by_side"]) as pool:
            ended = list(pool.map(partial(run, order["flow"]), order["parameters"]))
        print(json.dumps(ended), file=answers, flush=True)


if __name__ == "__main__":
    main()
