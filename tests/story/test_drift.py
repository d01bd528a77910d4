"""Drift on a real machine: whatever is spoiled is named, nothing else is, and a bootstrap heals it.

The rows are in ``tests/story/faults.py``. The flows run in one process of the laptop's; the last
test of all goes the whole way, from the schedule to the heal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.catalog import STAGES
from rehearsal import follow, laptop
from tests.conftest import ROOT
from tests.story.conftest import BOOTSTRAP, DRIFT, NAME, Story
from tests.story.driver import Driver, Ended, Json, driver
from tests.story.faults import CLIENTS, CLOUD, FAULTS, ON_IT, SSH, TOML, Fault, Step

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(300)]

SECONDS = 200.0
LABELS = {"tier": "drift"}
READS = {"get", "list", "getGuestAttributes"}
OPEN = (
    *("compute", "firewall-rules", "update", "prefect-1-clients"),
    "--source-ranges=0.0.0.0/0",
)


@dataclass
class Laptop:
    """The laptop's flows, and the ways to spoil a server."""

    story: Story
    driver: Driver
    spec: Json
    clean: bool = True
    """What the last check said."""

    def check(self, **parameters: Any) -> Ended:
        ended = self.driver.run("check-drift", {"server": self.spec, **parameters}, SECONDS)
        self.clean = ended.state == "Unchanged"
        return ended

    def bootstrap(self, **parameters: Any) -> Ended:
        return self.driver.run("bootstrap-server", {"server": self.spec, **parameters}, SECONDS)

    def do(self, steps: Iterable[Step]) -> None:
        self.clean = False
        self.story.do(steps)

    @contextmanager
    def requests(self) -> Iterator[list[Json]]:
        """Those that Google's computing and account APIs get meanwhile."""
        before, found = len(self.story.requests()), list[Json]()
        yield found
        late = self.story.requests()[before:]
        found += [each for each in late if (each["method"] or "").startswith(("compute.", "iam."))]


