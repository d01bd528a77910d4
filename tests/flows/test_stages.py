"""The order of a run: what is looked at, what goes beside the rest, and what ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Barrier, current_thread

import httpx
import pytest
from prefect import flow

from flows.errors import Final, Unreachable
from flows.reconcile import Batch, Change, Remembered, Resource, State
from flows.stages import Done, Leave, Step, look, nothing, settle, unsettled
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]


@dataclass
class Thing:
    """A resource in memory; ``trace`` gets its name when it is applied."""

    name: str
    trace: list[str]
    is_right: bool = False
    error: Exception | None = None
    wait: Callable[[], None] = lambda: None
    answers: list[int] = field(default_factory=list)
    """The codes that a server answers the next reads with, before it tells the state."""
    reads: int = field(default=0)

    def desired(self) -> State:
        return {"status": "RUNNING"}

    def read(self) -> State:
        self.reads += 1
        if self.answers:
            request = httpx.Request("GET", "http://server/api/deployments/name/a")
            httpx.Response(self.answers.pop(0), request=request).raise_for_status()
        return {"status": "RUNNING" if self.is_right else "TERMINATED"}

    def apply(self, changes: tuple[Change, ...]) -> None:
        self.wait()
        if self.error:
            raise self.error
        self.trace.append(self.name)
        self.is_right = True


def words(done: list[Done]) -> list[str]:
    return [f"{each.step.resource.name}: {each.word}" for each in done]


def settled(todo: list[Step], leave: Leave = nothing) -> list[Done]:
    """As a flow does it."""

    @flow(name="settled")
    def run() -> None:
        done.extend(settle(todo, leave))

    done: list[Done] = []
    run()
    return done


@pytest.fixture
def trace() -> list[str]:
    return []


def test_what_is_on_a_machine_that_is_not_up_is_not_looked_at(trace: list[str]) -> None:
    vm, rule, file = (Thing(name, trace) for name in ("vm", "rule", "file"))
    todo = [Step("cloud", vm, hosts=True), Step("cloud", rule), Step("machine", file)]
    done = list(look(todo))
    assert words(done) == ["vm: drifted", "rule: drifted", "file: failed"]
    assert isinstance(done[-1].error, Unreachable)
    assert "vm is not running" in str(done[-1].error)
    assert (rule.reads, file.reads) == (1, 0)
    vm.is_right = True
    assert words(list(look(todo))) == ["vm: unchanged", "rule: drifted", "file: drifted"]
    assert trace == []


def test_without_its_secrets_only_the_cloud_is_looked_at(trace: list[str]) -> None:
    todo = [Step("cloud", Thing("vm", trace), hosts=True), Step("machine", Thing("file", trace))]
    away = Final("no such secret")
    assert [done.error for done in look(todo, away)] == [None, away]


def test_a_run_has_work_where_something_differs_or_could_not_be_looked_at(trace: list[str]) -> None:
    vm, file = Thing("vm", trace), Thing("file", trace)
    todo = [Step("cloud", vm, hosts=True), Step("machine", file)]

    def left(step: Step, _change: Change) -> bool:
        return step.resource is file

    assert unsettled(list(look(todo)), left)  # the vm, and so the file could not be looked at
    vm.is_right = True
    assert unsettled(list(look(todo)), nothing)
    assert not unsettled(list(look(todo)), left)
    file.is_right = True
    assert not unsettled(list(look(todo)), nothing)


@pytest.mark.usefixtures("prefect_api")
def test_what_goes_beside_the_rest_is_awaited_by_the_stage_that_needs_it(trace: list[str]) -> None:
    def until(other: str) -> Callable[[], None]:
        def wait() -> None:
            deadline = time.monotonic() + 30
            while other not in trace:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        return wait

    todo = [
        Step("machine", Thing("uv", trace, wait=until("file")), beside="database"),
        Step("machine", Thing("tool", trace, wait=until("schema")), beside="prefect"),
        Step("machine", Thing("package", trace), beside="prefect"),
        Step("machine", Thing("file", trace)),
        Step("database", Thing("schema", trace)),
        Step("prefect", Thing("service", trace)),
    ]
    done = settled(todo)
    assert trace == ["file", "uv", "schema", "tool", "package", "service"]
    assert words(done) == [f"{name}: changed" for name in trace]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("broken", ["tool", "schema"])
def test_the_first_failure_ends_a_run_and_nothing_is_left_going_on(
    trace: list[str], broken: str
) -> None:
    things = {
        name: Thing(name, trace, error=Final("broken") if name == broken else None)
        for name in ("tool", "schema", "file", "service")
    }
    todo = [
        Step("machine", things["tool"], beside="prefect"),
        Step("database", things["schema"]),
        Step("database", things["file"]),
        Step("prefect", things["service"]),
    ]
    done = settled(todo)
    assert f"{broken}: failed" in words(done)
    assert "service" not in trace
    assert ("file" in trace) == (broken == "tool")
    assert {each.step.resource.name for each in done} >= {"tool", "schema"}


@pytest.mark.usefixtures("prefect_api")
def test_what_still_waits_is_told_when_what_it_waits_for_has_failed(trace: list[str]) -> None:
    todo = [
        Step("machine", Thing("uv", trace, error=Final("broken")), beside="database"),
        Step("machine", Thing("tool", trace), beside="prefect"),
        Step("database", Thing("schema", trace)),
    ]
    assert words(settled(todo)) == ["uv: failed", "tool: failed"]
    assert trace == []


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("code", "becomes"), [(500, "changed"), (503, "changed"), (429, "changed"), (404, "failed")]
)
def test_a_server_that_fails_to_answer_is_asked_again(
    trace: list[str], code: int, becomes: str
) -> None:
    thing = Thing("deployment", trace, answers=[code])
    assert words(settled([Step("prefect", thing)])) == [f"deployment: {becomes}"]
    assert thing.reads == (3 if becomes == "changed" else 1)


@pytest.mark.usefixtures("prefect_api")
def test_a_machine_that_is_left_off_ends_the_run_with_what_starts_it(trace: list[str]) -> None:
    todo = [
        Step("cloud", Thing("vm", trace), hosts=True),
        Step("cloud", Thing("rule", trace)),
        Step("machine", Thing("file", trace)),
        Step("machine", Thing("other", trace)),
    ]
    done = settled(todo, lambda step, _change: step.resource.name == "vm")
    assert words(done) == ["vm: drifted", "rule: changed", "file: failed"]
    assert "bootstrap-server" in str(done[-1].error)


def test_the_stages_on_a_machine_are_read_side_by_side_where_nothing_is_changed(
    trace: list[str],
) -> None:
    """Each of the two waits until the other is being read."""
    both = Barrier(2, timeout=30)

    def there(stage: str) -> Step:
        def read(things: Sequence[Resource]) -> list[State | Exception | None]:
            both.wait()
            return [each.read() for each in things]

        thing = Thing(stage, trace, is_right=True)
        return Step(stage, Remembered(thing, Batch([[thing]], read)))

    vm = Thing("vm", trace, is_right=True)
    todo = [Step("cloud", vm, hosts=True), there("machine"), there("prefect")]
    connected: list[object] = []

    def connect() -> None:
        connected.append(current_thread())

    found = words(list(look(todo, connect=connect)))
    assert connected == [current_thread()]  # a signal interrupts no other
    assert found == ["vm: unchanged", "machine: unchanged", "prefect: unchanged"]


def test_what_cannot_be_read_ahead_is_told_where_it_is_asked_for(trace: list[str]) -> None:
    def read(_things: Sequence[Resource]) -> list[State | Exception | None]:
        raise Unreachable("no route", repair="wait")

    vm, file = Thing("vm", trace, is_right=True), Thing("file", trace)
    there = Step("machine", Remembered(file, Batch([[file]], read)))
    done = list(look([Step("cloud", vm, hosts=True), there], connect=partial(read, [])))
    assert words(done) == ["vm: unchanged", "file: failed"]
    assert str(done[-1].error) == "no route wait"
