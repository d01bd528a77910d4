"""Ten servers side by side: one network for nine of them, and for each its own machine, database,
secrets and faults.

They stay until the story's cloud is taken down, so this is the last part of the story.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from rehearsal import follow, laptop
from rehearsal.config import DATABASE
from tests.story.conftest import DRIFT, NAME, Story
from tests.story.driver import Driver, Ended, Json, driver
from tests.story.faults import TOML

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(600)]

OTHERS = [f"prefect-{number}" for number in range(2, 11)]
AT_ONCE = 3
"""Bootstraps at a time: each fills most of a processor, and has deadlines of its own."""
BOOTSTRAP_SECONDS, CHECK_SECONDS = 900.0, 200.0
SAVE = """
import json, os
from google.cloud.secretmanager import SecretManagerServiceClient
from blocks.__main__ import main
client, project = SecretManagerServiceClient(transport="rest"), "projects/rehearsal"
for server in json.loads(os.environ["FLEET"]):
    for name, value in server.items():
        policy = {"replication": {"automatic": {}}}
        client.create_secret(parent=project, secret_id=name, secret=policy)
        version = {"data": value.encode()}
        client.add_secret_version(parent=f"{project}/secrets/{name}", payload=version)
    auth, url = server
    assert main(["--auth-secret", auth, "--database-url-secret", url]) == 0
"""
SPOILT = {
    "prefect-3": ("firewall rule prefect-3-clients", "sourceRanges"),
    "prefect-6": (f"file {TOML}", "mode"),
    "prefect-9": ("schema", "missing indexes"),
}


@dataclass(frozen=True)
class Fleet:
    """The laptop's flows, and the servers' specs by name."""

    driver: Driver
    specs: dict[str, Json]

    def bootstrap(self, names: Iterable[str]) -> dict[str, Ended]:
        return self._each("bootstrap-server", list(names), BOOTSTRAP_SECONDS, AT_ONCE)

    def check(self, names: Iterable[str]) -> dict[str, Ended]:
        """All side by side."""
        return self._each("check-drift", list(names), CHECK_SECONDS)

    def _each(
        self, flow: str, names: list[str], seconds: float, side_by_side: int | None = None
    ) -> dict[str, Ended]:
        parameters = [{"server": self.specs[name]} for name in names]
        ended = self.driver.each(flow, parameters, seconds, side_by_side)
        return dict(zip(names, ended, strict=True))


def spec_of(name: str, first: Json) -> Json:
    """Nine networks would be more than a project's quota, and ten self-checks every five minutes
    more than this machine's."""
    return {
        **first,
        "name": name,
        "auth_secret": {"block": f"{name}-auth"},
        "database_url_secret": {"block": f"{name}-database-url"},
        "network": {"name": "fleet", "cidr": f"10.10.{name.rpartition('-')[2]}.0/24"},
        "self_check": {"interval_seconds": 86400},
    }


def prepare(story: Story, names: Iterable[str]) -> None:
    """What a person makes for each server first: role, database, secrets, and their blocks."""
    fleet: list[dict[str, str]] = []
    for name in names:
        password = secrets.token_hex(16)
        sql(
            story,
            f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'",
            f'CREATE DATABASE "{name}" OWNER "{name}"',
        )
        url = f"postgresql+asyncpg://{name}:{password}@{DATABASE}:5432/{name}?ssl=require"
        auth = f"admin:{secrets.token_hex(16)}"
        fleet.append({f"{name}-auth": auth, f"{name}-database-url": url})
    environment = {**laptop.settings(), "PREFECT_API_URL": f"{story.urls['laptop']}/api"}
    environment["FLEET"] = json.dumps(fleet)
    story.cloud.run("python", "-c", SAVE, env=environment, timeout=180)


def sql(story: Story, *commands: str) -> None:
    """psql's commands, one after the other, as the superuser."""
    each = [word for command in commands for word in ("-c", command)]
    story.cloud.ctl("database", "psql", "-qv", "ON_ERROR_STOP=1", *each)


@pytest.fixture(scope="module")
def fleet(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Ten servers as in their specs, bootstrapped by the flow."""
    story.google("compute", "networks", "create", "fleet", "--subnet-mode=custom")
    prepare(story, OTHERS)
    with follow.api(story.urls["laptop"]) as client:
        first = follow.found(client, DRIFT)["parameters"]["server"]
    specs = {NAME: first, **{name: spec_of(name, first) for name in OTHERS}}
    with driver(story.urls["laptop"], tmp_path_factory.mktemp("driver") / "log") as process:
        fleet = Fleet(process, specs)
        ended = fleet.bootstrap(OTHERS)
        ended |= fleet.bootstrap([NAME])
        right = ("Changed", "Unchanged")
        assert [each.message for each in ended.values() if each.state not in right] == []
        yield fleet


def test_each_server_has_its_own_database(fleet: Fleet, story: Story) -> None:
    who = "SELECT DISTINCT datname || ' ' || application_name FROM pg_stat_activity"
    assert {*story.sql(who).splitlines()} >= {f"{name} {name}" for name in OTHERS}


def test_ten_checks_side_by_side_tell_each_servers_own_fault_and_no_others(
    fleet: Fleet, story: Story
) -> None:
    rule = ("compute", "firewall-rules", "update", "prefect-3-clients")
    story.google(*rule, "--source-ranges=0.0.0.0/0")
    story.cloud.ctl("root", "prefect-6", "--", "chmod", "644", TOML)
    sql(story, r"\connect prefect-9", "DROP INDEX trgm_ix_flow_name")
    ended = fleet.check(fleet.specs)
    assert len(ended) == 10
    assert {name: each.found for name, each in ended.items() if each.rows} == {
        name: {fault} for name, fault in SPOILT.items()
    }
    assert {name: each.state for name, each in ended.items()} == {
        name: "Drifted" if name in SPOILT else "Unchanged" for name in fleet.specs
    }
    healed = fleet.bootstrap(SPOILT)
    assert {name: each.state for name, each in healed.items()} == dict.fromkeys(SPOILT, "Changed")
    assert {each.state for each in fleet.check(SPOILT).values()} == {"Unchanged"}
