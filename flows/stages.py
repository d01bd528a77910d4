"""Where Prefect begins: a task run for every resource, stage by stage, and the rule for retries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from prefect import State, Task, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.catalog import STAGES, Server
from flows.errors import BootstrapError, NeedsReplacement, Transient, Unreachable
from flows.reach import Reach
from flows.reconcile import Batched, Change, Outcome, Resource, reconcile, remembered
from flows.resources.compute import bound, cloud_resources
from flows.resources.instance import Instance
from flows.resources.shell import on_machine

RETRIES = (1.0, 5.0, 15.0)
"""Seconds before each further try of what may pass by itself."""
START = "Run bootstrap-server, which starts it."
PASSING = (Transient, httpx.TransportError)


@dataclass(frozen=True)
class Step:
    """A resource in its stage.

    ``beside``: the stage before which nothing waits for it; empty: what follows does. ``hosts``: the
    later stages are on it.
    """

    stage: str
    resource: Resource
    beside: str = ""
    hosts: bool = False


Leave = Callable[[Step, Change], bool]
"""Which changes of a step are found, but not made."""


def nothing(_step: Step, _change: Change) -> bool:
    """Every change is made."""
    return False


def replaced(resource: Resource, change: Change) -> NeedsReplacement | None:
    """What keeps a change from being made in place; None when nothing does."""
    why: Callable[[Change], NeedsReplacement | None]
    why = getattr(resource, "replaced", lambda change: None)
    return why(change)


def refused(resource: Resource, change: Change) -> BootstrapError | None:
    """What a run would end with that tries to make a change; None when it can, or nobody knows."""
    why: Callable[[Change], BootstrapError | None]
    why = getattr(resource, "refused", lambda change: None)
    return why(change)


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
    own = server.prefect(reach.api)
    asked = remembered([*own, *server.notifications(reach.api, this_server)])
    there = on_machine(reach, machine, database, services, upon=asked[0].batch)
    kinds = cloud_resources(server.spec, reach.target.public_key)
    beside = {kind.name: stage for stage, kinds in server.beside().items() for kind in kinds}
    host = next(kind.name for kind in kinds if isinstance(kind, Instance))
    on, after = len(machine), len(machine) + len(database)
    running, worker = there[after:]
    *first, online, check = asked[: len(own)]
    by_stage: tuple[Sequence[Resource], ...] = (
        bound(kinds, reach.compute, upon=there[0].batch),
        there[:on],
        there[on:after],
        [running, *first, worker, online, check, *asked[len(own) :]],
    )
    return [
        Step(stage, resource, beside.get(resource.name, ""), resource.name == host)
        for stage, resources in zip(STAGES, by_stage, strict=True)
        for resource in resources
    ]


def this_server() -> SyncPrefectClient:
    """A client of the server that runs this flow: the laptop's."""
    return get_client(sync_client=True)


def look(
    todo: Sequence[Step],
    away: BootstrapError | None = None,
    connect: Callable[[], object] | None = None,
) -> Iterator[Done]:
    """Compare every resource with what should be, and change nothing.

    What is on a machine that is not there, or not running, is not looked at, nor when it is ``away``
    for another reason. With ``connect``, which opens the way to it, all on it is read side by side.
    """
    *_, last = None, *(step for step in todo if step.stage == STAGES[0])
    # Prefect's client would ask a server that is down for a minute, for every resource anew.
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}), ExitStack() as ahead:
        for step in todo:
            if away and step.stage != STAGES[0]:
                yield Done(step, 0.0, error=away)
                continue
            yield (done := _done(step, partial(_taken, step, apply=False)))
            away = away or _away(done)
            if step is last and connect and not away:
                with suppress(Exception):  # which every step that needs it tells
                    connect()  # here, where a run that is cancelled can be interrupted
                ahead.enter_context(_read_ahead(todo))


@contextmanager
def _read_ahead(todo: Sequence[Step]) -> Iterator[None]:
    """Meanwhile all batches are read, side by side: where nothing is changed, none waits for another."""
    batches = {id(r.batch): r.batch for r in (s.resource for s in todo) if isinstance(r, Batched)}
    pool = ThreadPoolExecutor(len(batches) or 1, thread_name_prefix="ahead")
    for batch in batches.values():
        pool.submit(copy_context().run, batch.ahead)
    try:
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def unsettled(looked: Sequence[Done], leave: Leave) -> bool:
    """Whether there is anything to do after a look at everything, or to look at once more."""
    return any(
        not each.outcome or not all(leave(each.step, change) for change in each.outcome.changes)
        for each in looked
    )


def settle(todo: Sequence[Step], leave: Leave = nothing) -> Iterator[Done]:
    """Make every resource what it should be, but for the changes to ``leave``, in order. The first
    failure ends it, for what follows needs it.

    The steps that go beside the others do so, one after the other, until a stage needs them.
    """
    waiting: list[tuple[Step, PrefectFuture[Taken]]] = []
    away: Unreachable | None = None
    for step in todo:
        if away and step.stage != STAGES[0]:
            yield Done(step, 0.0, error=away)
            return
        take = _task(step, leave)
        if step.beside:
            before = [future for _, future in waiting]
            waiting.append((step, take.submit(return_state=False, wait_for=before)))
            continue
        due = [each for each in waiting if _before(each[0].beside, step.stage)]
        if due:
            waiting = [each for each in waiting if each not in due]
            yield from (ended := [_done(each, future.result) for each, future in due])
            if any(done.error for done in ended):
                break
        yield (done := _done(step, take))
        if done.error:
            break
        away = away or _away(done)
    yield from (_done(step, future.result) for step, future in waiting)


def _before(stage: str, other: str) -> bool:
    return STAGES.index(stage) <= STAGES.index(other)


def _away(done: Done) -> Unreachable | None:
    """What keeps the later stages from being reached: their host is left as it is, and is not up."""
    if done.step.hosts and done.outcome and not done.outcome.keeps("status"):
        return Unreachable(f"{done.step.resource.name} is not running.", repair=START)
    return None


Taken = tuple[Outcome, float]
"""What came of it, and the seconds it took."""


def _done(step: Step, taken: Callable[[], Taken]) -> Done:
    began = time.monotonic()
    try:
        outcome, seconds = taken()
    except Exception as error:  # noqa: BLE001 - the flow run says which, and of what step
        return Done(step, time.monotonic() - began, error=error)
    return Done(step, seconds, outcome)


def _taken(step: Step, *, apply: bool, leave: Leave = nothing) -> Taken:
    began = time.monotonic()
    outcome = reconcile(step.resource, apply=apply, leave=partial(leave, step))
    return outcome, time.monotonic() - began


def _task(step: Step, leave: Leave) -> Task[[], Taken]:
    """A task for one resource. It has no parameter, so nothing of it is stored; and no tag, for which
    Prefect asks its server about limits before and after every run."""

    @task(
        name=step.stage,
        task_run_name=f"{step.stage}: {step.resource.name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRIES),
        retry_delay_seconds=list(RETRIES),
        retry_jitter_factor=0.5,
        retry_condition_fn=may_pass,
    )
    def converge() -> Taken:
        return _taken(step, apply=True, leave=leave)

    return converge


def may_pass(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may succeed: the error's type says so, or the code that a server answered."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, httpx.HTTPStatusError):
        code = error.response.status_code
        return code >= httpx.codes.INTERNAL_SERVER_ERROR or code == httpx.codes.TOO_MANY_REQUESTS
    return isinstance(error, PASSING)
