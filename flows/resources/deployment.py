"""A deployment on the new server, and the proof that its runs come and complete."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    FlowRun,
    StateType,
)
from prefect.client.schemas.objects import State as RunState
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.errors import Final
from flows.reconcile import Change, State
from flows.resources.orchestration import POLL_SECONDS, Api

SOON = timedelta(seconds=6)
"""From registration to the first scheduled run: a whole interval would be long to wait for."""
GRACE_SECONDS = 60
"""In which a run has to start; then its place is free for the next one."""
CHECK_SECONDS = 180.0
STRAY = timedelta(seconds=60)
"""A check takes some seconds. One that is under way for longer has no process any more."""
FIRST, LAST = FlowRunSort.EXPECTED_START_TIME_ASC, FlowRunSort.EXPECTED_START_TIME_DESC
ENDED = ("COMPLETED", "FAILED", "CRASHED")
SKIPPED = "Skipped"
"""The state of a run that came too late, and looked at nothing."""


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
            "at once": f"1, CANCEL_NEW, {GRACE_SECONDS} s",
            "parameters": _flat(self.parameters),
            "version": self.version,
        }

    def read(self) -> State | None:
        found = self.found()
        if found is None:
            return None
        limit, options = found.global_concurrency_limit, found.concurrency_options
        strategy = options.collision_strategy.value if options else "none"
        grace = (options and options.grace_period_seconds) or "?"
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
            "at once": f"{1 if alone else 'any number'}, {strategy}, {grace} s",
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
            concurrency_options=ConcurrencyOptions(
                collision_strategy=cancel, grace_period_seconds=GRACE_SECONDS
            ),
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
        """Wait until a run has completed; start one whenever none is on its way, as after one that had
        to give way. Not before the scheduler has made one, or the check would find that it makes none.
        """
        deadline = time.monotonic() + CHECK_SECONDS
        old = {run.id for run in (self._finished(), *self._end_strays()) if run}
        while True:
            on_its_way = self._on_its_way()  # looked at first: it may come to its end meanwhile
            if (state := self.read()) == self.desired():
                return
            last = self._finished()
            if last and last.state and not last.state.is_completed() and last.id not in old:
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
            old |= {run.id for run in self._end_strays()}
            if not on_its_way and state["next run"] == "scheduled":
                self._start()
            time.sleep(POLL_SECONDS)

    def _on_its_way(self) -> bool:
        """Whether a run is under way, or due in a moment."""
        soon = datetime.now(UTC) + 2 * SOON
        next_ones = self._runs("SCHEDULED", "PENDING", "RUNNING", sort=FIRST)
        if any(run.expected_start_time and run.expected_start_time < soon for run in next_ones):
            return True
        found = self.deployment.found()
        return found is not None and any(
            due(schedule.schedule.anchor_date, schedule.schedule.interval) < 2 * SOON
            for schedule in found.schedules
            if isinstance(schedule.schedule, IntervalSchedule)
        )

    def _start(self) -> None:
        if found := self.deployment.found():
            self.deployment.api().create_flow_run_from_deployment(found.id)

    def _end_strays(self) -> list[FlowRun]:
        """Free the only place of a run that a power cut has ended, which would keep it for minutes."""
        begun = self._runs("PENDING", "RUNNING")
        strays = [r for r in begun if r.state and datetime.now(UTC) - r.state.timestamp > STRAY]
        for run in strays:
            gone: RunState[None] = Crashed(
                message=f"Not over after {STRAY.seconds} s: taken for cut off."
            )
            self.deployment.api().set_flow_run_state(run.id, gone)
        return strays

    def _finished(self) -> FlowRun | None:
        """The last run that came to an end, if of this version. One that had to give way did not, nor
        one that was cut off before it began, as when its machine was stopped: it has looked at nothing.
        """
        runs = self._runs(*ENDED)
        begun = (run for run in runs if run.run_count or run.state_type is not StateType.CRASHED)
        last = next(begun, None)
        return last if last and last.deployment_version == self.deployment.version else None

    def _runs(self, *states: str, sort: FlowRunSort = LAST) -> list[FlowRun]:
        """The last runs in these states, or the first."""
        of = self.deployment
        return runs_of(of.api(), of.flow, of.deployment, *states, sort=sort)


def runs_of(
    api: SyncPrefectClient, flow: str, deployment: str, *states: str, sort: FlowRunSort
) -> list[FlowRun]:
    """A deployment's runs in these states, ten at most, but for those that came too late."""
    return api.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(
                type=FlowRunFilterStateType(any_=[StateType(state) for state in states]),
                name=FlowRunFilterStateName(not_any_=[SKIPPED]),
            )
        ),
        sort=sort,
        limit=10,
    )


def due(anchor: datetime, interval: timedelta) -> timedelta:
    """How long it is until a schedule's next time."""
    left = anchor.timestamp() - datetime.now(UTC).timestamp()
    return timedelta(seconds=left % interval.total_seconds())


def _flat(value: Any, name: str = "") -> str:
    """In a line: a group's members and a list's groups with their name before them, as in
    ``server.name=prefect-1, server.ignore.0.resource=disk*``. PostgreSQL has its own order of members.
    """
    match value:
        case dict():
            members = sorted(value.items())
        case [dict(), *_]:
            members = [(str(number), each) for number, each in enumerate(value)]
        case _:
            return f"{name}={value}"
    return ", ".join(_flat(each, f"{name}.{key}" if name else key) for key, each in members)
