"""What is said of all findings: a word, a line, an exit status and a table; and what holds of any."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import Unreachable
from flows.findings import (
    CELL,
    COLUMNS,
    Looked,
    code,
    findings,
    from_row,
    summary,
    to_cells,
    to_row,
    word,
)
from flows.policy import Level
from flows.reconcile import Change
from flows.spec import Ignored
from tests.flows.test_findings import (
    ANSWERS,
    GONE,
    MOVED,
    OPENED,
    RESIZED,
    RULE,
    VM,
    failed,
    found,
    ignored,
    looked,
    one,
)

WORDS = [
    ((looked(RULE),), "Unchanged", 0),
    ((looked(RULE, OPENED),), "Drifted", 2),
    ((looked(RULE, *GONE),), "Drifted", 2),
    ((looked(VM, MOVED),), "Drifted", 2),
    ((looked(RULE), failed(VM, TimeoutError())), "Unknown", 1),
    ((looked(RULE, OPENED), failed(VM, TimeoutError())), "Unknown", 1),
]


@pytest.mark.parametrize(("things", "expected", "status"), WORDS)
def test_the_verdict_and_the_exit_status(
    things: tuple[Looked, ...], expected: str, status: int
) -> None:
    rows = found(*things)
    assert (word(rows), code(rows)) == (expected, status)


AWAY = Unreachable("prefect-1 cannot be reached over SSH.", repair="Look at its serial console.")
LABELLED = Change("labels.team", "data", None)
SUMMARIES: list[tuple[tuple[Looked, ...], tuple[Ignored, ...], str]] = [
    ((looked(RULE),), (), "34 resources are as in the spec."),
    (
        (looked(VM, LABELLED, RESIZED), looked(RULE, *GONE)),
        (),
        f"2 of 34 resources differ: {RULE}: missing (critical), {VM}: machineType (warning), {VM}: labels.team (info).",
    ),
    (
        (looked(VM, LABELLED), *(failed(f"file {n}", AWAY) for n in range(25))),
        (),
        f"1 of 34 resources differ: {VM}: labels.team (info); 25 could not be checked: prefect-1 cannot be reached over SSH.",
    ),
    (
        (looked(RULE, OPENED),),
        (ignored(RULE), ignored("nothing")),
        "34 resources are as in the spec; 1 ignored; 1 on the ignore list that match nothing.",
    ),
]


@pytest.mark.parametrize(("things", "ignore", "line"), SUMMARIES)
def test_the_summary_is_a_line(
    things: tuple[Looked, ...], ignore: tuple[Ignored, ...], line: str
) -> None:
    assert summary(found(*things, ignore=ignore), 34) == line


def test_the_summary_stays_short() -> None:
    things = [looked(f"file /{n:0300}", OPENED) for n in range(50)]
    errors = [failed(f"user {n}", OSError(f"{n}\n" * 999)) for n in range(50)]
    line = summary(found(*things, *errors), 100)
    assert "50 of 100 resources differ" in line
    assert "and 45 more; 50 could not be checked" in line
    assert len(line) < 10 * CELL + 200
    assert "\n" not in line


def test_a_row_survives_the_table_and_json() -> None:
    rows = found(looked(RULE, OPENED), failed(VM, AWAY), ignore=(ignored("nothing"),))
    for row in rows:
        assert from_row(json.loads(json.dumps(to_row(row)))) == row
        assert from_row(to_cells(row)) == row
        assert tuple(to_cells(row)) == COLUMNS


def test_a_table_cuts_what_is_long_and_json_does_not() -> None:
    long = Change("other than locked", (), tuple(f"package-{n}" for n in range(99)))
    row = one(looked("prefect 3.8.8", long))
    assert len(to_cells(row)["actual"]) == CELL
    assert to_cells(row)["actual"].endswith("…")
    assert to_row(row)["actual"].endswith("package-98")


# Whatever is found

RESOURCES = st.sampled_from([RULE, VM, ANSWERS, "file /a", "something new"])
CHANGES = st.sampled_from([OPENED, RESIZED, MOVED, *GONE])
LOOKED = st.builds(looked, RESOURCES) | st.builds(looked, RESOURCES, CHANGES)
THINGS = st.lists(LOOKED | st.builds(failed, RESOURCES, st.just(AWAY)), unique_by=lambda t: t.of)
DIFFERENT = st.lists(LOOKED, unique_by=lambda t: t.of)
TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds have no zone


@given(THINGS, THINGS, TIMES, TIMES)
def test_nothing_is_seen_first_later_than_it_was(
    first: list[Looked], then: list[Looked], past: datetime, now: datetime
) -> None:
    old = {row.key: row for row in findings(first, (), "off", past, ())}
    for row in findings(then, (), "off", now, map(to_cells, old.values())):
        assert row.first_seen <= now.strftime("%Y-%m-%dT%H:%M:%SZ")
        if row.key in old and old[row.key].kind == row.kind:
            assert row.first_seen <= old[row.key].first_seen


@given(THINGS, st.sampled_from(["off", "safe", "all"]))
def test_word_status_and_line_agree(things: list[Looked], heal: Level) -> None:
    rows = found(*things, heal=heal)
    line = summary(rows, len(things))
    expected = {"Unchanged": (0, False), "Drifted": (2, True), "Unknown": (1, True)}
    status, bad = expected[word(rows)]
    assert code(rows) == status
    assert ("differ" in line or "could not be checked" in line) is bad is bool(rows)


@given(DIFFERENT)
def test_ignoring_everything_leaves_nothing_to_do(things: list[Looked]) -> None:
    rows = found(*things, ignore=(ignored("*"),))
    assert word(rows) == "Unchanged"
    assert {row.kind for row in rows} <= {"ignored", "unused ignore"}
