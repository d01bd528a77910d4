"""A heal that does not stick is tried twice, and then no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flows.errors import NeedsReplacement
from flows.findings import Finding, Looked, Row, findings, to_cells
from flows.healing import healable, record, stuck
from flows.policy import Level
from flows.reconcile import Change, Outcome
from flows.spec import Ignored

START = datetime(2026, 11, 22, 13, tzinfo=UTC)
OPENED, STOPPED = Change("sourceRanges", "a", "b"), Change("state", "active", "failed")
RULE, SERVICE = "firewall rule prefect-1-clients", "service prefect-server"


def stays(change: Change) -> NeedsReplacement | None:
    return (
        NeedsReplacement("instance a", "zone", "it stays") if change.attribute == "zone" else None
    )


class Server:
    """Is checked every hour and healed after every check, until something is stuck."""

    def __init__(self) -> None:
        self.hour, self.rows, self.healed = 0, list[Row](), list[Row]()

    def check(self, **differs: Change) -> list[Finding]:
        """What is stuck, when ``rule`` and ``service`` differ as they say."""
        self.hour += 1
        names = {"rule": RULE, "service": SERVICE}
        looked = [
            Looked("any", name, (), Outcome(name, (differs[key],) if key in differs else ()))
            for key, name in names.items()
        ]
        now = START + timedelta(hours=self.hour)
        found = findings(looked, (), "safe", now, self.rows)
        self.rows = [to_cells(each) for each in found]
        again = stuck(found, self.healed)
        if not again:
            self.healed = record(found, self.healed)
        return again


def test_what_comes_back_after_two_heals_is_stuck() -> None:
    server = Server()
    assert [server.check(rule=OPENED), server.check(rule=OPENED)] == [[], []]
    for _ in range(2):  # and stays so
        [again] = server.check(rule=OPENED)
        assert (again.resource, again.attribute) == (RULE, "sourceRanges")
        assert again.action.startswith("healed twice and back again: ")
    assert [row["heals"] for row in server.healed] == [2]


def test_what_is_put_on_the_ignore_list_is_no_longer_stuck() -> None:
    server = Server()
    for _ in range(3):
        again = server.check(rule=OPENED)
    assert stuck([replace(again[0], kind="ignored")], server.healed) == []


def test_what_was_clean_in_between_begins_anew() -> None:
    server = Server()
    for _ in range(3):
        assert [server.check(rule=OPENED), server.check(rule=OPENED), server.check()] == [[]] * 3


def test_each_difference_is_counted_by_itself() -> None:
    server = Server()
    assert server.check(rule=OPENED) == []
    assert server.check(rule=OPENED, service=STOPPED) == []
    assert [each.resource for each in server.check(rule=OPENED, service=STOPPED)] == [RULE]


def test_what_is_not_healed_this_time_keeps_its_count() -> None:
    server = Server()
    server.check(rule=OPENED)
    server.check(rule=OPENED, service=STOPPED)
    [rule, _] = server.healed
    service = findings(
        [Looked("any", SERVICE, (), Outcome(SERVICE, (STOPPED,)))], (), "safe", START, ()
    )
    assert rule in record(service, server.healed)


@pytest.mark.parametrize(
    ("level", "healed"),
    [
        ("off", []),
        ("safe", ["firewall rule a: ", "instance a: labels.team"]),
        ("all", ["firewall rule a: ", "instance a: labels.team", "instance a: status"]),
    ],
)
def test_what_is_healable(level: Level, healed: list[str]) -> None:
    """Neither what only a person can heal, nor what is ignored or could not be checked."""
    names = ("labels.team", "status", "zone", "machineType")
    vm = tuple(Change(name, "a", "b") for name in names)
    missing = (Change("network", "a", None, missing=True),)
    looked = [
        Looked("any", "firewall rule a", (), Outcome("", missing)),
        Looked("any", "instance a", (), Outcome("", vm), stays),
        Looked("any", "exposure of a", (), Outcome("", vm[:1])),
        Looked("any", "database", (), Outcome("", vm[:1])),
        Looked("any", "service a", ("state",), TimeoutError()),
    ]
    ignore = [Ignored(resource="instance *", attribute="machineType", reason="a test")]
    found = findings(looked, ignore, level, START, ())
    said = [f"{each.resource}: {each.attribute}" for each in healable(found, level)]
    assert said == healed


def test_a_record_is_plain_data() -> None:
    server = Server()
    server.check(rule=OPENED)
    assert server.healed == [
        {
            "resource": RULE,
            "attribute": "sourceRanges",
            "first_seen": "2026-11-22T14:00:00Z",
            "heals": 1,
        }
    ]
