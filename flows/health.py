"""The flow check-health: the server checks itself, where it runs.

Each group of checks is a task run that says its figures. Unhealthy fails the run, and so does what
could not be checked: that is never green. Nothing is written but Prefect's own records, and of those
only the newest are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import prefect
from prefect import State, flow, get_client, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.catalog import CHECK, POOL
from flows.checks import api, database, machine, records, runs
from flows.checks.check import Check, Verdict, summary, values, worst
from flows.checks.compared import compared
from flows.checks.own import Own
from flows.errors import BootstrapError
from flows.findings import cut
from flows.resources.deployment import SKIPPED
from flows.spec import ServerSpec

Look = Callable[[], list[Check]]
PING = "prefect-bootstrap.health.ping"
LOG = "See the log of the run."


@flow(name=CHECK, flow_run_name="self-check", timeout_seconds=240)
def check_health(server: ServerSpec) -> State[Any]:
    """Check the server that runs this: its API, database, machine and drift."""
    late = (datetime.now(UTC) - flow_run.scheduled_start_time).total_seconds()
    if late > server.self_check.interval_seconds:
        said = f"{late:.0f} s late, more than the interval: a newer run says more."
        return Completed(name=SKIPPED, message=said)
    key = f"{server.name}-health"
    with get_client(sync_client=True) as client:
        own = Own(server, client)
        checks = [
            check
            for group, look in _groups(own, key).items()
            for check in _checked(group, partial(_clean, own, group, look))
        ]
    verdict, said = worst(checks), summary(checks)
    create_table_artifact([check.row() for check in checks], key=key, description=said)
    _emit(server, f"prefect-bootstrap.health.{verdict.replace(' ', '-')}", checks)
    return state(verdict, said)


def state(verdict: Verdict, said: str) -> State[Any]:
    """The verdict as the state of a run."""
    match verdict:
        case "healthy":
            return Completed(message=said)
        case "degraded":
            return Completed(name="Degraded", message=said)
        case "could not check":
            return Failed(name="Unknown", message=said)
        case "unhealthy":
            return Failed(name="Unhealthy", message=said)


def _groups(own: Own, key: str) -> dict[str, Look]:
    """Every group of checks. What is slow to arrive is sent at first, and looked for at last."""
    client, spec = own.client, own.spec
    bounds, ignore = spec.self_check, spec.ignore
    sent, began = _emit(spec, PING), monotonic()
    before = values(records.before(client, key))
    return {
        "API": lambda: api.answers(client, bounds),
        "settings": lambda: compared("settings", own.settings, ignore),
        "schema": lambda: compared("schema", own.schema, ignore),
        "scheduler": lambda: runs.scheduler(client, _deployment(own), bounds),
        "worker": lambda: api.worker(
            client.read_workers_for_work_pool(POOL),
            spec.name,
            prefect.__version__,
            client.api_version(),
            bounds,
        ),
        "database": lambda: _database(own, before),
        "machine": lambda: machine.judged(own.vitals(), _ahead(own), before, bounds),
        "drift": lambda: compared("drift", own.others, ignore, left=own.left),
        "events": lambda: api.event(client, sent, began, bounds),
        "records": lambda: _trimmed(own, key),
    }


def _checked(group: str, look: Look) -> list[Check]:
    """A group as a task run. It has no parameter, so nothing of it is stored."""
    found: list[Check] = []

    @task(name=group, task_run_name=group, cache_policy=NO_CACHE, persist_result=False)
    def check() -> State[Any]:
        found.extend(look())
        verdict = worst(found)
        figures = "; ".join(map(str, found))
        return state(verdict, figures if verdict == "healthy" else summary(found))

    ended = check(return_state=True)
    # A run that Prefect itself kept from looking must not be missing from the table.
    return found or [Check(group, "could not check", f"its run ended as {ended.name}", repair=LOG)]


def _clean(own: Own, group: str, look: Look) -> list[Check]:
    """The checks, or the one that says why there are none; without secrets, for what programs said
    is part of them."""
    try:
        checks = look()
    except Exception as error:  # noqa: BLE001 - whatever it was, it was not checked
        repair = error.repair if isinstance(error, BootstrapError) else LOG
        said = f"{type(error).__name__}: {str(error).removesuffix(repair).strip()}"
        checks = [Check(group, "could not check", said, repair=repair)]
    try:
        redact: Callable[[str], str] = own.secrets.redact
    except (OSError, BootstrapError):  # there are none that could be told
        redact = str
    return [replace(check, figure=cut(redact(check.figure))) for check in checks]


def _database(own: Own, before: dict[str, float]) -> list[Check]:
    try:
        found = own.pressure()
    except BootstrapError as error:
        return database.refused(error)
    return database.judged(found, before, own.spec.self_check)


def _ahead(own: Own) -> float | None:
    try:
        found: Any = own.pressure()["ahead"]
    except BootstrapError:
        return None
    return float(found)


def _deployment(own: Own) -> UUID:
    return own.client.read_deployment_by_name(f"{CHECK}/{own.spec.name}").id


def _trimmed(own: Own, key: str) -> list[Check]:
    keep = own.spec.self_check.keep_runs
    gone = records.trim(own.client, _deployment(own), key, keep)
    return [Check("records: of checks", "healthy", f"{gone} deleted", f"the newest {keep} stay")]


def _emit(spec: ServerSpec, name: str, checks: Sequence[Check] = ()) -> UUID:
    """Send an event of the server, with the checks that are not healthy. Returns its id."""
    bad = [check.row() for check in checks if check.verdict != "healthy"]
    sent = uuid4()
    emit_event(name, spec.event_resource, payload={"checks": bad}, id=sent)
    return sent
