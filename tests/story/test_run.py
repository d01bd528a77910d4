"""``python -m rehearsal run``: the main job from nothing, and again with nothing to do."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

from tests.story.conftest import Story, tell

pytestmark = pytest.mark.rehearsal


@pytest.fixture(scope="module")
def again(story: Story, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the second run reports, with the requests that Google's APIs got meanwhile."""
    before = len(story.requests())
    report = tell(story.cloud, tmp_path_factory.mktemp("run") / "run.json")
    return {**report, "requests": story.requests()[before:]}


def test_the_first_run_makes_the_server_and_the_second_has_nothing_to_do(
    story: Story, again: dict[str, Any]
) -> None:
    first, second = story.first["bootstrap"], again["bootstrap"]
    assert (first["state"], second["state"]) == ("Changed", "Unchanged")
    assert {row["outcome"] for row in second["resources"]} == {"unchanged"}


def test_the_second_run_only_reads_from_google(again: dict[str, Any]) -> None:
    methods = {entry["method"] for entry in again["requests"] if entry["method"]}
    cloud = {method for method in methods if method.startswith(("compute.", "iam."))}
    assert "compute.instances.get" in cloud
    assert {method.rpartition(".")[2] for method in cloud} <= {"get", "list", "getGuestAttributes"}


def test_both_runs_name_the_same_resources_of_every_stage(
    story: Story, again: dict[str, Any]
) -> None:
    first, second = (
        [(row["stage"], row["name"]) for row in report["bootstrap"]["resources"]]
        for report in (story.first, again)
    )
    assert first == second
    assert len(set(first)) == len(first)
    stages = list(dict.fromkeys(stage for stage, _ in first))
    assert stages == ["cloud", "machine", "database", "prefect"]


def test_every_run_sees_a_scheduled_self_check_and_no_drift(
    story: Story, again: dict[str, Any]
) -> None:
    for report in (story.first, again):
        assert report["self_check"]["scheduled"]
        assert only_slow(report["self_check"]), report["self_check"]
        assert report["drift"] == {"state": "Unchanged"}
        assert 0 < report["bootstrap"]["seconds"] < report["seconds"]


def only_slow(check: dict[str, Any]) -> bool:
    """Whether a self-check found no fault, but perhaps that its host is busy, with other tests."""
    if check["state"] == "Completed":
        return True
    figures = "machine: load|API: answer time|database: answer"
    faults = check["message"].split("; ")
    return all(re.match(rf"degraded: ({figures}): ", fault) for fault in faults)


@pytest.mark.parametrize(
    ("state", "message", "slow"),
    [
        ("Completed", "All 30 figures are healthy.", True),
        ("Degraded", "degraded: machine: load: 5 a CPU (bound: at most 4 a CPU).", True),
        ("Degraded", "degraded: machine: disk: 5 % free (bound: at least 10 % free).", False),
        ("Unhealthy", "unhealthy: API: answer time: 11 s; degraded: machine: load: 5 a CPU", False),
    ],
)
def test_a_busy_host_is_no_fault(state: str, message: str, slow: bool) -> None:
    assert only_slow({"state": state, "message": message}) == slow


def test_both_servers_stay_up_where_status_says(story: Story) -> None:
    status = json.loads(story.cloud.ctl("status", "--json").stdout)
    assert {name: status[name] for name in ("laptop", "server")} == story.urls
    for url in story.urls.values():
        with urllib.request.urlopen(f"{url}/api/health", timeout=10) as response:  # noqa: S310 - http
            assert json.load(response) is True
