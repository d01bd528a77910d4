"""What lives in the new server, on a real one: made, named when a person has changed it, healed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import (
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Scheduled,
    Submitting,
)

from flows.errors import Final
from flows.reconcile import Resource, reconcile
from flows.resources import deployment, orchestration
from flows.resources.deployment import FIRST, Deployment, SelfCheck
from flows.resources.orchestration import Answers, Worker, WorkPool
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(request.getfixturevalue("prefect_api")) as client:
        yield client


def passing(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, what: Callable[[], object]
) -> None:
    """Whenever ``module`` waits, this happens."""
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: what())
    monkeypatch.setattr(module, "time", clock)


def named(resource: Resource) -> list[str]:
    return [change.attribute for change in reconcile(resource, apply=False).changes]


def heals(resource: Resource, attributes: list[str]) -> None:
    assert named(resource) == attributes
    assert reconcile(resource, apply=True).word == "changed"
    assert reconcile(resource, apply=True).word == "unchanged"


# The server's own answers


@pytest.mark.parametrize(
    ("version", "ui", "differs"),
    [
        (prefect.__version__, "http://127.0.0.1:4200/api", []),
        ("3.6.22", "http://127.0.0.1:4200/api", ["version"]),
        (prefect.__version__, "/api", ["UI's API URL", "server.ui.api_url"]),
    ],
)
def test_an_answer_that_differs_is_named_and_left_to_a_person(
    api: SyncPrefectClient, version: str, ui: str, differs: list[str]
) -> None:
    """The tests' server lets anybody in and has no UI: that, too, is named."""
    answers = Answers(lambda: api, version, {"server.ui.api_url": ui})
    assert {*named(answers)} == {"without auth string", "UI", *differs}
    with pytest.raises(Final, match="without auth string: 200 → 401"):
        reconcile(answers, apply=True)


# Pool and worker


@pytest.fixture
def pool(api: SyncPrefectClient) -> WorkPool:
    """A pool that does not exist yet."""
    return WorkPool(lambda: api, f"pool-{uuid.uuid4()}")


def test_a_pool_is_made_and_one_that_was_paused_goes_on(
    api: SyncPrefectClient, pool: WorkPool
) -> None:
    heals(pool, ["type", "paused"])
    api.update_work_pool(pool.pool, WorkPoolUpdate(is_paused=True))
    heals(pool, ["paused"])


def test_a_pool_of_another_type_is_refused(api: SyncPrefectClient, pool: WorkPool) -> None:
    api.create_work_pool(WorkPoolCreate(name=pool.pool, type="docker"))
    assert named(pool) == ["type"]
    with pytest.raises(Final, match=f"prefect work-pool delete {pool.pool}"):
        reconcile(pool, apply=True)
    assert api.read_work_pool(pool.pool).type == "docker"


def test_a_worker_is_gone_with_its_pool(api: SyncPrefectClient) -> None:
    assert Worker(lambda: api, "no-such-pool", "prefect-1").read() is None


