"""What the table says of what was measured."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.bench.figures import figures, reasons, table
from tests.conftest import ROOT

FAST = {
    "first": [10.0, 90.0, 11.0],
    "again": [2.0],
    "check": [2.0],
    "check's flow": [0.9],
    "empty flow": [1.0],
}
SLOW = {"first": [20.0], "again": [6.0], "check": [7.0]}
SPANS = {"plan": [3.0, 2.0, 9.0], "schema": [6.0]}
NEAR = {
    "ours": FAST,
    "ours, first": SPANS,
    "ours, check": {"Google": [0.4]},
    "raw.sh": {"first": [11.5]},
    "pyinfra": SLOW,
    "Ansible": SLOW,
}
FOUND: dict[str, Any] = {
    "date": "2026-11-23",
    "machine": "2 × a processor",
    "versions": {"prefect": "3.8.8"},
    "rounds": 3,
    "near": NEAR,
    "far": copy.deepcopy(NEAR),
    "requests": {
        "first": {"requests": 40, "writes": 12, "twice": 9, "of_google_auth": 3},
        "again": {"requests": 9, "writes": 0, "twice": 0, "of_google_auth": 3},
        "check": {"requests": 9, "writes": 0, "twice": 0, "of_google_auth": 3},
    },
    "round_trips": 1,
    "restart": {"bootstrap": [5.0, 4.0, 9.0], "systemctl": [5.1]},
    "self_check": {
        "cpu_seconds": 4.5,
        "cpu_seconds_of_an_empty_flow": 3.0,
        "wall_seconds": 5.0,
        "worker_mb": 160.0,
        "server_mb": 230.0,
    },
    "imports": {"prefect": 1.0, "bootstrap": 0.19, "drift": 0.1},
    "fleet": {
        "bootstrap": {"1": 50.0, "2": 60.0, "4": 100.0, "8": 200.0},
        "cpu_seconds": {"1": 50.0, "2": 101.0, "8": 388.0},
        "cores": 2,
        "check": {"1": [4.0], "4": [8.0, 70.0, 7.0], "16": [31.0]},
        "again": {"1": [5.0], "8": [15.0]},
        "again_cpu_seconds": {"1": [6.0], "8": [24.0]},
        "locked": 2,
        "worker_mb": {"worker": 120.0, "all": 900.0},
    },
}


def missed(found: dict[str, Any]) -> list[str]:
    return [each.name for each in figures(found) if not each.reached]


def test_each_bound_is_reached_at_it_and_by_the_median() -> None:
    assert missed(FOUND) == []
    assert len({each.name for each in figures(FOUND)}) >= 12


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("near", "ours", "first"), [12.0], "first bootstrap"),
        (("near", "ours", "again"), [6.1], "rerun with nothing to do"),
        (("near", "ours", "check's flow"), [1.1], "drift check, its flow"),
        (("far", "ours", "first"), [14.0], "first bootstrap, 60 ms away"),
        (("far", "ours", "again"), [6.1], "rerun, 60 ms away"),
        (("requests", "again", "twice"), 1, "requests of Google"),
        (("requests", "again", "writes"), 1, "requests of Google"),
        (("round_trips",), 2, "drift check, SSH"),
        (("self_check", "cpu_seconds"), 6.1, "self-check, CPU"),
        (("restart", "bootstrap"), [5.2], "restart gap"),
        (("imports", "drift"), 0.21, "import of a flow"),
        (("fleet", "bootstrap", "4"), 121.0, "bootstrap, s per server"),
        (("fleet", "check", "16"), [33.0], "check, s per server"),
        (("fleet", "again", "8"), [15.1], "8 reruns"),
    ],
)
def test_a_missed_bound_is_told(path: tuple[str, ...], value: object, name: str) -> None:
    found = copy.deepcopy(FOUND)
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert missed(found) == [name]
    [line] = [line for line in table(found).splitlines() if "**no**" in line]
    assert line.startswith(f"| {name} |")


def test_the_table_has_what_was_measured_and_when() -> None:
    only = {name: FOUND[name] for name in ("date", "machine", "versions", "fleet")}
    assert "2026-11-23, 2 × a processor; prefect 3.8.8" in table(only)
    assert "first bootstrap" not in table(only)
    assert "| 8 reruns | 15.0 s; one 5.0 | ≤ 3 × one | yes |" in table(only)


def test_the_reasons_have_their_figures() -> None:
    said = "\n".join(reasons(FOUND))
    assert "plan 3.0 s, schema 6.0 s" in said
    assert "Google 0.4 s" in said
    assert "1: 50, 2: 50, 8: 48; for one, the 2 cores" in said
    assert "need 25 s at the least" in said
    assert "97% busy" in said
    assert "one takes 6.0 CPU seconds" in said
    assert "SQLite 2 times, and a check of 4 took 70 s once." in said
    assert all(f"* {reason}" in table(FOUND) for reason in reasons(FOUND))


def test_a_check_that_took_as_long_as_the_others_is_not_spoken_of() -> None:
    even = copy.deepcopy(FOUND)
    even["fleet"]["check"]["4"] = [20.0, 21.0, 20.0]
    assert "SQLite 2 times." in "\n".join(reasons(even))


def test_the_readme_has_the_table_of_the_last_bench() -> None:
    """If this fails: put there what make bench has printed."""
    last = json.loads((ROOT / "docs/bench.json").read_text())
    assert table(last) in (ROOT / "README.md").read_text()
