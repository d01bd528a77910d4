"""The server's scheduler, and the runs that came of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventResourceFilter,
)

from flows.checks.check import Check, Verdict, most
from flows.spec import SelfCheck

AHEAD = 3600.0
"""Seconds ahead for which Prefect's scheduler always has runs, unless its loop of 60 s has stopped."""
HEARTBEAT = "prefect.flow-run.heartbeat"
MANY, PAGE = 200, 50
"""The most runs, and the most events, that one request of Prefect's API returns."""
RESTART = "Restart it: systemctl restart prefect-server."
LATE = "See that a worker of their work pool runs, and that its limits let runs start."
SILENT = "Look whether their processes still run; cancel those whose do not."


def scheduler(client: SyncPrefectClient, deployment: UUID, bounds: SelfCheck) -> list[Check]:
    """This deployment's runs come, and nobody's are late, stuck or dead."""
    now = datetime.now(UTC)
    ours = FlowRunFilterDeploymentId(any_=[deployment])
    waiting = _in_state(StateType.SCHEDULED)
    far = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(deployment_id=ours, state=waiting),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    overdue = FlowRunFilterExpectedStartTime(before_=now - timedelta(seconds=bounds.late_seconds))
    late = FlowRunFilter(state=waiting, expected_start_time=overdue)
    own = FlowRunFilter(deployment_id=ours, state=waiting, expected_start_time=overdue)
    oldest = client.read_flow_runs(
        flow_run_filter=own, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=1
    )
    return [
        scheduled(now, far, bounds),
        lateness(now, oldest, bounds),
        counted("late runs", client.count_flow_runs(flow_run_filter=late), LATE),
        counted("silent runs", len(_silent(client, now, bounds)), SILENT),
    ]


def scheduled(now: datetime, far: Sequence[FlowRun], bounds: SelfCheck) -> Check:
    """``far``: the run of this deployment that is farthest ahead, if there is any."""
    name, needed = "scheduler: next runs", AHEAD - bounds.late_seconds
    expected = f"for {needed / 60:.0f} minutes ahead or more"
    at = far[0].expected_start_time if far else None
    ahead = max(at.timestamp() - now.timestamp(), 0.0) if at else 0.0
    said = f"for {ahead / 60:.0f} minutes ahead" if ahead else "none"
    verdict: Verdict = "healthy" if ahead >= needed else "unhealthy"
    return Check(name, verdict, said, expected, RESTART, ahead)


def lateness(now: datetime, oldest: Sequence[FlowRun], bounds: SelfCheck) -> Check:
    """How late the oldest of our waiting runs is, if one is past the bound."""
    at = oldest[0].expected_start_time if oldest else None
    late = now.timestamp() - at.timestamp() if at else 0.0
    return most("scheduler: own runs", late, bounds.late_seconds, "s late", LATE)


def counted(what: str, number: int, repair: str) -> Check:
    """Runs of which there should be none; they may be a user's own doing, so they only degrade."""
    verdict: Verdict = "degraded" if number else "healthy"
    return Check(f"scheduler: {what}", verdict, str(number), "none", repair, number)


def _silent(client: SyncPrefectClient, now: datetime, bounds: SelfCheck) -> list[FlowRun]:
    """Runs that have been pending for too long, or running without a heartbeat."""
    silence = timedelta(seconds=bounds.silence_seconds)
    pending = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=_in_state(StateType.PENDING)), limit=MANY
    )
    stuck = [run for run in pending if run.state and run.state.timestamp < now - silence]
    started = FlowRunFilterStartTime(before_=now - silence)
    running = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=_in_state(StateType.RUNNING), start_time=started),
        limit=MANY,
    )
    # A run that has gone on lately, after a pause or another try, is not silent yet.
    running = [run for run in running if run.state and run.state.timestamp < now - silence]
    return stuck + unheard(running, _heard(client, running, now - silence))


def unheard(running: Sequence[FlowRun], heard: set[str]) -> list[FlowRun]:
    """Those of which no event was heard."""
    return [run for run in running if f"prefect.flow-run.{run.id}" not in heard]


def _heard(client: SyncPrefectClient, runs: Sequence[FlowRun], since: datetime) -> set[str]:
    """The resource ids of the runs with a heartbeat since then."""
    heard: set[str] = set()
    for first in range(0, len(runs), PAGE):
        ids = [f"prefect.flow-run.{run.id}" for run in runs[first : first + PAGE]]
        wanted = EventFilter(
            occurred=EventOccurredFilter(since=since),
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=ids, distinct=True),
        )
        heard |= {each.resource.id for each in client.read_events(wanted, limit=PAGE).events}
    return heard


def _in_state(state: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=[state]))
