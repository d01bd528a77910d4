"""The engine, on resources in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import CommandFailed, DidNotConverge, NeedsReplacement, NotOurs
from flows.reconcile import Batch, Change, Outcome, State, Value, diff, reconcile, remembered


@dataclass
class Thing:
    """A resource over a dictionary that counts its reads and writes."""

    wanted: State
    world: dict[str, Value] | None = None
    broken: bool = False
    name: str = "thing"
    calls: list[str] = field(default_factory=list)

    def desired(self) -> State:
        return self.wanted

    def read(self) -> State | None:
        self.calls.append("read")
        return self.world

    def apply(self, changes: tuple[Change, ...]) -> None:
        self.calls.append("apply")
        if not self.broken:
            self.world = (self.world or {}) | {c.attribute: c.desired for c in changes}


def test_what_is_missing_is_made_and_read_again() -> None:
    thing = Thing({"mode": "0600", "owner": "prefect"})
    outcome = reconcile(thing, apply=True)
    assert outcome.word == "changed"
    assert [str(change) for change in outcome.changes] == ["mode: 0600", "owner: prefect"]
    assert thing.calls == ["read", "apply", "read"]


def test_a_rerun_reads_once_and_writes_nothing() -> None:
    thing = Thing({"mode": "0600"}, {"mode": "0600", "size": 12})
    assert reconcile(thing, apply=True) == Outcome("thing")
    assert thing.calls == ["read"]


@pytest.mark.parametrize(
    ("world", "word", "shown"),
    [
        (None, "missing", "mode: 0600"),
        ({"mode": "0644"}, "drifted", "mode: 0644 → 0600"),
        ({}, "drifted", "mode: none → 0600"),
    ],
)
def test_a_check_says_how_it_differs_and_changes_nothing(
    world: dict[str, Value] | None, word: str, shown: str
) -> None:
    thing = Thing({"mode": "0600"}, world)
    outcome = reconcile(thing, apply=False)
    assert (outcome.word, [str(c) for c in outcome.changes]) == (word, [shown])
    assert thing.calls == ["read"]


def test_what_does_not_hold_is_an_error_that_names_it() -> None:
    thing = Thing({"mode": "0600", "owner": "prefect"}, {"mode": "0644", "owner": "prefect"}, True)
    with pytest.raises(
        DidNotConverge, match=r"thing did not become .*: mode: 0644 → 0600"
    ) as error:
        reconcile(thing, apply=True)
    assert error.value.remaining == (Change("mode", "0600", "0644"),)


@pytest.mark.parametrize(
    ("desired", "actual"), [(True, 1), (False, 0), (1, True), (80, "80"), (("a",), "a"), ("", None)]
)
def test_values_of_another_kind_differ(desired: Value, actual: Value) -> None:
    assert diff({"x": desired}, {"x": actual})


def test_what_is_missing_differs_even_when_nothing_is_said_of_it() -> None:
    assert [str(change) for change in diff({}, None)] == ["exists: True"]


def test_attributes_that_are_not_ours_are_no_drift() -> None:
    assert diff({"a": 1}, {"a": 1, "fingerprint": "xyz", "b": None}) == ()


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3))
STATES = st.dictionaries(st.sampled_from("abcd"), VALUES)


@given(STATES, st.none() | STATES)
def test_applying_a_difference_leaves_none(desired: State, actual: dict[str, Value] | None) -> None:
    thing = Thing(desired, actual)
    reconcile(thing, apply=True)
    assert reconcile(thing, apply=True).changes == ()


def test_errors_carry_what_repairs_them() -> None:
    failed = CommandFailed(["apt-get", "install", "x"], 100, "a" * 9000 + "no space\n")
    assert (failed.code, len(failed.stderr)) == (100, 2000)
    assert str(failed).endswith("no space")
    assert "delete vm and run again" in NeedsReplacement("vm", "zone", "a disk has one").repair
    assert str(NotOurs("vm", "mine=x", "label it.")).endswith("in the spec, or label it.")


def test_what_is_remembered_is_read_again_only_after_a_change() -> None:
    first, second = Thing({"a": 2}, {"a": 1}), Thing({"a": 2}, {"a": 1}, name="second")
    [one, two] = remembered([first, second])
    for each in (one, two, one, two):
        reconcile(each, apply=False)
    assert (first.calls, second.calls) == (["read"], ["read"])
    assert reconcile(one, apply=True).word == "changed"
    assert reconcile(two, apply=False).word == "drifted"
    assert (first.calls, second.calls) == (["read", "apply", "read"], ["read", "read"])


def test_a_change_below_forgets_what_stands_on_it() -> None:
    thing = Thing({"a": 2}, {"a": 1})
    [upon] = remembered([thing])
    below: Batch[str] = Batch([["ground"]], lambda wanted: [{} for _ in wanted], upon.batch)
    assert upon.read() == {"a": 1}
    thing.world = {"a": 3}
    assert upon.read() == {"a": 1}
    below.forget("ground")
    assert upon.read() == {"a": 3}


def test_only_what_is_not_left_is_changed_and_the_rest_is_still_told() -> None:
    thing = Thing({"a": 2, "b": 2}, {"a": 1, "b": 1})
    outcome = reconcile(thing, apply=True, leave=lambda change: change.attribute == "b")
    assert thing.world == {"a": 2, "b": 1}
    assert [change.attribute for change in outcome.changes] == ["a", "b"]
    assert [change.attribute for change in outcome.applied] == ["a"]
    assert reconcile(thing, apply=True, leave=lambda change: True).word == "drifted"
