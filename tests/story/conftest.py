"""The whole main job, told once: a laptop's Prefect, its deployments, and the server they make."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rehearsal import follow
from rehearsal.control import Failed
from tests.conftest import Cloud, Completed
from tests.story.driver import Ended, Json
from tests.story.faults import Step

NAME = "prefect-1"
BOOTSTRAP, DRIFT = f"bootstrap-server/{NAME}", f"check-drift/{NAME}"
LATE = "test_a_run_that_a_power_cut_ended_has_crashed"
LONGEST = 1600.0
"""Seconds; more than the sum of a run's own deadlines, so that it is the run that says what hangs."""
API = r"""
set -e
login=$(sed -n 's/^auth_string = "\(.*\)"/\1/p' /var/lib/prefect/worker/prefect.toml)
ask() {
    curl -sf -u "$login" -H 'content-type: application/json' -X "$1" -d "$3" "http://127.0.0.1:4200/api/$2"
}
check=$(ask GET deployments/name/check-health/prefect-1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
ask "$1" "$(echo "$2" | sed "s/{check}/$check/")" "$3"
"""
# Until no self-check is on its way, which would be a next run, or end badly with what is spoiled.
IDLE = (
    "DO $$ BEGIN FOR i IN 1..60 LOOP EXIT WHEN NOT EXISTS (SELECT FROM flow_run"
    " WHERE state_type IN ('PENDING', 'RUNNING') OR state_type = 'SCHEDULED'"
    " AND next_scheduled_start_time < now() + interval '20 seconds');"
    " PERFORM pg_sleep(0.5); END LOOP; END $$"
)


@dataclass(frozen=True)
class Story:
    """The rehearsal, as it stands; every request here goes to loopback."""

    cloud: Cloud
    first: Json
    """What ``python -m rehearsal run --json`` reported."""

    @property
    def urls(self) -> dict[str, str]:
        """Where the laptop's Prefect and the new server answer."""
        urls: dict[str, str] = self.first["urls"]
        return urls

    def run(self, deployment: str = BOOTSTRAP, seconds: float = 300, **changes: Any) -> Ended:
        """Start a run as a person does in the UI, with some fields of the spec changed."""
        began = time.monotonic()
        with follow.api(self.urls["laptop"]) as client:
            spec = follow.found(client, deployment)["parameters"]["server"]
            run = follow.start(client, deployment, {"server": {**spec, **changes}})
            state = follow.follow(client, run, seconds, lambda _tasks: None)
            assert state["type"] in follow.OVER, f"{deployment} has not ended in {seconds:.0f} s"
            key = f"{NAME}-resources" if deployment == BOOTSTRAP else f"{NAME}-drift"
            try:
                rows = follow.table(client, key, run)
            except Failed as error:
                pytest.fail(f"{deployment} ended {follow.said(state)}: {error}", pytrace=False)
        return Ended(state["name"], state["message"] or "", time.monotonic() - began, rows)

    def root(self, script: str, *args: str, check: bool = True, timeout: float = 120) -> Completed:
        """Run a shell script on the machine, as root."""
        command = ("root", NAME, "--", "sh", "-c", script, "sh", *args)
        return self.cloud.ctl(*command, check=check, timeout=timeout)

    def api(self, verb: str, path: str, body: str) -> str:
        """Ask the new server's API, from the machine; ``{check}`` is its deployment's id."""
        return self.root(API, verb, path, body).stdout

    def rests(self) -> None:
        """Wait out the server's own check that is due or under way: it would tell of a fault, too."""
        self.sql(IDLE)

    def sql(self, statement: str) -> str:
        """Run SQL on the server's database, as the superuser; its output, unaligned."""
        done = self.cloud.ctl("database", "psql", "-qAtv", "ON_ERROR_STOP=1", "-c", statement)
        return done.stdout.strip()

    def database(self, action: str) -> None:
        """Start or stop the database."""
        self.cloud.ctl("database", action)

    def net(self, rules: str) -> None:
        """Run nft in the machine's network, which does not have it itself."""
        machines = json.loads(self.cloud.ctl("status", "--json").stdout)["instances"]
        [leader] = [str(each["leader"]) for each in machines if each["name"] == NAME]
        nsenter = ("nsenter", "--target", leader, "--net", "--", "nft", rules)
        subprocess.run(nsenter, check=True, timeout=20)

    def google(self, *args: str) -> str:
        return self.cloud.run("gcloud", *args, "--quiet").stdout

    def shell(self, script: str) -> str:
        """A shell script where gcloud speaks to the cloud."""
        return self.cloud.run("sh", "-c", script).stdout

    def do(self, steps: Iterable[Step]) -> None:
        for step in steps:
            getattr(self, step.tool)(*step.words)

    def secret(self, name: str) -> str:
        return self.google("secrets", "versions", "access", "latest", f"--secret={name}")

    def requests(self) -> list[Json]:
        """Every request that Google's APIs got, oldest first."""
        lines = self.cloud.ctl("log", "--json").stdout.splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="package")
def story(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A rehearsal that has been run once, on a cloud with nothing else in it."""
    cloud.ctl("down", timeout=120)
    cloud.ctl("up", timeout=600)
    yield Story(cloud, tell(cloud, tmp_path_factory.mktemp("run") / "run.json"))
    cloud.ctl("down", timeout=120)
    cloud.ctl("up", timeout=120)


@pytest.fixture(scope="package")
def rehearsed(story: Story) -> Json:
    """What the first run reported."""
    return story.first


def tell(cloud: Cloud, file: Path) -> Json:
    """Run the rehearsal; its report."""
    cloud.ctl("run", "--json", str(file), timeout=LONGEST)
    report: Json = json.loads(file.read_text())
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The second run follows the first. Ten servers stay until their cloud is taken down: of the
    story, they come last. Before them goes what is looked at nine minutes later, for which nobody may
    restart the server meanwhile."""
    story = [item for item in items if item.path.parent == Path(__file__).parent]
    if story:
        first = items.index(story[0])
        order = {"test_run": -1, "test_power": 1, "test_fleet": 2}
        ordered = sorted(
            story,
            key=lambda item: (item.name == LATE, order.get(item.path.stem, 0)),
        )
        items[first : first + len(story)] = ordered
