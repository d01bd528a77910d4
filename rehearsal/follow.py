"""Flow runs through a Prefect API: start one, follow it step by step, read what it leaves.

Importing this loads Prefect, which reads its settings from the environment then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    TERMINAL_STATES,
    FlowRun,
    State,
    StateType,
    TaskRun,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from rehearsal.control import Failed
from rehearsal.errors import Json

POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""How long task runs may be reported after their flow run."""
CHECKED = FlowRunFilter(
    state=FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.COMPLETED, StateType.FAILED, StateType.CRASHED])
    )
)
"""Runs that ended by themselves: of those overdue at a start, the surplus is cancelled."""


def open_pool(client: SyncPrefectClient, name: str) -> None:
    """Make a work pool before its worker does, so that nobody has to wait for that."""
    client.create_work_pool(WorkPoolCreate(name=name, type="process"), overwrite=True)


def start(client: SyncPrefectClient, deployment: str) -> UUID:
    """Start a run of ``deployment``, written as flow/name."""
    return client.create_flow_run_from_deployment(_deployment(client, deployment)).id


def follow(
    client: SyncPrefectClient, run: UUID, seconds: float, show: Callable[[list[TaskRun]], None]
) -> FlowRun:
    """The run, once it ended or ``seconds`` are over. ``show`` gets its task runs, ever again."""
    deadline = time.monotonic() + seconds
    while True:
        flow_run = client.read_flow_run(run)
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        show(tasks)
        now = time.monotonic()
        if _state(flow_run).is_final():
            if all(task.state_type in TERMINAL_STATES for task in tasks):
                return flow_run
            deadline = min(deadline, now + GRACE_SECONDS)
        if now > deadline:
            return flow_run
        time.sleep(POLL_SECONDS)


def table(client: SyncPrefectClient, key: str, run: UUID) -> list[Json]:
    """The rows of the table artifact ``key`` that the run left."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run])
        )
    )
    if not found:
        raise Failed(f"the run {run} left no artifact {key}: see its logs")
    rows: list[Json] = json.loads(str(found[-1].data))
    return rows


def scheduled(client: SyncPrefectClient, deployment: str, seconds: float) -> State:
    """The state of the last run that the schedule of ``deployment`` started, once it completed."""
    which = DeploymentFilter(id=DeploymentFilterId(any_=[_deployment(client, deployment)]))
    deadline = time.monotonic() + seconds
    while True:
        runs = client.read_flow_runs(
            deployment_filter=which,
            flow_run_filter=CHECKED,
            sort=FlowRunSort.START_TIME_DESC,
            limit=50,
        )
        ended = [_state(run) for run in runs if run.auto_scheduled]
        if ended and ended[0].is_completed():
            return ended[0]
        if time.monotonic() > deadline:
            last = f"the last is {said(ended[0])}" if ended else "none has ended"
            raise Failed(
                f"no scheduled run of {deployment} completed in {seconds:.0f} s ({last}): "
                "see its logs in the new server's UI"
            )
        time.sleep(POLL_SECONDS)


def said(state: State) -> str:
    """A state in words: ``Failed: the message``."""
    return f"{state.name}: {state.message}" if state.message else str(state.name)


def _state(run: FlowRun) -> State:
    if run.state is None:
        raise Failed(f"the run {run.name} has no state: see the Prefect server's log")
    return run.state


def _deployment(client: SyncPrefectClient, name: str) -> UUID:
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        raise Failed(f"there is no deployment {name} at {client.api_url}: deploy it") from None
