"""What a run says at its end."""

from dataclasses import replace
from typing import Any

import pytest

from flows import report
from flows.errors import CommandFailed
from flows.findings import Finding
from flows.reconcile import Change, Outcome, Resource, State
from flows.spec import ServerSpec
from flows.stages import Done, Step

SPEC: dict[str, Any] = {
    "name": "prefect-1",
    "project": "my-project-123",
    "zone": "europe-west4-a",
    "auth_secret": {"block": "prefect-auth"},
    "database_url_secret": {"block": "prefect-database-url"},
}
CHANGES = (Change("mode", "600", "644"),)


class Thing:
    """A resource that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def desired(self) -> State:
        raise NotImplementedError

    def read(self) -> State | None:
        raise NotImplementedError

    def apply(self, changes: tuple[Change, ...]) -> None:
        raise NotImplementedError


def hidden(text: str) -> str:
    return text.replace("hunter2", "********")


def done(name: str, *, changes: tuple[Change, ...] = (), applied: bool = False) -> Done:
    resource: Resource = Thing(name)
    return Done(Step("machine", resource), 1.26, Outcome(name, changes, changes if applied else ()))


def failed(name: str) -> Done:
    error = CommandFailed(["cat", "x"], 3, "no hunter2 here", repair="Write it.")
    return Done(Step("machine", Thing(name)), 0.5, error=error)


CHANGED = done("file a", changes=CHANGES, applied=True)
DRIFTED = done("file a", changes=CHANGES)
SAME = done("file b")


@pytest.mark.parametrize(
    ("steps", "name", "kind", "words"),
    [
        ([CHANGED, SAME], "Changed", "COMPLETED", ["1 of 2", "file a"]),
        ([SAME], "Unchanged", "COMPLETED", ["0 of 1"]),
        ([SAME, DRIFTED], "Unchanged", "COMPLETED", ["0 of 2", "Left as they are: file a."]),
        (
            [CHANGED, failed("file c")],
            "Failed",
            "FAILED",
            ["machine: file c", "exit 3", "Write it."],
        ),
    ],
)
def test_the_verdict_of_a_bootstrap(
    steps: list[Done], name: str, kind: str, words: list[str]
) -> None:
    state = report.verdict(steps, [], hidden)
    assert (state.name, state.type.value) == (name, kind)
    assert [word for word in words if word not in str(state.message)] == []
    assert "hunter2" not in str(state.message)


BACK = Finding(
    *("machine", "file a", "mode", "600", "644", "warning", "drift", "2026-11-22T13:00:00Z"),
    action="healed twice and back again",
)


def test_what_does_not_stay_healed_fails_the_run_and_is_named() -> None:
    state = report.verdict([SAME, DRIFTED], [BACK], hidden)
    assert state.is_failed()
    assert state.message == "file a: mode: healed twice and back again."


@pytest.mark.parametrize(
    ("found", "fail", "name", "kind"),
    [
        ([], True, "Unchanged", "COMPLETED"),
        ([BACK], False, "Drifted", "COMPLETED"),
        ([BACK], True, "Drifted", "FAILED"),
        ([BACK, replace(BACK, kind="could not check", attribute="")], False, "Unknown", "FAILED"),
    ],
)
def test_the_verdict_of_a_drift_check_is_never_green_without_reason(
    found: list[Finding], fail: bool, name: str, kind: str
) -> None:
    state = report.drift_verdict(found, 3, fail=fail)
    assert (state.name, state.type.value) == (name, kind)


def test_every_resource_has_a_row_whether_it_was_reached_or_not() -> None:
    after = Step("prefect", Thing("self-check"))
    steps = [CHANGED, failed("file c")]
    rows = report.rows([*(each.step for each in steps), after], steps, hidden)
    assert [(row["resource"], row["outcome"], row["seconds"]) for row in rows] == [
        ("file a", "changed", 1.3),
        ("file c", "failed", 0.5),
        ("self-check", "not reached", None),
    ]
    assert rows[0]["changes"] == "mode: 644 → 600"
    assert "hunter2" not in str(rows)


def test_the_page_says_how_to_connect() -> None:
    page = report.page(ServerSpec(**SPEC, server={"port": 4300}))
    assert "python -m flows.connect --server prefect-1\n" in page
    assert "PREFECT_API_URL=http://127.0.0.1:4201/api" in page
    assert "http://prefect-1:4300/api" in page
    assert "`prefect-auth` (gcp-secret)" in page


def test_the_log_has_a_short_line_for_what_is_new() -> None:
    new = (Change("mode", "600", None, missing=True), Change("owner", "root", None, missing=True))
    assert str(done("file a", changes=new, applied=True)) == "machine: file a: changed (new)"
    assert str(CHANGED) == "machine: file a: changed (mode: 644 → 600)"
    assert str(SAME) == "machine: file b: unchanged"
