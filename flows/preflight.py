"""The flow preflight: say what a project lacks for a server, and change nothing.

It is also the first stage of bootstrap-server, but only while there is no machine: a server that
exists has what it needs, so a rerun asks nothing of this. All questions go side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import prefect
from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed

from blocks.compute import ApiError
from blocks.secrets import secrets_or_error, unreadable
from flows.catalog import STAGES, Server
from flows.errors import BootstrapError, Final, NotOurs
from flows.policy import may_change
from flows.prerequisites.asked import Asked, Row
from flows.prerequisites.questions import answers
from flows.prerequisites.table import lines, rows, summary, word
from flows.reach import Reach, reached, this_run
from flows.reconcile import Outcome
from flows.spec import ServerSpec
from flows.stages import Done, Step, look, refused, steps

SECONDS = 300


@flow(name="preflight", flow_run_name="{server.name}", timeout_seconds=SECONDS)
def preflight(server: ServerSpec, target: str = "gcp") -> State[Any]:
    """Say what the project lacks for the server, and which line repairs it.

    Args:
        server: What is to be true of it.
        target: Name of the ServerTarget block that says how to reach Google Cloud and its machines.
    """
    secrets, unread = secrets_or_error(server)
    with Reach(server, reached(target), secrets, this_run(), waits=False) as reach:
        todo = steps(Server(server, secrets), reach)
        looked = list(look([step for step in todo if step.stage == STAGES[0]]))
        there = None if unread or due(looked) else _from_machine(reach, todo)
        found = inspect(reach, looked, unread, there)
    name, said = word(found), summary(found)
    get_run_logger().info("%s: %s", name, said)
    kind = Completed if name == "Ready" else Failed
    return kind(name=name, message=said, data=table(found))


def table(found: Sequence[Row]) -> list[dict[str, str]]:
    """The rows, under the names of their columns in the UI."""
    return [
        {"prerequisite": r.what, "answer": r.verdict, "seen": r.detail, "repair": r.repair}
        for r in found
    ]


def due(looked: Sequence[Done]) -> bool:
    """Whether there is no machine yet, or nobody can tell."""
    return any(
        each.step.hosts and (each.error or (each.outcome and each.outcome.word == "missing"))
        for each in looked
    )


def check(reach: Reach, looked: Sequence[Done], unread: BootstrapError | None) -> None:
    """Look before anything is made. Raises Final with all that is missing; what could not be checked
    is left to the step that needs it, which says the same."""
    found = inspect(reach, looked, unread)
    for line in lines(found):
        get_run_logger().warning("%s", line)
    if lacking := [each for each in found if each.stops]:
        raise Final("\n".join(["Nothing was changed, for the project lacks:", *lines(lacking)]))


def inspect(
    reach: Reach,
    looked: Sequence[Done],
    unread: BootstrapError | None = None,
    there: tuple[Outcome | Exception, bool] | None = None,
) -> list[Row]:
    """All rows, free of secrets; also as a table. ``looked``: what came of the cloud stage, at least;
    ``there``: how the machine sees the database, and whether it was reached."""
    spec = reach.spec
    absent = tuple(each.step.resource.name for each in looked if _absent(each))
    seen, inside = there or (None, False)
    refs = (spec.auth_secret, spec.database_url_secret)
    asked = Asked(
        spec,
        _member(reach),
        absent,
        prefect.__version__,
        answers(spec, reach.compute, absent),
        unreadable(spec) if unread else dict.fromkeys(ref.block for ref in refs),
        seen,
        inside,
        _refused(spec, looked),
        reach.target.tunnel,
    )
    clean = reach.secrets.redact
    found = [replace(r, detail=clean(r.detail), repair=clean(r.repair)) for r in rows(asked)]
    what = f"What {spec.project} has to offer for {spec.name}: {word(found)}"
    create_table_artifact(table(found), key=f"{spec.name}-preflight", description=what)
    return found


def _member(reach: Reach) -> str:
    """Who asks, as a policy names him."""
    try:
        email = str(getattr(reach.target.account(), "service_account_email", ""))
    except BootstrapError:
        email = ""
    return f"serviceAccount:{email}" if "@" in email else "user:YOU"


def _from_machine(reach: Reach, todo: Sequence[Step]) -> tuple[Outcome | Exception, bool]:
    """How the machine sees the database, and whether the machine was reached."""
    database = next(step for step in todo if step.stage == STAGES[2])
    try:
        reach.ssh()
    except BootstrapError as error:
        return error, False
    [done] = look([database])
    return done.error or done.outcome or Outcome(database.resource.name), True


def _refused(spec: ServerSpec, looked: Sequence[Done]) -> dict[str, BootstrapError]:
    """By the name of the resource, what a run would end with there."""
    today, found = datetime.now(UTC).date(), dict[str, BootstrapError]()
    for each in looked:
        resource = each.step.resource
        if isinstance(each.error, NotOurs):
            found[resource.name] = each.error
        for change in each.outcome.changes if each.outcome else ():
            allowed = may_change(resource.name, change, "hand", spec.ignore, today)
            if allowed and (error := refused(resource, change)):
                found.setdefault(resource.name, error)
    return found


def _absent(done: Done) -> bool:
    """Whether it will have to be made; what may not even be read counts."""
    return isinstance(done.error, ApiError) or bool(done.outcome and done.outcome.word == "missing")
