"""What the self-check asks a real Prefect server: runs, events, and its own records."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.states import Completed, Failed, Pending, Running, Scheduled

from flows.checks import api as asked
from flows.checks import records, runs
from flows.checks.check import Verdict
from flows.resources.deployment import Deployment
from flows.resources.deployment import SelfCheck as LastCheck
from flows.spec import SelfCheck
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]

BOUNDS = SelfCheck()


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(request.getfixturevalue("prefect_api")) as client:
        yield client


@pytest.fixture
def made(api: SyncPrefectClient) -> Deployment:
    """A deployment of its own; it is paused, so its runs are the test's."""
    name = f"pool-{uuid.uuid4()}"
    api.create_work_pool(WorkPoolCreate(name=name, type="process"))
    entrypoint = "flows.health.check_health"
    made = Deployment(lambda: api, "check-health", name, entrypoint, name, 300, {}, "1")
    made.apply(())
    found = made.found()
    assert found
    api.pause_deployment(found.id)
    return made


@pytest.fixture
def deployment(made: Deployment) -> uuid.UUID:
    found = made.found()
    assert found
    return found.id


def run(api: SyncPrefectClient, deployment: uuid.UUID, state: State[Any]) -> uuid.UUID:
    """A run of the deployment that came to this."""
    created = api.create_flow_run_from_deployment(deployment, state=Scheduled())
    api.set_flow_run_state(created.id, state, force=True)
    return created.id


def due(api: SyncPrefectClient, deployment: uuid.UUID, seconds: float) -> uuid.UUID:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    made = api.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=at))
    return made.id


def told(api: SyncPrefectClient, deployment: uuid.UUID, **bounds: int) -> dict[str, Verdict]:
    changed = SelfCheck.model_construct(**(BOUNDS.model_dump() | bounds))
    found = runs.scheduler(api, deployment, changed)
    return {check.name.removeprefix("scheduler: "): check.verdict for check in found}


# Scheduler


def test_a_scheduled_deployment_is_healthy_and_one_that_is_not_is_named(
    api: SyncPrefectClient, deployment: uuid.UUID
) -> None:
    assert told(api, deployment)["next runs"] == "unhealthy"
    due(api, deployment, 1800)
    assert told(api, deployment)["next runs"] == "unhealthy"
    due(api, deployment, 3700)
    assert told(api, deployment) == {
        "next runs": "healthy",
        "own runs": "healthy",
        "late runs": "healthy",
        "silent runs": "healthy",
    }


def test_late_runs_are_told_whosever_they_are(
    api: SyncPrefectClient, deployment: uuid.UUID
) -> None:
    late = [due(api, deployment, -130)]
    assert told(api, deployment)["own runs"] == "degraded"
    late.append(due(api, deployment, -300))
    own, others = told(api, deployment), told(api, uuid.uuid4())
    assert (own["own runs"], own["late runs"]) == ("unhealthy", "degraded")
    assert (others["own runs"], others["late runs"]) == ("healthy", "degraded")
    for each in late:
        api.delete_flow_run(each)
    assert told(api, deployment)["late runs"] == "healthy"


@pytest.mark.parametrize("state", [Pending(), Running()])
def test_a_run_that_is_stuck_is_told_when_it_has_been_so_for_long(
    api: SyncPrefectClient, deployment: uuid.UUID, state: State[Any]
) -> None:
    stuck = run(api, deployment, state)
    assert told(api, deployment)["silent runs"] == "healthy"
    assert told(api, deployment, silence_seconds=0)["silent runs"] == "degraded"
    api.delete_flow_run(stuck)
    assert told(api, deployment, silence_seconds=0)["silent runs"] == "healthy"


