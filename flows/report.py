"""Outcomes → artifacts and the final state. Nothing here decides; it only says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from prefect import State
from prefect.artifacts import (
    Artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event
from prefect.states import Completed, Failed

from blocks.secrets import Secrets
from flows.connect import PORT
from flows.findings import Finding, Looked, findings, summary, to_cells, to_row, word
from flows.healing import healable, record, stuck
from flows.policy import Level
from flows.reconcile import Outcome
from flows.spec import ServerSpec
from flows.stages import Done, Step, replaced

Redact = Callable[[str], str]
DRIFT = "prefect-bootstrap.drift.detected"
NAMED = 5
"""As many resources as a state's message names."""


def rows(todo: Sequence[Step], done: Sequence[Done], redact: Redact) -> list[dict[str, Any]]:
    """A row for every step, done or not."""
    by_name = {(each.step.stage, each.step.resource.name): each for each in done}
    return [_row(step, by_name.get((step.stage, step.resource.name)), redact) for step in todo]


def _row(step: Step, done: Done | None, redact: Redact) -> dict[str, Any]:
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


def differences(
    spec: ServerSpec, done: Sequence[Done], secrets: Secrets, *, key: str, level: Level
) -> list[Finding]:
    """How the server differs, and since when; also as a table, with a key of its own.

    ``level`` is how far the runs go that may heal it.
    """
    looked = [_looked(each) for each in done]
    now = datetime.now(UTC)
    found = findings(looked, spec.ignore, level, now, latest(f"{spec.name}-drift"))
    clean = [_redacted(each, secrets.redact) for each in found]
    table = [to_cells(each) for each in clean]
    said = summary(clean, len(done))
    create_table_artifact(table, key=f"{spec.name}-{key}", description=said)
    return clean


def fought(spec: ServerSpec, found: Sequence[Finding]) -> list[Finding]:
    """What an unattended run no longer heals, since it does not stick. What it is about to heal is
    written down before it does: a run that dies has tried, too."""
    key = f"{spec.name}-healed"
    before = latest(key)
    able = healable(found, spec.heal)
    back = stuck(able, before)
    keys = {each.key for each in back}
    others = [each for each in able if each.key not in keys]
    if others:
        table = record(others, before)
        create_table_artifact(table, key=key, description=f"What was healed on {spec.name}")
    return back


def _looked(done: Done) -> Looked:
    resource = done.step.resource
    return Looked(
        done.step.stage,
        resource.name,
        tuple(resource.desired()),
        done.error or done.outcome or Outcome(resource.name),
        partial(replaced, resource),
    )


def _redacted(each: Finding, redact: Redact) -> Finding:
    """Without secrets: what programs said is part of it."""
    desired, actual, action = map(redact, (each.desired, each.actual, each.action))
    return replace(each, desired=desired, actual=actual, action=action)


def latest(key: str) -> list[dict[str, Any]]:
    """The rows of the last table of that key; none when there is none."""
    artifact = cast(Artifact | None, Artifact.get(key))  # a flow of ours is not asynchronous
    rows = json.loads(str(artifact.data)) if artifact and artifact.data else []
    return rows if isinstance(rows, list) else []


def announce(spec: ServerSpec, found: Sequence[Finding]) -> None:
    """The event that says how the server has drifted; automations start from it.

    ``prefect-bootstrap.healable`` is yes when a run that nobody watches may do something about it.
    """
    emit_event(
        DRIFT,
        resource={
            **spec.event_resource,
            "prefect-bootstrap.healable": "yes" if healable(found, spec.heal) else "no",
        },
        payload={"rows": [to_row(each) for each in found]},
    )


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


def verdict(done: Sequence[Done], back: Sequence[Finding], redact: Redact) -> State[Any]:
    """The final state of a bootstrap, which left alone what is ``back`` after it was healed."""
    if failed := [each for each in done if each.error]:
        step = failed[0].step
        return Failed(message=redact(f"{step.stage}: {step.resource.name}: {failed[0].error}"))
    if back:
        named = _some([f"{each.resource}: {each.attribute or 'missing'}" for each in back])
        return Failed(message=redact(f"{named}: {back[0].action}."))
    changed = [each.step.resource.name for each in done if each.word == "changed"]
    left = [each.step.resource.name for each in done if each.word in ("drifted", "missing")]
    said = f"{len(changed)} of {len(done)} resources changed"
    said += f": {_some(changed)}." if changed else "."
    said += f" Left as they are: {_some(left)}." if left else ""
    return Completed(name="Changed" if changed else "Unchanged", message=said)


def _some(names: Sequence[str]) -> str:
    """The first few of many; the table has them all."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def drift_verdict(found: Sequence[Finding], total: int, *, fail: bool) -> State[Any]:
    """The final state of a look at ``total`` resources: what could not be checked is never green.

    ``fail``: drift is a failure, too. The state holds the rows.
    """
    name = word(found)
    failed = name == "Unknown" or (fail and name == "Drifted")
    rows = [to_row(each) for each in found]
    return (Failed if failed else Completed)(name=name, message=summary(found, total), data=rows)
