"""What a drift check says of what it has looked at: its rows. Of all of them: test_findings_summary."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from flows.errors import CommandFailed, NeedsReplacement, Unreachable
from flows.findings import (
    Finding,
    Looked,
    Row,
    code,
    findings,
    summary,
    to_cells,
    to_row,
    word,
)
from flows.policy import Level
from flows.reconcile import Change, Outcome
from flows.spec import Ignored

NOW = datetime(2026, 11, 22, 13, 0, 0, 999, tzinfo=UTC)
AT, EARLIER = "2026-11-22T13:00:00Z", "2026-11-21T08:17:00Z"
RULE, VM, ANSWERS = "firewall rule prefect-1-clients", "instance prefect-1", "server's answers"
OPENED = Change("sourceRanges", ("10.10.0.0/24",), ("0.0.0.0/0", "10.10.0.0/24"))
RESIZED = Change("machineType", "e2-medium", "e2-small")
MOVED = Change("zone", "europe-west4-a", "europe-west4-b")
GONE = tuple(Change(name, "x", None, missing=True) for name in ("network", "sourceRanges"))


def looked(resource: str, *changes: Change, applied: tuple[Change, ...] = ()) -> Looked:
    names = dict.fromkeys(("network", "sourceRanges", *(c.attribute for c in changes)))
    outcome = Outcome(resource, changes, applied)
    return Looked("cloud", resource, tuple(names), outcome, replaced)


def replaced(change: Change) -> NeedsReplacement | None:
    if change.attribute != "zone":
        return None
    return NeedsReplacement(VM, "zone", "it stays where it was made", change=change)


def failed(resource: str, error: Exception) -> Looked:
    return Looked("cloud", resource, ("network", "sourceRanges"), error)


def ignored(resource: str, attribute: str = "*", until: str = "") -> Ignored:
    return Ignored(resource=resource, attribute=attribute, reason="asked for", until=until)


def found(
    *things: Looked,
    ignore: tuple[Ignored, ...] = (),
    heal: Level = "off",
    before: tuple[Row, ...] = (),
) -> list[Finding]:
    return findings(things, ignore, heal, NOW, before)


def one(*things: Looked, **more: Any) -> Finding:
    [only] = found(*things, **more)
    return only


# Rows


def test_what_is_as_in_the_spec_has_no_row() -> None:
    assert found(looked(RULE), looked(VM)) == []


def test_a_row_says_what_where_and_how_bad_it_is() -> None:
    assert to_row(one(looked(RULE, OPENED))) == {
        "stage": "cloud",
        "resource": RULE,
        "attribute": "sourceRanges",
        "desired": "10.10.0.0/24",
        "actual": "0.0.0.0/0, 10.10.0.0/24",
        "severity": "critical",
        "class": "drift",
        "first seen": AT,
        "action": "run bootstrap-server",
    }


def test_what_is_missing_is_one_row() -> None:
    row = one(looked(RULE, *GONE))
    said = (row.attribute, row.desired, row.actual, row.kind, row.severity)
    assert said == ("", "exists", "does not exist", "missing", "critical")


def test_every_attribute_that_differs_has_a_row() -> None:
    rows = found(looked(VM, RESIZED, MOVED), looked(RULE, OPENED))
    assert [row.attribute for row in rows] == ["machineType", "zone", "sourceRanges"]


def test_what_a_run_has_healed_is_no_finding() -> None:
    """Of what a run found, only what it left is still so."""
    assert found(looked(RULE, *GONE, applied=GONE)) == []
    assert one(looked(VM, RESIZED, MOVED, applied=(RESIZED,))).attribute == "zone"


ACTIONS: list[tuple[str, Change, Level, str]] = [
    (RULE, OPENED, "safe", "heals by itself (safe)"),
    (RULE, OPENED, "all", "heals by itself (safe)"),
    (RULE, OPENED, "off", "run bootstrap-server"),
    (RULE, GONE[0], "safe", "heals by itself (safe)"),
    (VM, Change("zone", "x", None, missing=True), "all", "heals by itself (all)"),
    (VM, RESIZED, "safe", "run bootstrap-server"),
    (VM, RESIZED, "all", "heals by itself (all)"),
    (
        VM,
        MOVED,
        "all",
        "Put zone back in the spec, or delete instance prefect-1 and run again (it stays where it was made)",
    ),
    (
        ANSWERS,
        Change("UI", 200, 404),
        "all",
        "look for a .env file or PREFECT_ variables that beat its prefect.toml",
    ),
]


@pytest.mark.parametrize(("resource", "change", "heal", "action"), ACTIONS)
def test_a_row_says_what_heals_it(resource: str, change: Change, heal: Level, action: str) -> None:
    row = one(looked(resource, change), heal=heal)
    assert row.action == action
    assert (row.kind == "needs replacement") is (change is MOVED)


# What could not be checked

ERRORS = [
    (Unreachable("IAP does not answer.", repair="Open it."), "IAP does not answer.", "Open it."),
    (Unreachable("IAP does not answer."), "IAP does not answer.", "see the log of the run"),
    (CommandFailed(["cat", "x"], 3, "no x"), "cat x: exit 3: no x", "see the log of the run"),
    (TimeoutError(), "TimeoutError", "see the log of the run"),
]


@pytest.mark.parametrize(("error", "actual", "action"), ERRORS)
def test_what_could_not_be_checked_says_why_and_what_repairs_it(
    error: Exception, actual: str, action: str
) -> None:
    row = one(failed(RULE, error), ignore=(ignored("*"),))
    assert (row.kind, row.attribute, row.actual) == ("could not check", "", actual)
    assert (row.action, word([row])) == (action, "Unknown")


# First seen


def earlier(*things: Looked, **more: Any) -> tuple[Row, ...]:
    """The table of the report before."""
    rows = findings(things, (), "off", datetime.fromisoformat(EARLIER), ())
    return tuple({**to_cells(row), **more} for row in rows)


SINCE: list[tuple[str, Looked, tuple[Row, ...], str]] = [
    ("still so", looked(RULE, OPENED), earlier(looked(RULE, OPENED)), EARLIER),
    ("still missing", looked(RULE, *GONE), earlier(looked(RULE, *GONE)), EARLIER),
    ("something else of it", looked(VM, RESIZED), earlier(looked(VM, MOVED)), AT),
    ("something else", looked(VM, MOVED), earlier(looked("disk prefect-1", MOVED)), AT),
    ("clean before", looked(RULE, OPENED), (), AT),
    ("ignored before", looked(RULE, OPENED), earlier(looked(RULE, OPENED), **{"class": "ignored"}), EARLIER),
    ("unreachable before", looked(RULE, *GONE), earlier(failed(RULE, TimeoutError())), AT),
    ("still unreachable", failed(RULE, TimeoutError()), earlier(failed(RULE, OSError())), EARLIER),
    ("missing before", failed(RULE, TimeoutError()), earlier(looked(RULE, *GONE)), AT),
    ("another table", looked(RULE, OPENED), ({"resource": RULE, "outcome": "drifted"},), AT),
    ("a clock gone back", looked(RULE, OPENED), earlier(looked(RULE, OPENED), **{"first seen": "2027-01-01T00:00:00Z"}), AT),
]  # fmt: skip


@pytest.mark.parametrize(("thing", "before", "since"), [each[1:] for each in SINCE], ids=[each[0] for each in SINCE])  # fmt: skip
def test_first_seen_is_kept_while_it_lasts(
    thing: Looked, before: tuple[Row, ...], since: str
) -> None:
    assert one(thing, before=before).first_seen == since


def test_first_seen_outlasts_a_check_that_failed() -> None:
    """What differed before is not forgotten, and not said to differ now."""
    unreachable = found(failed(RULE, TimeoutError()), before=earlier(looked(RULE, OPENED)))
    assert [(row.attribute, row.kind) for row in unreachable] == [
        ("", "could not check"),
        ("sourceRanges", "could not check"),
    ]
    assert summary(unreachable, 34) == "1 could not be checked: TimeoutError."
    still = found(failed(RULE, TimeoutError()), before=tuple(map(to_cells, unreachable)))
    again = one(looked(RULE, OPENED), before=tuple(map(to_cells, still)))
    assert (again.kind, again.first_seen) == ("drift", EARLIER)
    assert found(looked(RULE), before=tuple(map(to_cells, still))) == []


def test_an_attribute_that_is_no_longer_ours_is_forgotten() -> None:
    before = earlier(looked(RULE, Change("colour", "blue", "red")))
    assert one(failed(RULE, TimeoutError()), before=before).attribute == ""


def test_time_is_said_in_utc() -> None:
    """And a day ends there, too."""
    now = datetime(2026, 11, 23, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    ignore = (ignored(RULE, until="2026-11-22"),)
    [row] = findings([looked(RULE, OPENED)], ignore, "off", now, ())
    assert (row.first_seen, row.kind) == ("2026-11-22T23:00:00Z", "ignored")


# The ignore list

IGNORED: list[tuple[tuple[Ignored, ...], str, str]] = [
    ((ignored(RULE),), "ignored", "asked for"),
    ((ignored("firewall *", "source*"),), "ignored", "asked for"),
    ((ignored(RULE, until="2026-11-22"),), "ignored", "asked for"),
    (
        (ignored(RULE, until="2026-11-21"),),
        "drift",
        "ignored until 2026-11-21, which is over; heals by itself (safe)",
    ),
    ((ignored(RULE, until="2026-11-21"), ignored("*")), "ignored", "asked for"),
    ((ignored(RULE, "network"),), "drift", "heals by itself (safe)"),
]


@pytest.mark.parametrize(("ignore", "kind", "action"), IGNORED)
def test_what_is_ignored_says_why_until_that_is_over(
    ignore: tuple[Ignored, ...], kind: str, action: str
) -> None:
    row = one(looked(RULE, OPENED), ignore=ignore, heal="safe")
    assert (row.kind, row.action) == (kind, action)
    assert row.severity == ("info" if kind == "ignored" else "critical")


@pytest.mark.parametrize(("attribute", "kind"), [("*", "ignored"), ("sourceRanges", "missing")])
def test_what_is_missing_is_ignored_only_as_a_whole(attribute: str, kind: str) -> None:
    assert one(looked(RULE, *GONE), ignore=(ignored(RULE, attribute),)).kind == kind


@pytest.mark.parametrize(
    ("entry", "unused"),
    [
        (ignored("firewall rule prefect-2-*"), True),
        (ignored(RULE, "sourceRange"), True),
        (ignored("Firewall rule *"), True),
        (ignored(RULE, "sourceRanges"), False),  # it does not differ now, but it might
        (ignored(RULE), False),
    ],
)
def test_an_entry_that_matches_nothing_is_a_warning(entry: Ignored, unused: bool) -> None:
    rows = found(looked(RULE), failed(VM, TimeoutError()), ignore=(entry,))[1:]
    assert [(row.kind, row.severity, row.resource) for row in rows] == (
        [("unused ignore", "warning", entry.resource)] if unused else []
    )
    assert (word(rows), code(rows)) == ("Unchanged", 0)


def test_a_resource_without_attributes_can_be_ignored_too() -> None:
    """A network of somebody else's only has to exist."""
    lent = Looked("cloud", "network shared", (), Outcome("network shared"))
    assert found(lent, ignore=(ignored("network *"),)) == []