@pytest.fixture(scope="module")
def running(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """A server with a label of its own in the spec, so that somebody can change one."""
    with follow.api(story.urls["laptop"]) as client:
        spec = follow.found(client, DRIFT)["parameters"]["server"]
    log = tmp_path_factory.mktemp("driver") / "log"
    with driver(story.urls["laptop"], log) as process:
        laptop = Laptop(story, process, {**spec, "machine": {"labels": LABELS}})
        ended = laptop.bootstrap()
        assert ended.state in ("Changed", "Unchanged"), ended.message
        yield laptop


@pytest.fixture
def clean(running: Laptop) -> Iterator[Laptop]:
    """A server that is as in the spec, also for the next test, and at rest."""
    running.story.rests()
    yield running
    if not running.clean:
        running.bootstrap()


def stages(ended: Ended) -> set[str]:
    """The stages of what could not be checked."""
    return {row["stage"] for row in ended.rows if row["resource"] in ended.unchecked}


def drifted(ended: Ended, *faults: Fault) -> None:
    """Just the attributes of the faults are named, and verdict and reasons fit them."""
    assert ended.found == {pair for fault in faults for pair in fault.found}, ended.rows
    unchecked = {stage for fault in faults for stage in fault.unchecked}
    assert stages(ended) == unchecked, ended.unchecked
    assert all(ended.unchecked.values())
    assert ended.state == ("Unknown" if unchecked else "Drifted"), ended.message


# The matrix


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_and_nothing_else_and_a_bootstrap_heals_it(
    clean: Laptop, fault: Fault
) -> None:
    clean.do(fault.spoil)
    try:
        drifted(clean.check(), fault)
        ended = clean.bootstrap()
        assert [words for words in fault.told if words not in ended.message] == [], ended.message
        assert (ended.state == "Changed") == (not fault.told), ended.message
    finally:
        clean.do(fault.by_hand)
    after = clean.check()
    assert after.state == "Unchanged", after.message


def test_the_matrix_reaches_every_stage_and_has_40_rows_and_more() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
    assert {stage for fault in FAULTS for stage in fault.unchecked} <= set(STAGES)


def together(faults: Sequence[Fault]) -> list[Fault]:
    """Those that can be spoiled at once and healed by one run: no two are about one resource."""
    chosen: list[Fault] = []
    taken: set[str] = set()
    for fault in faults:
        resources = {resource for resource, _ in fault.found}
        if not (taken & resources or fault.told or fault.unchecked):
            chosen.append(fault)
            taken |= resources
    return chosen


@pytest.mark.parametrize("names", [("a deleted firewall rule", "an edited prefect.toml"), ()])
def test_faults_at_once_are_all_named_and_healed_by_one_run(
    clean: Laptop, names: tuple[str, ...]
) -> None:
    """Two of them, and of every resource one."""
    faults = [fault for fault in FAULTS if fault.name in names] or together(FAULTS)
    for fault in sorted(faults, key=CLOUD.__contains__):  # without NAT nothing can be installed
        clean.do(fault.spoil)
    drifted(clean.check(), *faults)
    assert clean.bootstrap().state == "Changed"
    assert clean.check().state == "Unchanged"


# What could not be checked


def test_a_machine_out_of_reach_is_told_with_its_reason_and_the_cloud_is_still_checked(
    clean: Laptop,
) -> None:
    clean.story.google("compute", "firewall-rules", "delete", "prefect-1-ssh-iap")
    clean.story.google(*OPEN)
    ended = clean.check()
    assert ended.state == "Unknown"
    assert ended.found == {(SSH, ""), (CLIENTS, "sourceRanges")}
    assert stages(ended) == set(ON_IT)
    assert all("on its SSH port" in reason for reason in ended.unchecked.values())
    assert clean.bootstrap().state == "Changed"
    assert clean.check().state == "Unchanged"


REFUSED = {
    "router prefect-1-router": ("compute.routers.get", "403"),
    "network prefect-1-net": ("compute.networks.get", "429"),
    "subnet prefect-1-subnet": ("compute.subnetworks.get", "503"),
}


def test_what_an_api_refuses_could_not_be_checked_and_the_rest_is(clean: Laptop) -> None:
    """At once, for each of those that may pass takes the minute in which it is tried again."""
    fault = clean.story.cloud.ctl
    for method, status in REFUSED.values():
        fault("fault", method, "--status", status, "--count", "1000")
    clean.story.root(f"chmod 644 {TOML}")
    try:
        ended = clean.check()
    finally:
        fault("fault", "--clear")
    assert ended.state == "Unknown"
    assert ended.found == {(f"file {TOML}", "mode")}
    assert ended.unchecked.keys() == REFUSED.keys()
    for resource, (_, status) in REFUSED.items():
        assert status in ended.unchecked[resource]


@pytest.mark.parametrize("status", ["429", "503"])
def test_what_an_api_refuses_once_is_asked_again(clean: Laptop, status: str) -> None:
    for method, _ in REFUSED.values():
        clean.story.cloud.ctl("fault", method, "--status", status)
    ended = clean.check()
    assert (ended.state, ended.rows) == ("Unchanged", [])


def test_a_database_that_is_down_is_told_and_the_rest_is_still_checked(clean: Laptop) -> None:
    clean.story.root(f"chmod 644 {TOML}")
    clean.story.cloud.ctl("database", "stop")
    try:
        ended = clean.check()
    finally:
        clean.story.cloud.ctl("database", "start")
    assert ended.state == "Unknown"
    assert ended.found == {(f"file {TOML}", "mode")}
    assert {"database", "schema"} <= ended.unchecked.keys()
    assert "ConnectionRefusedError" in ended.unchecked["database"]
    assert stages(ended) <= {"database", "prefect"}


# What a check costs, and that it writes nothing


def test_a_check_only_reads_each_thing_once_in_one_round_trip_to_the_machine(
    clean: Laptop, tmp_path: Path
) -> None:
    """With a role that only reads. Each round trip is one sudo, in the machine's own journal."""
    role = yaml.safe_load((ROOT / "role.yaml").read_text())["includedPermissions"]
    reads = [name for name in role if name.rpartition(".")[2] in READS]
    elsewhere = ["secretmanager.versions.access", "iap.tunnelInstances.accessViaIAP"]
    file = tmp_path / "role.yaml"
    file.write_text(yaml.safe_dump({"includedPermissions": reads + elsewhere}))
    cursor = clean.story.root("journalctl --quiet --lines=0 --show-cursor").stdout.split()[-1]
    clean.story.cloud.ctl("role", str(file))
    try:
        with clean.requests() as requests:
            ended = clean.check()
    finally:
        clean.story.cloud.ctl("role", "--everything")
    assert (ended.state, ended.rows) == ("Unchanged", [])
    assert {each["method"].rpartition(".")[2] for each in requests} <= READS
    asked = [each["request"] for each in requests]
    assert len(asked) == len(set(asked)) > 8
    sudo = 'journalctl --quiet --after-cursor="$1" _COMM=sudo --output=cat'
    journal = clean.story.root(sudo, cursor).stdout
    assert journal.count("session opened") == 1, journal


# The report elsewhere: the plan, and the command for CI


def test_a_dry_run_says_what_a_check_says_and_changes_nothing(clean: Laptop) -> None:
    clean.story.google(*OPEN)
    clean.story.root(f"chmod 644 {TOML}")
    checked = clean.check()
    with clean.requests() as requests:
        planned = clean.bootstrap(dry_run=True)
    assert planned.state == checked.state == "Drifted"
    assert [row | {"action": ""} for row in planned.rows] == [
        row | {"action": ""} for row in checked.rows
    ]
    assert {each["method"].rpartition(".")[2] for each in requests} <= READS
    assert clean.check().found == checked.found


def test_the_plan_is_there_before_anything_is_applied(clean: Laptop) -> None:
    clean.story.google(*OPEN)
    with clean.requests() as requests:
        assert clean.bootstrap().state == "Changed"
    written = [each for each in requests if each["method"].rpartition(".")[2] not in READS]
    which = {"artifacts": {"key": {"any_": [f"{NAME}-plan"]}}, "sort": "CREATED_DESC", "limit": 1}
    with follow.api(clean.story.urls["laptop"]) as client:
        [plan] = follow.ask(client, "POST", "/artifacts/filter", which)
    rows = json.loads(plan["data"])
    assert [(row["resource"], row["attribute"]) for row in rows] == [(CLIENTS, "sourceRanges")]
    assert datetime.fromisoformat(plan["created"]).timestamp() < min(w["time"] for w in written)


def test_the_command_for_ci_exits_with_0_2_and_1(clean: Laptop, tmp_path: Path) -> None:
    file = tmp_path / "drift.json"

    def exits(code: int, state: str) -> list[Json]:
        url = f"{clean.story.urls['laptop']}/api"
        command = ("python", "-m", "flows.drift", "--server", NAME, "--json", str(file))
        environment = {**laptop.settings(), "PREFECT_API_URL": url}
        done = clean.story.cloud.run(*command, check=False, timeout=120, env=environment)
        assert done.returncode == code, done.stderr
        assert done.stdout.startswith(f"{NAME}: {state}: ")
        said: Json = json.loads(file.read_text())
        assert (said["server"], said["state"]) == (NAME, state)
        assert said["message"] in done.stdout
        rows: list[Json] = said["rows"]
        return rows

    clean.clean = False
    clean.story.run()  # the command has the spec of prefect.yaml, without a label of its own
    assert exits(0, "Unchanged") == []
    clean.story.rests()
    clean.story.root(f"chmod 644 {TOML}")
    [row] = exits(2, "Drifted")
    assert (row["attribute"], row["desired"], row["actual"]) == ("mode", "600", "644")
    clean.story.cloud.ctl("fault", "compute.routers.get", "--status", "403")
    refused, row = exits(1, "Unknown")
    assert (refused["class"], row["class"]) == ("could not check", "drift")


def test_a_rerun_is_a_command_too_and_with_nothing_to_do_it_only_reads(clean: Laptop) -> None:
    command = ("python", "-m", "flows.bootstrap", "--server", NAME)
    environment = {
        **laptop.settings(),
        "PREFECT_API_URL": f"{clean.story.urls['laptop']}/api",
    }

    def said(*options: str) -> str:
        done = clean.story.cloud.run(*command, *options, timeout=120, env=environment)
        return done.stdout

    clean.clean = False
    clean.story.run()  # the command has the spec of prefect.yaml, without a label of its own
    with clean.requests() as requests:
        assert said().startswith(f"{NAME}: Unchanged: 0 of ")
    methods = [each["method"] for each in requests]
    assert {method.rpartition(".")[2] for method in methods} <= READS
    clean.story.rests()
    clean.story.root(f"chmod 644 {TOML}")
    assert (
        clean.story.cloud.run(*command, "--dry-run", check=False, env=environment).returncode == 2
    )
    assert said().startswith(f"{NAME}: Changed: 1 of ")


# From the schedule to the heal, by the laptop's worker


@dataclass(frozen=True)
class Api:
    """The laptop's API."""

    client: Any

    def update(self, deployment: str, **fields: Any) -> None:
        path = f"/deployments/{follow.found(self.client, deployment)['id']}"
        deadline = time.monotonic() + SECONDS
        while (answer := self.client.patch(path, json=fields)).status_code == 503:  # SQLite is busy
            assert time.monotonic() < deadline
            time.sleep(1)
        answer.raise_for_status()

    def heal(self, level: str) -> None:
        for each in (BOOTSTRAP, DRIFT):
            found = follow.found(self.client, each)["parameters"]
            self.update(each, parameters={**found, "server": {**found["server"], "heal": level}})

    def runs(self, deployment: str, since: datetime) -> list[Json]:
        """The runs that have been made since, oldest first."""
        which = {
            "deployments": {"id": {"any_": [follow.found(self.client, deployment)["id"]]}},
            "flow_runs": {"expected_start_time": {"after_": since.isoformat()}},
        }
        found: list[Json] = follow.ask(self.client, "POST", "/flow_runs/filter", which)
        return sorted(found, key=lambda run: str(run["expected_start_time"]))

    def ended(self, deployment: str, since: datetime, that: Callable[[Json], bool]) -> Json:
        """The first run since then that is as ``that`` says, and over."""
        deadline = time.monotonic() + SECONDS
        while True:
            runs = [run for run in self.runs(deployment, since) if that(run)]
            if over := [run for run in runs if run["state"]["type"] in follow.OVER]:
                return over[0]
            assert time.monotonic() < deadline, runs
            time.sleep(1)


@pytest.fixture
def api(running: Laptop) -> Iterator[Api]:
    """With the deployments as they were, at the end."""
    with follow.api(running.story.urls["laptop"]) as client:
        before = {each: follow.found(client, each) for each in (BOOTSTRAP, DRIFT)}
        yield Api(client)
        for each, found in before.items():
            schedules = [
                {key: schedule[key] for key in ("schedule", "active", "parameters", "slug")}
                for schedule in found["schedules"]
            ]
            Api(client).update(each, parameters=found["parameters"], schedules=schedules)


def automatic(run: Json) -> bool:
    return bool((run["created_by"] or {}).get("type") == "AUTOMATION")


def ranges(story: Story) -> str:
    rule = ("compute", "firewall-rules", "describe", "prefect-1-clients")
    return story.google(*rule, "--format=value(sourceRanges.list())").strip()


@pytest.mark.timeout(600)
def test_scheduled_drift_is_healed_by_the_automation_until_it_is_a_fight(
    clean: Laptop, api: Api
) -> None:
    story, right = clean.story, ranges(clean.story)
    clean.clean = False
    api.heal("safe")
    began = datetime.now(UTC)
    story.google(*OPEN)
    soon = {"interval": 3600, "anchor_date": (began + timedelta(seconds=8)).isoformat()}
    fails = {
        "schedule": soon,
        "active": True,
        "parameters": {"fail_on_drift": True},
        "slug": "hourly",
    }
    api.update(DRIFT, schedules=[fails])
    checked = api.ended(DRIFT, began, lambda run: bool(run["auto_scheduled"]))
    assert (checked["state"]["name"], checked["state"]["type"]) == ("Drifted", "FAILED")
    for heals in (1, 2, 3):
        healed = api.ended(BOOTSTRAP, began, automatic)
        if heals == 3:
            break
        assert healed["state"]["name"] == "Changed", healed["state"]["message"]
        assert healed["parameters"]["healing"]
        assert ranges(story) == right
        began = datetime.now(UTC)
        story.google(*OPEN)  # before a check could see that it was healed
        assert story.run(DRIFT).state == "Drifted"
    assert healed["state"]["name"] == "Failed"
    assert f"{CLIENTS}: sourceRanges: healed twice and back again" in healed["state"]["message"]
    assert ranges(story) == "0.0.0.0/0"
    api.heal("off")
    began = datetime.now(UTC)
    assert story.run(DRIFT).state == "Drifted"
    time.sleep(10)
    assert [run for run in api.runs(BOOTSTRAP, began) if automatic(run)] == []
    assert story.run().state == "Changed"
    assert ranges(story) == right
    assert story.run(DRIFT).state == "Unchanged"
