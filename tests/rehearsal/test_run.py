"""``python -m rehearsal run``: the whole story, told twice on one cloud."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.conftest import Cloud

pytestmark = pytest.mark.rehearsal

LONGEST = 1600.0
"""Seconds; more than the sum of a run's own deadlines, so that it is the run that says what hangs."""


@pytest.fixture(scope="module")
def told(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the first and the second run report."""
    file = tmp_path_factory.mktemp("run") / "run.json"
    reports = []
    for _ in range(2):
        cloud.ctl("run", "--json", str(file), timeout=LONGEST)
        reports.append(json.loads(file.read_text()))
        file.unlink()
    return reports


def test_the_first_run_makes_the_server_and_the_second_has_nothing_to_do(
    told: list[dict[str, Any]],
) -> None:
    first, second = (report["bootstrap"] for report in told)
    assert (first["state"], second["state"]) == ("Changed", "Unchanged")
    assert {row["outcome"] for row in second["resources"]} == {"unchanged"}


def test_both_runs_name_the_same_resources_of_every_stage(told: list[dict[str, Any]]) -> None:
    first, second = (
        [(row["stage"], row["name"]) for row in report["bootstrap"]["resources"]] for report in told
    )
    assert first == second
    assert len(set(first)) == len(first)
    assert list(dict.fromkeys(stage for stage, _ in first)) == [
        *("cloud", "machine", "database", "prefect")
    ]


def test_every_run_sees_a_scheduled_self_check_and_no_drift(told: list[dict[str, Any]]) -> None:
    for report in told:
        assert report["self_check"]["scheduled"] is True
        assert report["drift"] == {"state": "Unchanged"}
        assert 0 < report["bootstrap"]["seconds"] < report["seconds"]


def test_both_servers_stay_up_where_status_says(cloud: Cloud, told: list[dict[str, Any]]) -> None:
    status = json.loads(cloud.ctl("status", "--json").stdout)
    urls = {name: status[name] for name in ("laptop", "server")}
    assert [report["urls"] for report in told] == [urls, urls]
    for url in urls.values():
        with urllib.request.urlopen(f"{url}/api/health", timeout=10) as response:  # noqa: S310 - http
            assert json.load(response) is True
