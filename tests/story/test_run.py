"""``python -m rehearsal run``: the main job from nothing, and again with nothing to do."""

from __future__ import annotations

import json
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
        # Degraded: the machine's load is the host's, where other tests run.
        assert report["self_check"]["state"] in {"Completed", "Degraded"}
        assert report["drift"] == {"state": "Unchanged"}
        assert 0 < report["bootstrap"]["seconds"] < report["seconds"]


def test_both_servers_stay_up_where_status_says(story: Story) -> None:
    status = json.loads(story.cloud.ctl("status", "--json").stdout)
    assert {name: status[name] for name in ("laptop", "server")} == story.urls
    for url in story.urls.values():
        with urllib.request.urlopen(f"{url}/api/health", timeout=10) as response:  # noqa: S310 - http
            assert json.load(response) is True