def test_a_heartbeat_is_a_sign_of_life(api: SyncPrefectClient, deployment: uuid.UUID) -> None:
    alive, dead = run(api, deployment, Running()), run(api, deployment, Running())
    ids = [f"prefect.flow-run.{each}" for each in (alive, dead)]
    for of in ("prefect.flow-run.another", ids[0], ids[0]):  # several of one run are one sign
        sent = emit_event(runs.HEARTBEAT, {"prefect.resource.id": of}, id=uuid.uuid4())
    assert sent
    asked.event(api, sent.id, time.monotonic(), BOUNDS)
    since = datetime.now(UTC) - timedelta(minutes=1)
    found = [api.read_flow_run(each) for each in (alive, dead)]
    assert runs._heard(api, found, since) == {ids[0]}
    assert runs._heard(api, found, datetime.now(UTC) + timedelta(minutes=1)) == set()
    for each in (alive, dead):
        api.delete_flow_run(each)


# Events and answers


def test_an_event_that_was_sent_is_read_back(api: SyncPrefectClient) -> None:
    sent = emit_event("test.ping", {"prefect.resource.id": "test"}, id=uuid.uuid4())
    assert sent
    [check] = asked.event(api, sent.id, time.monotonic(), BOUNDS)
    assert (check.verdict, check.bound) == ("healthy", "at most 30 s")


def test_an_event_that_does_not_arrive_is_unhealthy(api: SyncPrefectClient) -> None:
    soon = SelfCheck.model_construct(event_seconds=0)
    [check] = asked.event(api, uuid.uuid4(), time.monotonic(), soon)
    assert check.verdict == "unhealthy"
    assert "websocket" in check.repair


def test_a_server_that_lets_anybody_in_is_unhealthy(api: SyncPrefectClient) -> None:
    """As the tests' server does."""
    right, seconds = asked.answers(api, BOUNDS)
    assert right.verdict == "unhealthy"
    assert right.figure == "without auth string: 200"
    assert seconds.verdict == "healthy"


# Records


def test_the_oldest_runs_and_tables_go_a_few_at_a_time_and_nobody_elses(
    api: SyncPrefectClient, deployment: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"k-{uuid.uuid4()}"
    ended: list[State[Any]] = [Completed(), Failed(), Completed(name="Skipped"), Completed()]
    done = [run(api, deployment, state) for state in ended]
    running, waiting = run(api, deployment, Running()), due(api, deployment, 60)
    for number in range(4):
        api.create_artifact(ArtifactCreate(key=key, type="table", data=f'[{{"n": {number}}}]'))
    other = api.create_artifact(ArtifactCreate(key=f"{key}-2", type="table", data="[]"))
    monkeypatch.setattr(records, "BATCH", 2)
    assert records.trim(api, deployment, key, 1) == 4
    assert records.trim(api, deployment, key, 1) == 2
    assert records.trim(api, deployment, key, 1) == 0
    assert records.before(api, key) == [{"n": 3}]
    assert records.before(api, f"{key}-2") == []
    assert records.before(api, "never-made") == []
    left = {each.id for each in api.read_flow_runs()}
    assert left >= {done[-1], running, waiting}
    assert not left & {*done[:-1]}
    assert other.id in {each.id for each in api.read_artifacts()}
    for each in (running, waiting):
        api.delete_flow_run(each)


def test_a_skipped_run_proves_nothing(
    api: SyncPrefectClient, made: Deployment, deployment: uuid.UUID
) -> None:
    run(api, deployment, Failed())
    run(api, deployment, Completed(name="Skipped"))
    assert LastCheck(made).read()["last run"] == "FAILED"


def test_a_run_that_somebody_deletes_meanwhile_is_no_error(
    api: SyncPrefectClient, deployment: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        run(api, deployment, Completed())
    listed = api.read_flow_runs

    def deleted_after(**criteria: Any) -> list[FlowRun]:
        found = listed(**criteria)
        api.delete_flow_run(found[0].id)
        return found

    monkeypatch.setattr(api, "read_flow_runs", deleted_after)
    records.trim(api, deployment, "never-made", 1)
    ours = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    assert api.count_flow_runs(flow_run_filter=ours) == 1
