"""Ten servers side by side: one network for nine of them, and for each its own machine, database,
secrets and faults.

They stay until the story's cloud is taken down, so this is the last part of the story.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from rehearsal import follow
from tests.fleet import prepare, spec_of, sql
from tests.story.conftest import DRIFT, NAME, Story
from tests.story.driver import Driver, Ended, Json, driver
from tests.story.faults import TOML

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(600)]

OTHERS = [f"prefect-{number}" for number in range(2, 11)]
AT_ONCE = 3
"""Bootstraps at a time: each fills most of a processor, and has deadlines of its own."""
BOOTSTRAP_SECONDS, CHECK_SECONDS = 900.0, 200.0
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


@pytest.fixture(scope="module")
def fleet(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Ten servers as in their specs, bootstrapped by the flow."""
    story.google("compute", "networks", "create", "fleet", "--subnet-mode=custom")
    prepare(story.cloud, story.urls["laptop"], OTHERS)
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
    sql(story.cloud, r"\connect prefect-9", "DROP INDEX trgm_ix_flow_name")
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
