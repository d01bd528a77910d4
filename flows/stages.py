"""Where Prefect begins: a task run for every resource, stage by stage, and the rule for retries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from flows.catalog import STAGES, Server
from flows.errors import Transient
from flows.reach import Reach
from flows.reconcile import Outcome, Resource, reconcile
from flows.resources.compute import bound, cloud_resources
from flows.resources.shell import on_machine

RETRIES = (1.0, 5.0, 15.0)
"""Seconds before each further try of what may pass by itself."""
PASSING = (Transient, httpx.TransportError)


@dataclass(frozen=True)
class Step:
    """A resource in its stage."""

    stage: str
    resource: Resource


@dataclass(frozen=True)
class Done:
    """What came of a step. ``error``: what kept it from being done or looked at."""

    step: Step
    seconds: float
    outcome: Outcome | None = None
    error: Exception | None = None

    @property
    def word(self) -> str:
        return self.outcome.word if self.outcome else "failed"

    def __str__(self) -> str:
        """A line for the log; everything of what is new would be a long one."""
        changes = self.outcome.changes if self.outcome else ()
        said = "new" if changes and changes[0].missing else "; ".join(map(str, changes))
        line = f"{self.step.stage}: {self.step.resource.name}: {self.word}"
        return f"{line} ({said})" if said else line


def steps(server: Server, reach: Reach) -> list[Step]:
    """Everything that the server is made of, in order."""
    machine, database, services = server.machine(), server.database(), server.services()
    there = on_machine(reach, machine, database, services)
    on, beside = len(machine), len(machine) + len(database)
    running, worker = there[beside:]
    answers, pool, *rest = server.prefect(reach.api)
    by_stage: tuple[list[Resource], ...] = (
        bound(cloud_resources(server.spec, reach.target.public_key), reach.compute),
        there[:on],
        there[on:beside],
        [running, answers, pool, worker, *rest],
    )
    return [
        Step(stage, resource)
        for stage, resources in zip(STAGES, by_stage, strict=True)
        for resource in resources
    ]


def settle(todo: list[Step], *, apply: bool) -> Iterator[Done]:
    """Take the steps in order. The first failure ends it when ``apply``: what follows needs it."""
    for step in todo:
        began = time.monotonic()
        try:
            outcome = _task(step, apply)()
        except Exception as error:  # noqa: BLE001 - the flow run says which, and of what step
            yield Done(step, time.monotonic() - began, error=error)
            if apply:
                return
        else:
            yield Done(step, time.monotonic() - began, outcome)


def _task(step: Step, apply: bool) -> Task[[], Outcome]:
    """A task for one resource. It has no parameter, so nothing of it is stored; and no tag, for which
    Prefect asks its server about limits before and after every run."""

    @task(
        name=step.stage,
        task_run_name=f"{step.stage}: {step.resource.name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRIES) if apply else 0,
        retry_delay_seconds=list(RETRIES),
        retry_condition_fn=may_pass,
    )
    def converge() -> Outcome:
        return reconcile(step.resource, apply=apply)

    return converge


def may_pass(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the error's type says that another try may succeed."""
    return isinstance(state.result(raise_on_failure=False), PASSING)
