"""Every judgement of the self-check, from figures to verdicts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, Worker

from flows.checks import api, database, machine, runs
from flows.checks.check import Check, Verdict, summary, values, worst
from flows.checks.compared import compared
from flows.errors import Unreachable
from flows.health import state
from flows.reconcile import Resource, State
from flows.spec import Ignored, SelfCheck

BOUNDS = SelfCheck()
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
Told = dict[str, Verdict]


def told(checks: list[Check]) -> Told:
    return {check.name: check.verdict for check in checks}


def bad(checks: list[Check]) -> Told:
    """What is not healthy; each of it says what to do, and what was right."""
    found = [check for check in checks if check.verdict != "healthy"]
    assert all(check.figure and check.bound for check in found)
    assert all(check.repair.endswith(".") for check in found)
    return told(found)


# API and worker

RIGHT = {"health": 200, "ready": 200, "without auth string": 401, "with auth string": 200}


@pytest.mark.parametrize(
    ("changed", "seconds", "expected"),
    [
        ({}, 5.0, {}),
        ({}, 5.1, {"API: answer time": "degraded"}),
        ({}, 10.1, {"API: answer time": "unhealthy"}),
        *(({name: status}, 0.1, {"API: answers": "unhealthy"}) for name, status in [
            ("health", 0), ("ready", 503), ("without auth string", 200), ("with auth string", 401)]),
    ],
)  # fmt: skip
def test_the_api_answers_everybody_as_it_should_and_in_time(
    changed: dict[str, int], seconds: float, expected: Told
) -> None:
    checks = api.answered(RIGHT | changed, seconds, BOUNDS)
    assert bad(checks) == expected
    assert all(name in checks[0].figure for name in changed)


@pytest.mark.parametrize(
    ("name", "ago", "ours", "expected"),
    [
        ("prefect-1", 80, "3.8.8", {}),
        ("prefect-1", 80, "3.10.0", {}),
        ("prefect-1", 100, "3.8.8", {"worker: heartbeat": "degraded"}),
        ("prefect-1", 200, "3.8.8", {"worker: heartbeat": "unhealthy"}),
        ("prefect-1", None, "3.8.8", {"worker: heartbeat": "unhealthy"}),
        ("another", 1, "3.8.8", {"worker: heartbeat": "unhealthy"}),
        ("prefect-1", 1, "3.8.7", {"worker: version": "unhealthy"}),
    ],
)
def test_the_worker_reports_and_is_not_older_than_the_server(
    name: str, ago: int | None, ours: str, expected: Told
) -> None:
    at = None if ago is None else datetime.now(UTC) - timedelta(seconds=ago)
    found = [Worker(name=name, work_pool_id=uuid4(), last_heartbeat_time=at)]
    assert bad(api.worker(found, "prefect-1", ours, "3.8.8", BOUNDS)) == expected


def test_without_a_worker_nothing_has_reported() -> None:
    assert api.worker([], "prefect-1", "3.8.8", "3.8.8", BOUNDS)[0].verdict == "unhealthy"


# Scheduler


def due(seconds: float) -> FlowRun:
    return FlowRun(flow_id=uuid4(), expected_start_time=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [([3600], "healthy"), ([3480], "healthy"), ([3479], "unhealthy"), ([-5], "unhealthy"), ([], "unhealthy")],
)  # fmt: skip
def test_a_scheduler_that_has_stopped_is_seen_before_its_runs_are_used_up(
    ahead: list[float], expected: Verdict
) -> None:
    check = runs.scheduled(NOW, [due(each) for each in ahead], BOUNDS)
    assert told([check]) == {"scheduler: next runs": expected}


@pytest.mark.parametrize(
    ("late", "expected"), [([], "healthy"), ([125], "degraded"), ([241], "unhealthy")]
)
def test_own_runs_start_in_time(late: list[float], expected: Verdict) -> None:
    check = runs.lateness(NOW, [due(-each) for each in late], BOUNDS)
    assert check.verdict == expected


@pytest.mark.parametrize(
    ("number", "verdict"), [(0, "healthy"), (1, "degraded"), (999, "degraded")]
)
def test_others_late_and_silent_runs_degrade_and_no_more(number: int, verdict: Verdict) -> None:
    check = runs.counted("late runs", number, "Repair it.")
    assert (check.verdict, check.figure) == (verdict, str(number))


def test_a_run_without_a_heartbeat_is_silent() -> None:
    heard, silent = due(0), due(0)
    assert runs.unheard([heard, silent], {f"prefect.flow-run.{heard.id}"}) == [silent]


# Database

PRESSURE: dict[str, Any] = {
    "seconds": 0.1, "ahead": 0.0, "max_connections": 100, "connections": 20, "size": 410_000_000,
    "transaction": 1.0, "dead": 10, "live": 5, "largest": ["events 8 MB", "flow_run 1 MB"],
}  # fmt: skip
OLD = {"database: size": 400_000_000.0}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"seconds": 6.0}, {"database: answer": "degraded"}),
        ({"seconds": 11.0}, {"database: answer": "unhealthy"}),
        ({"connections": 90}, {}),
        ({"connections": 91}, {"database: connections": "degraded"}),
        ({"connections": 97}, {"database: connections": "unhealthy"}),
        ({"size": 657_000_000}, {"database: growth": "degraded"}),
        ({"size": 990_000_000}, {"database: growth": "degraded"}),
        ({"size": 1_000}, {}),
        ({"transaction": 901.0}, {"database: oldest transaction": "degraded"}),
        ({"transaction": 1801.0}, {"database: oldest transaction": "unhealthy"}),
        ({"dead": 100_000, "live": 1}, {}),
        ({"dead": 200_000, "live": 100_000}, {"database: dead rows": "degraded"}),
        ({"dead": 0, "live": 0, "largest": []}, {}),
    ],
)
def test_the_database_bears_what_it_has_to(changed: dict[str, Any], expected: Told) -> None:
    assert bad(database.judged(PRESSURE | changed, OLD, BOUNDS)) == expected


def test_the_first_check_knows_of_no_growth_and_is_healthy() -> None:
    checks = database.judged(PRESSURE, {}, BOUNDS)
    assert bad(checks) == {}
    assert values(check.row() for check in checks)["database: size"] == 410_000_000
    assert checks[-1].figure == "events 8 MB, flow_run 1 MB"


def test_a_database_that_does_not_answer_is_unhealthy_not_unknown() -> None:
    [check] = database.refused(Unreachable("Nobody answers.", repair="Start it."))
    assert (check.verdict, check.figure, check.repair) == (
        "unhealthy",
        "Nobody answers.",
        "Start it.",
    )


# Machine

VITALS: dict[str, Any] = {
    "disk": 60.0, "inodes": 90.0, "memory": 40.0, "load": 0.5, "kills": 2, "clock": 0.001,
    "failed": [], "restarts of prefect-server.service": 1,
}  # fmt: skip
RESTARTS = "machine: restarts of prefect-server.service"
CALM = {"machine: killed for memory": 2.0, RESTARTS: 1.0}


@pytest.mark.parametrize(
    ("changed", "ahead", "expected"),
    [
        ({}, 0.0, {}),
        ({"disk": 9.9}, 0.0, {"machine: disk": "degraded"}),
        ({"disk": 4.9}, 0.0, {"machine: disk": "unhealthy"}),
        ({"inodes": 4.9}, 0.0, {"machine: inodes": "unhealthy"}),
        ({"memory": 9.0}, 0.0, {"machine: memory": "degraded"}),
        ({"memory": 4.0}, 0.0, {"machine: memory": "unhealthy"}),
        ({"load": 40.0}, 0.0, {"machine: load": "degraded"}),
        ({"clock": 2.1}, 0.0, {"machine: clock": "degraded"}),
        ({"clock": 4.1}, 0.0, {"machine: clock": "unhealthy"}),
        ({"clock": "Not synchronised"}, 0.0, {"machine: clock": "degraded"}),
        ({"clock": ""}, 0.0, {}),
        ({"clock": ""}, -5.0, {"machine: clock": "unhealthy"}),
        ({"clock": ""}, None, {"machine: clock": "could not check"}),
        ({"kills": 3}, 0.0, {"machine: killed for memory": "degraded"}),
        ({"kills": 6}, 0.0, {"machine: killed for memory": "unhealthy"}),
        ({"kills": 0}, 0.0, {}),
        ({RESTARTS[9:]: 2}, 0.0, {RESTARTS: "degraded"}),
        ({RESTARTS[9:]: 5}, 0.0, {RESTARTS: "unhealthy"}),
        ({RESTARTS[9:]: 0}, 0.0, {}),
        ({"failed": ["cron.service"]}, 0.0, {"machine: failed units": "degraded"}),
        ({"certificate": 15.0}, 0.0, {}),
        ({"certificate": 13.0}, 0.0, {"machine: certificate": "degraded"}),
        ({"certificate": 6.0}, 0.0, {"machine: certificate": "unhealthy"}),
        ({"certificate": 0.0, "certificate fault": "expired"}, 0.0, {"machine: certificate": "unhealthy"}),
    ],
)  # fmt: skip
def test_the_machine_has_enough_left_and_nothing_has_gone_wrong_on_it(
    changed: dict[str, Any], ahead: float | None, expected: Told
) -> None:
    checks = machine.judged(VITALS | changed, ahead, CALM, BOUNDS)
    assert bad(checks) == expected
    assert ("machine: certificate" in told(checks)) == ("certificate" in changed)


@pytest.mark.parametrize(
    "name", ["disk", "memory", "load", "clock", "kills", "units", "certificate"]
)
def test_what_could_not_be_told_of_a_machine_is_not_green(name: str) -> None:
    checks = machine.judged(VITALS | {f"{name} error": "no such thing"}, 0.0, CALM, BOUNDS)
    assert told(checks)[f"machine: {name}"] == "could not check"


def test_what_happened_before_the_first_check_is_nobodys_fault() -> None:
    checks = machine.judged(VITALS | {"kills": 9, RESTARTS[9:]: 9}, 0.0, {}, BOUNDS)
    assert bad(checks) == {}
    assert values(check.row() for check in checks)[RESTARTS] == 9


# What the catalog compares


def thing(name: str, actual: State | Exception | None) -> Resource:
    def read() -> State | None:
        if isinstance(actual, Exception):
            raise actual
        return actual

    return cast(Resource, SimpleNamespace(name=name, desired=lambda: {"state": "right"}, read=read))


SERVICE = "service prefect-worker"


@pytest.mark.parametrize(
    ("actual", "ignore", "expected"),
    [
        ({"state": "right"}, (), {"drift": "healthy"}),
        ({"state": "masked"}, (), {f"drift: {SERVICE}: state": "unhealthy"}),
        (None, (), {f"drift: {SERVICE}": "degraded"}),
        (OSError("no"), (), {f"drift: {SERVICE}": "could not check"}),
        ({"state": "masked"}, (Ignored(resource="service *", reason="in repair"),), {"drift": "healthy"}),
        ({"state": "right"}, (Ignored(resource="disk *", reason="of another stage"),), {"drift": "healthy"}),
    ],
)  # fmt: skip
def test_a_difference_weighs_as_the_drift_policy_says(
    actual: State | Exception | None, ignore: tuple[Ignored, ...], expected: Told
) -> None:
    assert told(compared("drift", [thing(SERVICE, actual)], ignore)) == expected


def test_what_cannot_be_compared_is_said() -> None:
    [check] = compared("drift", [], (), left=["file /etc/sudoers.d/x"])
    assert "not compared here: file /etc/sudoers.d/x" in check.figure


# All of them


def verdicts(*found: Verdict) -> list[Check]:
    return [Check(f"{n}", each, "7", "at most 3", "Look.") for n, each in enumerate(found)]


@pytest.mark.parametrize(
    ("found", "name", "completed"),
    [
        (["healthy"], "Completed", True),
        (["healthy", "degraded"], "Degraded", True),
        (["degraded", "could not check"], "Unknown", False),
        (["could not check", "unhealthy", "healthy"], "Unhealthy", False),
        ([], "Unknown", False),
    ],
)
def test_the_worst_decides_and_what_could_not_be_checked_is_never_green(
    found: list[Verdict], name: str, completed: bool
) -> None:
    came = state(worst(verdicts(*found)), "what was found")
    assert (came.name, came.is_completed()) == (name, completed)


def test_the_summary_is_a_line_with_the_worst_first() -> None:
    assert summary(verdicts("healthy", "healthy")) == "All 2 figures are healthy."
    said = summary(verdicts("degraded", "healthy", "unhealthy"))
    assert said == "unhealthy: 2: 7 (bound: at most 3); degraded: 0: 7 (bound: at most 3)."
    assert summary(7 * verdicts("degraded")).endswith("; and 2 more.")
    assert worst(verdicts("degraded", "unhealthy", "could not check")) == "unhealthy"


def test_a_repair_is_for_what_is_not_healthy() -> None:
    healthy, degraded = verdicts("healthy", "degraded")
    assert (healthy.row()["repair"], degraded.row()["repair"]) == ("", "Look.")
    assert [*values([degraded.row(), replace(degraded, value=3).row()]).values()] == [3]
