"""Outcomes → artifacts and the final state. Nothing here decides; it only says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from prefect import State
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.states import Completed, Failed

from flows.connect import PORT
from flows.reconcile import Outcome
from flows.spec import ServerSpec
from flows.stages import Done, Step

NAMED = 5
"""As many resources as a state's message names."""


def rows(todo: Sequence[Step], done: Sequence[Done], redact: Any) -> list[dict[str, Any]]:
    """A row for every step, done or not."""
    by_name = {(each.step.stage, each.step.resource.name): each for each in done}
    return [_row(step, by_name.get((step.stage, step.resource.name)), redact) for step in todo]


def _row(step: Step, done: Done | None, redact: Any) -> dict[str, Any]:
    changes = ""
    if done and done.outcome:
        changes = "; ".join(map(str, done.outcome.changes))
    elif done:
        changes = str(done.error)
    return {
        "stage": step.stage,
        "resource": step.resource.name,
        "outcome": done.word if done else "not reached",
        "seconds": round(done.seconds, 1) if done else None,
        "changes": redact(changes),
    }


def resources(spec: ServerSpec, table: list[dict[str, Any]]) -> None:
    """The table of every resource; one key a server, so the UI shows its history."""
    create_table_artifact(
        table, key=f"{spec.name}-resources", description=f"What {spec.name} is made of"
    )


def drift(spec: ServerSpec, table: list[dict[str, Any]]) -> None:
    """The table of a drift check, under a key of its own."""
    key = f"{spec.name}-drift"
    create_table_artifact(table, key=key, description=f"How {spec.name} differs from its spec")


class Progress:
    """An artifact that shows how far a run is.

    It is updated beside the run: a laptop's server on SQLite can take seconds to accept a write.
    """

    def __init__(self, spec: ServerSpec, steps: int) -> None:
        self._steps = steps
        self._id: Any = create_progress_artifact(
            0.0, key=f"{spec.name}-progress", description=f"Bootstrap of {spec.name}"
        )
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._last: Future[Any] | None = None

    def advance(self, done: int) -> None:
        """So many steps are done; said unless the last word is still on its way."""
        if self._last is None or self._last.done() or done == self._steps:
            percent = 100 * done / self._steps
            run = copy_context().run
            self._last = self._beside.submit(run, update_progress_artifact, self._id, percent)


def connect(spec: ServerSpec) -> None:
    """How to use the server: tunnel, profile, addresses."""
    create_markdown_artifact(page(spec), key=f"{spec.name}-connect", description="How to connect")


def page(spec: ServerSpec) -> str:
    """The page ``connect`` shows, in Markdown."""
    port, name = PORT, spec.name
    block = spec.auth_secret.block
    return f"""\
# Connect to {name}

It has no external address. Open a tunnel to it, through IAP, and leave it open:

```sh
python -m flows.connect --server {name}
```

| | |
|---|---|
| UI | <http://127.0.0.1:{port}> (it asks for the auth string) |
| API | `http://127.0.0.1:{port}/api` |
| auth string | in the block `{block}` ({spec.auth_secret.kind}) |
| from its network | `http://{name}:{spec.server.port}/api`, from {", ".join(spec.network.clients or (spec.network.cidr,))} |

A profile for the command line, with the auth string in FILE:

```sh
prefect profile create {name}
prefect profile use {name}
prefect config set PREFECT_API_URL=http://127.0.0.1:{port}/api
prefect config set PREFECT_API_AUTH_STRING="$(cat FILE)"
```
"""


def verdict(done: Sequence[Done], redact: Any) -> State[Any]:
    """The final state of a bootstrap."""
    if failed := [each for each in done if each.error]:
        step = failed[0].step
        return Failed(message=redact(f"{step.stage}: {step.resource.name}: {failed[0].error}"))
    count = Counter(each.word for each in done)
    name = "Changed" if count["changed"] else "Unchanged"
    changed = [each.step.resource.name for each in done if each.word == "changed"]
    said = f"{count['changed']} of {len(done)} resources changed"
    return Completed(name=name, message=f"{said}: {_some(changed)}." if changed else f"{said}.")


def _some(names: Sequence[str]) -> str:
    """The first few of many; the table has them all."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def drift_verdict(done: Sequence[Done], redact: Any) -> State[Any]:
    """The final state of a drift check: what could not be checked is never green."""
    unknown = [each for each in done if each.error]
    drifted = [each for each in done if each.outcome and each.outcome.changes]
    said = "; ".join(_differs(each.step, each.outcome) for each in drifted if each.outcome)
    if unknown:
        first = f"{unknown[0].step.resource.name}: {unknown[0].error}"
        said = f"{len(unknown)} of {len(done)} resources could not be checked, first {first} {said}"
        return Failed(name="Unknown", message=redact(said.strip()))
    if drifted:
        return Completed(name="Drifted", message=redact(said))
    return Completed(name="Unchanged", message=f"{len(done)} resources are as in the spec.")


def _differs(step: Step, outcome: Outcome) -> str:
    return f"{step.resource.name}: {', '.join(map(str, outcome.changes))}"
