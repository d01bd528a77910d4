"""Back to a server from everything that a person can do to its machine, on paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

from flows.catalog import HOME, OPT, SERVER, USER, WORKER
from flows.errors import Final
from flows.resources.systemd import UNITS
from tests.flows.paper_debian import JOURNALD, Debian, Node
from tests.flows.paper_world import (
    MACHINE,
    ROOT,
    SERVER_TOML,
    SERVER_UNIT,
    WORKER_TOML,
    WORKER_UNIT,
    Told,
    World,
    finished,
)

JOURNALD_FOLDER = str(PurePosixPath(JOURNALD).parent)
SERVER_FILE, SERVICE = f"file {SERVER_TOML}", "service prefect-server"
UNIT_FILE = f"file {UNITS}/{WORKER_UNIT}"


def node(path: str, **members: str) -> Callable[[Debian], object]:
    return lambda on: vars(on.files[path]).update(members)


def gone(path: str) -> Callable[[Debian], object]:
    return lambda on: on.remove(path)


def overridden(on: Debian) -> None:
    on.files[f"{UNITS}/{SERVER_UNIT}.d/override.conf"] = Node(content="[Service]\nNice=1\n")


def overridden_and_read(on: Debian) -> None:
    overridden(on)
    on.reload()


def stopped(on: Debian) -> None:
    on.units[SERVER_UNIT].running = {}


def masked(on: Debian) -> None:
    on.files[f"{UNITS}/{WORKER_UNIT}"] = Node("symbolic link", mode="777")
    on.reload()


SPOILED: dict[str, tuple[Callable[[Debian], object], Told]] = {
    "a package removed": (
        lambda on: on.packages.discard("python3-venv"),
        ["packages ca-certificates python3-venv: python3-venv"],
    ),
    "a login shell": (
        lambda on: on.users[USER].update({"shell": "/bin/bash"}),
        [f"user {USER}: shell"],
    ),
    "opt open": (node(OPT, mode="777"), [f"directory {OPT}: mode"]),
    "home open": (node(HOME, mode="755"), [f"directory {HOME}: mode"]),
    "server's folder open": (node(SERVER, mode="750"), [f"directory {SERVER}: mode"]),
    "worker's folder root's": (node(WORKER, owner="root:root"), [f"directory {WORKER}: owner"]),
    "another uv": (node(f"{OPT}/uv-0.13.9/bin/uv", content="0.13.8"), ["uv 0.13.9: version"]),
    "no uv": (gone(f"{OPT}/uv-0.13.9"), ["uv 0.13.9: version"]),
    "worker: another version": (
        node(f"{ROOT}/worker/lib/sqlalchemy", content="2.1.9"),
        ["worker's environment: other than locked"],
    ),
    "worker: no environment": (
        gone(f"{ROOT}/worker"),
        ["worker's environment: other than locked", "package prefect-bootstrap: digest"],
    ),
    "tool: a distribution removed": (
        gone(f"{ROOT}/tools/prefect/lib/fastapi"),
        ["prefect 3.8.8: other than locked"],
    ),
    "tool: not proven": (
        gone(f"{ROOT}/proven"),
        ["prefect 3.8.8: smoke test", f"{SERVICE}: configuration"],
    ),
    "tool: proven anew": (node(f"{ROOT}/proven", content="x"), [f"{SERVICE}: configuration"]),
    "other flows": (
        node(f"{ROOT}/worker/lib/prefect-bootstrap", content="0"),
        ["package prefect-bootstrap: digest"],
    ),
    "journald's folder closed": (
        node(JOURNALD_FOLDER, mode="700"),
        [f"directory {JOURNALD_FOLDER}: mode"],
    ),
    "journald unbounded": (node(JOURNALD, content=""), [f"file {JOURNALD}: content"]),
    "server.toml readable": (node(SERVER_TOML, mode="644"), [f"{SERVER_FILE}: mode"]),
    "server.toml edited": (
        node(SERVER_TOML, content="x"),
        [f"{SERVER_FILE}: content", f"{SERVICE}: configuration"],
    ),
    "worker.toml root's": (node(WORKER_TOML, owner="root:root"), [f"file {WORKER_TOML}: owner"]),
    "server's unit edited": (
        node(f"{UNITS}/{SERVER_UNIT}", content="x"),
        [f"file {UNITS}/{SERVER_UNIT}: content", f"{SERVICE}: configuration"],
    ),
    "worker's unit masked": (
        masked,
        [f"{UNIT_FILE}: {what}" for what in ("kind", "mode", "content")]
        + [f"service prefect-worker: {what}" for what in ("at boot", "configuration")],
    ),
    "schema behind": (
        lambda on: on.database.update(revision="behind", pending=3, current=["0"]),
        ["schema: revision", "schema: pending migrations"],
    ),
    "disabled": (
        lambda on: vars(on.units[WORKER_UNIT]).update(enabled=False),
        ["service prefect-worker: at boot"],
    ),
    "stopped": (stopped, [f"{SERVICE}: state", f"{SERVICE}: configuration"]),
    "overridden": (overridden_and_read, [f"{SERVICE}: overrides"]),
    "runs an older configuration": (
        lambda on: on.units[WORKER_UNIT].running.update({WORKER_TOML: "x"}),
        ["service prefect-worker: configuration"],
    ),
}


@pytest.fixture
def world() -> World:
    return World(machine=finished())


@pytest.mark.parametrize("name", SPOILED)
def test_drift_is_named_and_healed(name: str, world: World) -> None:
    spoil, named = SPOILED[name]
    spoil(world.machine.debian)
    spoiled = world.machine.copy().debian.state
    assert world.told(apply=False) == named
    assert (world.machine.writes, world.machine.debian.state) == ([], spoiled)
    assert named[0] in world.told(apply=True)  # what only follows from it may heal with it
    assert world.told(apply=True) == []
    assert world.machine.debian.state == finished().debian.state


def test_an_override_that_waits_for_the_next_reload_is_healed(world: World) -> None:
    overridden(world.machine.debian)
    assert world.told(apply=False) == [f"{SERVICE}: configuration"]
    assert world.told(apply=True) == [f"{SERVICE}: configuration"]


def test_every_resource_of_the_machine_is_spoiled_once(world: World) -> None:
    named = {told.rpartition(": ")[0] for _, tolds in SPOILED.values() for told in tolds}
    assert {r.name for r in world.resources(stages=MACHINE)} - named == {"database"}


@pytest.mark.parametrize(
    ("facts", "named", "says"),
    [
        ({"server_version_num": 130011}, ["database: PostgreSQL"], "PostgreSQL 14 or newer"),
        ({"in_recovery": True}, ["database: writes"], "primary's address"),
        ({"pg_trgm_installed": False, "create_in_database": False}, ["database: pg_trgm"], "GRANT"),
        ({"revision": "ahead"}, ["schema: revision"], "never migrate down"),
        ({"invalid_indexes": ["ix"]}, ["schema: invalid indexes"], "REINDEX INDEX"),
    ],
)
def test_what_only_an_administrator_can_repair_is_said_and_not_touched(
    world: World, facts: dict[str, Any], named: Told, says: str
) -> None:
    world.machine.debian.database.update(facts)
    assert world.told(apply=False) == named
    with pytest.raises(Final, match=says):
        world.run(stages=MACHINE)
    assert world.machine.writes == []
