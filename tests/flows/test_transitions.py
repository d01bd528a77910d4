"""A whole server on paper: from nothing to it, to it from every step at which a run was killed, and from
one spec to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blocks.secrets import Secrets
from flows.catalog import SERVER, WORKER, Server
from flows.reconcile import reconcile
from flows.resources.systemd import UNITS
from tests.flows.paper_debian import JOURNALD, SSHD
from tests.flows.paper_machine import Died, PaperMachine
from tests.flows.paper_world import (
    AUTH,
    CLOUD,
    MACHINE,
    ROOT,
    SECRETS,
    SERVER_TOML,
    SERVER_UNIT,
    URL,
    WORKER_TOML,
    WORKER_UNIT,
    Told,
    World,
    changed,
    empty,
    finished,
)
from tests.flows.test_compute_resources import VM, spec
from tests.flows.test_compute_resources import Died as DiedAsking


@pytest.fixture
def nothing() -> Iterator[World]:
    with empty() as world:
        yield world


@pytest.fixture
def world() -> World:
    return World(machine=finished())


# From nothing to a server

ONLY_LOOKED_AT = [
    "exposure of prefect-1",
    "disk prefect-1",  # made with its machine
    "root file system",
    "sshd",
    f"no file {SERVER}/.env",
    f"no file {WORKER}/.env",
    "database",
]


def test_everything_is_made_once_and_a_rerun_writes_nothing(nothing: World) -> None:
    first = nothing.run()
    assert [o.resource for o in first if o.word != "changed"] == ONLY_LOOKED_AT
    assert len(nothing.machine.writes) == WRITES
    again = World(nothing.lab, nothing.machine.copy())
    again.cloud.http.asked.clear()
    assert [o.resource for o in again.run()] == [o.resource for o in first]
    assert changed(again.run(apply=False)) == changed(again.run()) == []
    assert [*again.cloud.http.writes, *again.machine.writes] == []


def test_the_whole_machine_is_read_in_one_round_trip(world: World) -> None:
    assert world.told(apply=False) == []
    assert world.machine.trips == 1
    probes, kinds = world.machine.probes, world.resources(stages=MACHINE)
    assert len(probes) == len(set(probes)) == len(kinds) - 1  # database and schema are one look


# Killed at any step

WRITES = 49
"""Commands that make a machine: the first test counts them."""


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("lives", range(WRITES))
def test_a_machine_killed_at_any_write_is_finished_by_a_rerun(lives: int, answered: bool) -> None:
    world = World(machine=PaperMachine(lives=lives, answered=answered))
    with pytest.raises(Died):
        world.run(stages=MACHINE)
    world.machine.lives = None
    world.run(stages=MACHINE)
    assert world.told(apply=True) == []
    assert world.machine.debian.state == finished().debian.state


@pytest.mark.parametrize("answered", [False, True])
def test_the_machine_follows_a_cloud_that_was_killed_at_its_last_write(
    answered: bool, nothing: World
) -> None:
    """At every other write of the cloud: test_compute_resources."""
    http = nothing.cloud.http
    http.lives, http.answered = len(nothing.resources(stages=CLOUD)) - 3, answered
    with pytest.raises(DiedAsking):
        nothing.run()
    assert nothing.machine.writes == []
    http.lives = None
    nothing.run()
    assert changed(nothing.run()) == []
    assert nothing.machine.debian.state == finished().debian.state


@pytest.mark.parametrize("answered", [False, True])
def test_a_change_killed_at_any_write_still_restarts_what_it_concerns(answered: bool) -> None:
    """Between a new prefect.toml, a new installation, and the restart that each of them owes."""
    wanted = spec(server={"port": 4300, "events_days": 3})

    def owing() -> World:
        machine = finished()
        machine.debian.remove(f"{ROOT}/tools/prefect/lib/fastapi")
        return World(machine=machine)

    undisturbed = owing()
    undisturbed.run(wanted, stages=MACHINE)
    for lives in range(len(undisturbed.machine.writes)):
        world = owing()
        world.machine.lives, world.machine.answered = lives, answered
        with pytest.raises(Died):
            world.run(wanted, stages=MACHINE)
        world.machine.lives = None
        world.run(wanted, stages=MACHINE)
        assert changed(world.run(wanted, stages=MACHINE)) == []
        debian = world.machine.debian
        assert debian.state == undisturbed.machine.debian.state
        assert debian.units[SERVER_UNIT].running[f"{ROOT}/proven"] != "1", (
            "the smoke test's of before"
        )


@pytest.mark.parametrize(("path", "lives"), [(JOURNALD, 1), (SSHD, 2)])
def test_what_follows_a_new_file_and_got_lost_is_made_up_for(
    path: str, lives: int, world: World
) -> None:
    debian = world.machine.debian
    debian.files[path].content = debian.journald = debian.sshd = ""
    world.machine.lives, world.machine.answered = lives, False
    with pytest.raises(Died):
        world.run(stages=MACHINE)
    assert debian.journald == debian.sshd == ""
    world.machine.lives = None
    world.run(stages=MACHINE)
    assert {JOURNALD: debian.journald, SSHD: debian.sshd}[path]


# Another spec

RULE, SERVICE = "firewall rule prefect-1-clients", "service prefect-server"
BOTH = [SERVICE, "service prefect-worker"]
TOMLS = [f"file {SERVER_TOML}", f"file {WORKER_TOML}"]
CHANGES: list[tuple[str, str, Any, Told]] = [
    ("server", "port", 4300, [RULE, *TOMLS, f"file {UNITS}/{WORKER_UNIT}", *BOTH]),
    ("server", "events_days", 3, [TOMLS[0], SERVICE]),
    ("server", "flow_runs_days", 9, [TOMLS[0], SERVICE]),
    ("server", "ui_api_url", "https://prefect.example.org/api", [TOMLS[0], SERVICE]),
    ("network", "clients", ["10.20.0.0/16"], [RULE]),
    ("machine", "labels", {"team": "ops"}, ["instance prefect-1", "disk prefect-1"]),
    ("machine", "disk_gb", 40, ["disk prefect-1"]),
    ("machine", "type", "e2-standard-4", ["instance prefect-1"]),
    ("self_check", "interval_seconds", 600, []),  # the deployment's, in the new server
]


def test_another_spec_changes_just_what_it_concerns(nothing: World) -> None:
    nothing.run()
    made = nothing.cloud.get(VM)["id"]
    members: dict[str, dict[str, Any]] = {"machine": {"labels": {"team": "data"}}}
    for group, name, value, concerned in CHANGES:
        members.setdefault(group, {})[name] = value
        assert changed(nothing.run(spec(**members))) == concerned, name
        assert changed(nothing.run(spec(**members))) == [], name
    assert nothing.cloud.get(VM)["id"] == made
    assert "delete" not in nothing.cloud.caller.cloud.past(nothing.cloud.get(VM))


def test_a_new_auth_string_reaches_both_services(world: World) -> None:
    world.secrets = Secrets("admin:another-s3cret", URL)
    assert changed(world.run(stages=MACHINE)) == [*TOMLS, *BOTH]
    assert changed(world.run(stages=MACHINE)) == []


# Secrets


def test_secrets_travel_on_stdin_only(nothing: World) -> None:
    world = nothing
    said: list[object] = [Server(spec(), SECRETS)]
    for _ in range(2):
        for resource in world.resources():
            said += [resource.name, resource.desired(), getattr(resource, "kind", None)]
            outcome = reconcile(resource, apply=True)
            said += [outcome, *map(str, outcome.changes), resource.read()]
        world.machine.debian.files[SERVER_TOML].content = f"{AUTH} {URL}"
    commands = [*world.machine.probes, *world.machine.writes]
    said += [(repr(command), command.argv) for command in commands]
    for secret in (AUTH, URL, "s3cret-enough", "pa%24%24word", "pa$$word"):
        assert secret not in str(said)
    assert any(AUTH in command.stdin and URL in command.stdin for command in commands)
