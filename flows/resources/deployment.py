"""A deployment on the new server, and the proof that its runs come and complete."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    FlowRun,
    StateType,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.errors import Final
from flows.reconcile import Change, State
from flows.resources.orchestration import POLL_SECONDS, Api

SOON = timedelta(seconds=6)
"""From registration to the first scheduled run: a whole interval would be long to wait for."""
CHECK_SECONDS = 180.0


@dataclass(frozen=True)
class Deployment:
    """A flow of our package, on a schedule, one run at a time."""

    api: Api = field(repr=False)
    flow: str
    deployment: str
    entrypoint: str
    pool: str
    interval: int
    """Seconds."""
    parameters: dict[str, Any]
    version: str
    """What its runs are told apart by when anything that they prove has changed."""

    @property
    def name(self) -> str:
        return f"deployment {self.flow}/{self.deployment}"

    def desired(self) -> State:
        return {
            "entrypoint": self.entrypoint,
            "work pool": self.pool,
            "paused": False,
            "schedule": f"every {self.interval} s",
            "at once": "1, CANCEL_NEW",
            "parameters": _flat(self.parameters),
            "version": self.version,
        }

    def read(self) -> State | None:
        found = self.found()
        if found is None:
            return None
        limit, options = found.global_concurrency_limit, found.concurrency_options
        strategy = options.collision_strategy.value if options else "none"
        alone = limit is not None and limit.limit == 1
        intervals = [
            f"every {schedule.schedule.interval.total_seconds():.0f} s"
            for schedule in found.schedules
            if schedule.active and isinstance(schedule.schedule, IntervalSchedule)
        ]
        return {
            "entrypoint": found.entrypoint,
            "work pool": found.work_pool_name,
            "paused": found.paused,
            "schedule": ", ".join(intervals) or "none",
            "at once": f"{1 if alone else 'any number'}, {strategy}",
            "parameters": _flat(found.parameters),
            "version": found.version,
        }

    def apply(self, changes: tuple[Change, ...]) -> None:
        api = self.api()
        cancel = ConcurrencyLimitStrategy.CANCEL_NEW
        soon = IntervalSchedule(
            interval=timedelta(seconds=self.interval), anchor_date=datetime.now(UTC) + SOON
        )
        api.create_deployment(
            flow_id=api.create_flow_from_name(self.flow),
            name=self.deployment,
            version=self.version,
            entrypoint=self.entrypoint,
            pull_steps=[],
            work_pool_name=self.pool,
            paused=False,
            schedules=[DeploymentScheduleCreate(schedule=soon, active=True, slug="interval")],
            concurrency_limit=1,
            concurrency_options=ConcurrencyOptions(collision_strategy=cancel),
            parameters=self.parameters,
            description="The server checks itself. Made by prefect-bootstrap.",
        )

    def found(self) -> DeploymentResponse | None:
        """As the server has it."""
        try:
            return self.api().read_deployment_by_name(f"{self.flow}/{self.deployment}")
        except ObjectNotFound:
            return None


@dataclass(frozen=True)
class SelfCheck:
    """The check runs: a run is scheduled, and the last one, of this version, has completed.

    A server whose scheduler creates no runs looks healthy everywhere else.
    """

    deployment: Deployment

    @property
    def name(self) -> str:
        return "self-check"

    def desired(self) -> State:
        return {"next run": "scheduled", "last run": "COMPLETED"}

    def read(self) -> State:
        finished = self._finished()
        return {
            "next run": "scheduled" if self._runs("SCHEDULED", "PENDING", "RUNNING") else "none",
            "last run": str(finished.state_type.value)
            if finished and finished.state_type
            else "none",
        }

    def apply(self, changes: tuple[Change, ...]) -> None:
        """Wait for the next run; start one where the schedule would take long, and another one when
        that had to give way to a run that was late."""
        before = (old := self._finished()) and old.id
        started = self._start()
        deadline = time.monotonic() + CHECK_SECONDS
        while (state := self.read()) != self.desired():
            last = self._finished()
            if last and last.state and not last.state.is_completed() and last.id != before:
                raise Final(
                    f"The self-check ended as {last.state.name}: {last.state.message}",
                    repair="Repair what it names, and run again.",
                )
            if time.monotonic() > deadline:
                raise Final(
                    f"No self-check has completed in {CHECK_SECONDS:.0f} s: "
                    f"last run {state['last run']}, next run {state['next run']}.",
                    repair="See the journals of prefect-server and prefect-worker.",
                )
            time.sleep(POLL_SECONDS)
            if started and self._gave_way(started):
                started = self._start()

    def _start(self) -> UUID | None:
        """The run that was started, unless the schedule will do it in a moment."""
        found = self.deployment.found()
        if found is None or any(
            due(schedule.schedule.anchor_date, schedule.schedule.interval) < 2 * SOON
            for schedule in found.schedules
            if isinstance(schedule.schedule, IntervalSchedule)
        ):
            return None
        return self.deployment.api().create_flow_run_from_deployment(found.id).id

    def _gave_way(self, run: UUID) -> bool:
        state = self.deployment.api().read_flow_run(run).state
        return bool(state and state.is_cancelled())

    def _finished(self) -> FlowRun | None:
        """The last run that came to an end, if of this version; one that had to give way did not."""
        runs = self._runs("COMPLETED", "FAILED", "CRASHED")
        ours = [run for run in runs[:1] if run.deployment_version == self.deployment.version]
        return ours[0] if ours else None

    def _runs(self, *states: str) -> list[FlowRun]:
        """The newest runs in these states."""
        found = self.deployment.found()
        if found is None:
            return []
        return self.deployment.api().read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType(state) for state in states])
                )
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=10,
        )


def due(anchor: datetime, interval: timedelta) -> timedelta:
    """How long it is until a schedule's next time."""
    left = anchor.timestamp() - datetime.now(UTC).timestamp()
    return timedelta(seconds=left % interval.total_seconds())


def _flat(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
