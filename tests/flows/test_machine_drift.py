"""Back to a server from everything that a person can do to its machine, on paper."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from flows.errors import BootstrapError, DidNotConverge, Final
from flows.reconcile import reconcile
from tests.flows.machine_faults import SPOILED, VARIABLES
from tests.flows.paper_debian import SSHD
from tests.flows.paper_disk import Node
from tests.flows.paper_world import MACHINE, Told, World, finished


def look(world: World) -> Told:
    """What a check finds, as ``told``, with what could not be checked."""
    told = []
    for resource in world.resources(stages=MACHINE):
        try:
            changes = reconcile(resource, apply=False).changes
        except BootstrapError:
            told.append(f"{resource.name}: could not check")
        else:
            told += [f"{resource.name}: {change.attribute}" for change in changes]
    return told


@pytest.fixture
def world() -> World:
    return World(machine=finished())


@pytest.mark.parametrize("name", SPOILED)
def test_drift_is_named_and_healed(name: str, world: World) -> None:
    spoil, named = SPOILED[name]
    spoil(world.machine.debian)
    spoiled = world.machine.copy().debian.state
    assert look(world) == named
    assert (world.machine.writes, world.machine.debian.state) == ([], spoiled)
    assert world.machine.trips == 1
    assert named[0] in world.told(apply=True)  # what only follows from it may heal with it
    assert world.told(apply=True) == []
    assert world.machine.debian.state == finished().debian.state


def test_everything_at_once_is_named_and_healed(world: World) -> None:
    for spoil, _ in SPOILED.values():
        with suppress(KeyError):  # what another has spoiled already
            spoil(world.machine.debian)
    assert len(look(world)) > len(SPOILED) / 2
    world.told(apply=True)
    assert look(world) == []
    assert world.machine.debian.state == finished().debian.state


def test_a_variable_from_a_file_of_systemds_own_is_named_and_not_fought(world: World) -> None:
    world.machine.debian.variables = world.machine.debian.kept_variables = frozenset({"PREFECT_X"})
    with pytest.raises(DidNotConverge, match=f"{VARIABLES}: PREFECT_X → none"):
        world.told(apply=True)


def test_what_another_file_says_of_sshd_is_named_and_not_fought(world: World) -> None:
    path = SSHD.replace("00-prefect", "00-a")
    world.machine.debian.files[path] = Node(content="PasswordAuthentication yes")
    assert look(world) == ["sshd: passwordauthentication"]
    with pytest.raises(Final, match=r"passwordauthentication: yes → no\. Take that back in"):
        world.run(stages=MACHINE)
    assert world.machine.writes == []


def test_every_resource_of_the_machine_is_spoiled_once(world: World) -> None:
    told = [told.rpartition(": ") for _, tolds in SPOILED.values() for told in tolds]
    named = {resource for resource, _, what in told if what != "could not check"}
    assert {r.name for r in world.resources(stages=MACHINE)} - named == {"database"}


@pytest.mark.parametrize(
    ("facts", "named", "says"),
    [
        ({"server_version_num": 130011}, ["database: PostgreSQL"], "PostgreSQL 14 or newer"),
        ({"in_recovery": True}, ["database: writes"], "primary's address"),
        (
            {"pg_trgm_installed": False, "create_in_database": False},
            ["database: pg_trgm", "schema: pg_trgm"],
            "GRANT",
        ),
        ({"revision": "ahead"}, ["schema: revision"], "never migrate down"),
        ({"refused_tables": ["flow"]}, ["database: rows"], "GRANT SELECT"),
        (
            {"readable": False, "create_in_schema": False},
            ["database: new tables", "schema: could not check"],
            "GRANT USAGE",
        ),
    ],
)
def test_what_only_an_administrator_can_repair_is_said_and_not_touched(
    world: World, facts: dict[str, Any], named: Told, says: str
) -> None:
    world.machine.debian.database.update(facts)
    assert look(world) == named
    with pytest.raises(Final, match=says):
        world.run(stages=MACHINE)
    assert world.machine.writes == []