def test_a_worker_is_waited_for_until_a_deadline(
    api: SyncPrefectClient, pool: WorkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.apply(reconcile(pool, apply=False).changes)
    worker = Worker(lambda: api, pool.pool, "prefect-1")
    monkeypatch.setattr(orchestration, "ONLINE_SECONDS", 0)
    api.send_worker_heartbeat(pool.pool, "another")
    with pytest.raises(Final, match="prefect-1 has not reported in 0 s"):
        reconcile(worker, apply=True)
    monkeypatch.undo()
    passing(monkeypatch, orchestration, lambda: api.send_worker_heartbeat(pool.pool, "prefect-1"))
    heals(worker, ["status"])


# The deployment


@pytest.fixture
def check(api: SyncPrefectClient, pool: WorkPool) -> Deployment:
    """A deployment that does not exist yet, in a pool that does."""
    pool.apply(reconcile(pool, apply=False).changes)
    return Deployment(
        lambda: api,
        flow="check-health",
        deployment=pool.pool,
        entrypoint="flows.health.check_health",
        pool=pool.pool,
        interval=300,
        parameters={"port": 4200},
        version="1",
    )


def found(check: Deployment) -> DeploymentResponse:
    there = check.found()
    assert there
    return there


def hourly(check: Deployment, *, active: bool = True, ago: timedelta = timedelta()) -> None:
    """Change its schedule by hand, so that it is next due in an hour less ``ago``."""
    there = found(check)
    slow = IntervalSchedule(interval=timedelta(hours=1), anchor_date=datetime.now(UTC) - ago)
    [schedule] = there.schedules
    check.api().update_deployment_schedule(there.id, schedule.id, active=active, schedule=slow)


def by_hand(check: Deployment, **members: Any) -> None:
    check.api().update_deployment(found(check).id, DeploymentUpdate(**members))


SPOILED: list[tuple[Callable[[Deployment], None], str]] = [
    (hourly, "schedule"),
    (partial(hourly, active=False), "schedule"),
    (partial(by_hand, paused=True), "paused"),
    (partial(by_hand, parameters={"port": 1}), "parameters"),
    (partial(by_hand, entrypoint="flows.drift.check_drift"), "entrypoint"),
    (partial(by_hand, version="0"), "version"),
    (partial(by_hand, concurrency_limit=2), "at once"),
]


def test_a_deployment_is_made_named_when_changed_by_hand_and_healed(check: Deployment) -> None:
    heals(check, [*check.desired()])
    for spoil, attribute in SPOILED:
        spoil(check)
        heals(check, [attribute])


def test_a_database_may_have_its_own_order_of_members(check: Deployment) -> None:
    ignored = {"resource": "disk*", "attribute": "size", "reason": "asked for"}
    check = replace(check, parameters={"server": {"name": "prefect-1", "ignore": [ignored]}})
    heals(check, [*check.desired()])
    as_kept = {"server": {"ignore": [dict(sorted(ignored.items()))], "name": "prefect-1"}}
    by_hand(check, parameters=as_kept)
    assert named(check) == []
    by_hand(check, parameters={"server": {**as_kept["server"], "ignore": []}})
    heals(check, ["parameters"])


def test_another_spec_changes_the_deployment_it_has(check: Deployment) -> None:
    heals(check, [*check.desired()])
    before = found(check).id
    heals(replace(check, interval=60, version="2"), ["schedule", "version"])
    assert found(check).id == before


# Its runs


@pytest.fixture
def deployed(check: Deployment) -> Deployment:
    """There, and paused: its only runs are the tests' own."""
    check.apply(())
    by_hand(check, paused=True)
    return check


def ran(check: Deployment, *states: State[Any]) -> None:
    """A run that came to this."""
    run = check.api().create_flow_run_from_deployment(found(check).id)
    for state in states:
        check.api().set_flow_run_state(run.id, state, force=True)


def due_in_an_hour(check: Deployment) -> None:
    """A run, as the scheduler makes it."""
    late: State[None] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    check.api().create_flow_run_from_deployment(found(check).id, state=late)


def of(check: Deployment) -> DeploymentFilter:
    return DeploymentFilter(id=DeploymentFilterId(any_=[found(check).id]))


def test_without_a_deployment_nothing_has_run(check: Deployment) -> None:
    assert SelfCheck(check).read() == {"next run": "none", "last run": "none"}


@pytest.mark.parametrize(
    ("states", "next_run", "last_run"),
    [
        ([], "none", "none"),
        ([Completed()], "none", "COMPLETED"),
        ([Completed(), Scheduled()], "scheduled", "COMPLETED"),
        ([Completed(), Running()], "scheduled", "COMPLETED"),
        ([Completed(), Cancelled()], "none", "COMPLETED"),
        ([Completed(), Failed()], "none", "FAILED"),
        ([Failed(), Completed()], "none", "COMPLETED"),
    ],
)
def test_the_last_run_that_came_to_an_end_counts(
    deployed: Deployment, states: list[State[Any]], next_run: str, last_run: str
) -> None:
    for state in states:
        ran(deployed, state)
    assert SelfCheck(deployed).read() == {"next run": next_run, "last run": last_run}


def test_a_run_that_was_cut_off_before_it_began_says_nothing(deployed: Deployment) -> None:
    ran(deployed, Completed())
    ran(deployed, Pending(), Submitting(), Crashed())
    assert SelfCheck(deployed).read()["last run"] == "COMPLETED"
    ran(deployed, Pending(), Running(), Crashed())
    assert SelfCheck(deployed).read()["last run"] == "CRASHED"


def test_a_run_of_an_older_version_proves_nothing(deployed: Deployment) -> None:
    ran(deployed, Completed())
    assert SelfCheck(replace(deployed, version="2")).read()["last run"] == "none"


def test_the_first_run_is_waited_for(deployed: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def scheduler_and_worker() -> None:
        ran(deployed, Completed())
        ran(deployed, Scheduled())

    passing(monkeypatch, deployment, scheduler_and_worker)
    heals(SelfCheck(deployed), ["next run", "last run"])


def test_a_run_is_started_where_the_schedule_would_take_long(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the scheduler has made one: a busy host's may take a minute."""
    hourly(deployed)
    seen: list[int] = []

    def scheduler_and_worker() -> None:
        runs = deployed.api().read_flow_runs(deployment_filter=of(deployed), sort=FIRST)
        seen.append(len(runs))
        match seen:
            case [_, _]:
                due_in_an_hour(deployed)
            case [_, _, _, *_]:
                deployed.api().set_flow_run_state(runs[0].id, Completed(), force=True)

    passing(monkeypatch, deployment, scheduler_and_worker)
    heals(SelfCheck(deployed), ["next run", "last run"])
    assert seen == [0, 0, 2]


def test_a_run_that_had_to_give_way_is_started_anew(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    hourly(deployed)
    due_in_an_hour(deployed)
    ends: Iterator[State[Any]] = iter([Cancelled(), Completed()])

    def worker() -> None:
        runs = deployed.api().read_flow_runs(deployment_filter=of(deployed), sort=FIRST)
        due, _ = [run for run in runs if run.state and run.state.is_scheduled()]
        deployed.api().set_flow_run_state(due.id, next(ends), force=True)

    passing(monkeypatch, deployment, worker)
    heals(SelfCheck(deployed), ["last run"])
    assert next(ends, None) is None


def test_no_run_is_started_beside_one_that_is_under_way(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have to give way, or still be under way when the bootstrap is over."""
    by_hand(deployed, paused=False)
    hourly(deployed)
    ran(deployed, Running())
    passed: list[int] = []

    def worker() -> None:
        passed.append(1)
        if len(passed) == 3:
            [under_way] = deployed.api().read_flow_runs(deployment_filter=of(deployed))
            deployed.api().set_flow_run_state(under_way.id, Completed(), force=True)
            ran(deployed, Scheduled())

    passing(monkeypatch, deployment, worker)
    heals(SelfCheck(deployed), ["last run"])


def test_no_run_is_started_when_one_ends_just_now(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(deployed, paused=False)
    hourly(deployed)
    ran(deployed, Running())
    look = SelfCheck._on_its_way

    def ends_before(check: SelfCheck) -> bool:
        for run in deployed.api().read_flow_runs(deployment_filter=of(deployed)):
            deployed.api().set_flow_run_state(run.id, Completed(), force=True)
        ran(deployed, Scheduled())
        return look(check)

    monkeypatch.setattr(SelfCheck, "_on_its_way", ends_before)
    heals(SelfCheck(deployed), ["last run"])
    assert len(deployed.api().read_flow_runs(deployment_filter=of(deployed))) == 2


def test_a_run_that_was_cut_off_does_not_keep_the_place_of_the_next(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease would, for five minutes."""
    api = deployed.api()

    def begin(run: uuid.UUID) -> str | None:
        """As a worker does it; the name of the state it came to."""
        pending: State[None] = Pending()
        running: State[None] = Running()
        api.set_flow_run_state(run, pending)
        if api.read_flow_run(run).state_name == "Pending":
            api.set_flow_run_state(run, running)
        return api.read_flow_run(run).state_name

    def worker() -> None:
        monkeypatch.setattr(deployment, "STRAY", timedelta())  # as late as that
        for run in api.read_flow_runs():
            if run.state_name == "Scheduled" and begin(run.id) == "Running":
                ended: State[None] = Completed()
                api.set_flow_run_state(run.id, ended)
                ran(deployed, Scheduled())

    by_hand(deployed, paused=False)
    hourly(deployed)
    stray, late = (api.create_flow_run_from_deployment(found(deployed).id).id for _ in range(2))
    assert [begin(stray), begin(late)] == ["Running", "Cancelled"]
    passing(monkeypatch, deployment, worker)
    heals(SelfCheck(deployed), ["last run"])
    assert api.read_flow_run(stray).state_name == "Crashed"


@pytest.mark.parametrize("before", [[], [Failed(message="yesterday's")], [Completed()]])
def test_a_self_check_that_fails_says_what_it_found(
    deployed: Deployment, before: list[State[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for state in before:
        ran(deployed, state)
    passing(monkeypatch, deployment, lambda: ran(deployed, Failed(message="the disk is full")))
    with pytest.raises(Final, match="ended as Failed: the disk is full"):
        reconcile(SelfCheck(deployed), apply=True)


def test_a_failure_of_yesterday_is_overcome_by_the_next_run(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(deployed, Failed(message="yesterday's"))
    ran(deployed, Scheduled())
    passing(monkeypatch, deployment, lambda: ran(deployed, Completed()))
    heals(SelfCheck(deployed), ["last run"])


def test_a_self_check_that_does_not_come_is_an_error(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "CHECK_SECONDS", 0)
    with pytest.raises(Final, match=r"in 0 s: last run none, next run none\. See the journals"):
        reconcile(SelfCheck(deployed), apply=True)
