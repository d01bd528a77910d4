"""What Prefect makes of our prefect.toml: what is kept, for how long, and when a run is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows import catalog
from flows.catalog import SERVER, WORKER, Server
from flows.resources.automation import Automation
from flows.resources.files import File
from tests.flows.paper_world import SECRETS
from tests.flows.test_compute_resources import spec


def effective(directory: str, tmp_path: Path, *paths: str) -> list[Any]:
    """What Prefect makes of a prefect.toml of ours."""
    [text] = [
        each.content
        for each in Server(spec(), SECRETS).machine()
        if isinstance(each, File) and each.path == f"{directory}/prefect.toml"
    ]
    (tmp_path / "prefect.toml").write_text(text)
    show = "from prefect.settings import get_current_settings as now; import json; s = now().model_dump(mode='json'); print(json.dumps(s))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", show],
        cwd=tmp_path, env=env | {"PREFECT_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    values = []
    for path in paths:
        value = json.loads(done.stdout)
        for key in path.split("."):
            value = value[key]
        values.append(value)
    return values


def test_what_is_kept_and_for_how_long_is_in_effect(tmp_path: Path) -> None:
    vacuum = "server.services.db_vacuum"
    enabled, runs, overrides, events = effective(
        SERVER, tmp_path, f"{vacuum}.enabled", f"{vacuum}.retention_period",
        f"{vacuum}.event_retention_overrides", "server.events.retention_period",
    )  # fmt: skip
    assert (sorted(enabled), runs, events) == (["events", "flow_runs"], "P30D", "P7D")
    assert overrides == {"prefect.flow-run.heartbeat": "P1D"}


def test_a_run_is_taken_for_dead_after_three_heartbeats_of_the_worker_or_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> SyncPrefectClient:
        raise AssertionError

    assert catalog.HEARTBEAT_SECONDS == 180  # as on the clients' workers, by Prefect's default
    monkeypatch.setattr(catalog, "HEARTBEAT_SECONDS", 60)
    assert effective(WORKER, tmp_path, "flows.heartbeat_frequency") == [60]
    automations = [
        each for each in Server(spec(), SECRETS).prefect(never) if isinstance(each, Automation)
    ]
    assert [each.trigger.within.total_seconds() for each in automations] == [180, 60]
