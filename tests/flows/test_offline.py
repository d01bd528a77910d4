"""A server without a way out: installed from the laptop, with neither a NAT nor an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.catalog import Server
from flows.resources import wheelhouse
from tests.flows.paper_debian import Debian
from tests.flows.paper_machine import Died, PaperMachine
from tests.flows.paper_world import MACHINE, SECRETS, World, changed, empty, finished
from tests.flows.test_compute_resources import spec

OFFLINE = spec(network={"nat": False}, prefect={"install_from": "laptop"})


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheels on paper: of each requirement the first that the lock allows."""

    def archive(locks: Sequence[str]) -> Path:
        first = dict(reversed(list(wheelhouse.hashes(locks))))
        path = tmp_path / "wheels"
        lines = (f"{digest} {name.replace('==', '-')}.whl" for name, digest in first.items())
        path.write_text("\n".join(lines))
        return path

    monkeypatch.setattr(wheelhouse, "archive", archive)


def debian() -> Debian:
    """Google's image, without an archive or an index in reach."""
    return Debian(packages={"unattended-upgrades"}, online=False)


def test_it_is_made_without_nat_archive_or_index_and_a_rerun_changes_nothing() -> None:
    with empty() as world:
        world.machine = PaperMachine(debian())
        made = changed(world.run(OFFLINE))
        assert "wheels" in made
        assert not [name for name in made if name.startswith(("router", "packages"))]
        assert not [asked for asked in world.cloud.http.asked if "/routers" in asked]
        assert changed(world.run(OFFLINE)) == []


def test_without_the_laptop_it_is_not() -> None:
    """Guards the test above: this machine reaches nothing."""
    world = World(machine=PaperMachine(debian()))
    with pytest.raises(Exception, match="Unable to fetch"):
        world.run(stages=MACHINE)


def test_killed_at_any_write_it_is_finished_by_a_rerun() -> None:
    whole = World(machine=PaperMachine(debian()))
    whole.run(OFFLINE, stages=MACHINE)
    for lives in range(len(whole.machine.writes)):
        world = World(machine=PaperMachine(debian(), lives=lives))
        with pytest.raises(Died):
            world.run(OFFLINE, stages=MACHINE)
        world.machine.lives = None
        world.run(OFFLINE, stages=MACHINE)
        assert changed(world.run(OFFLINE, stages=MACHINE)) == []
        assert world.machine.debian.state == whole.machine.debian.state


def test_a_server_that_was_installed_from_the_index_only_gets_the_wheels() -> None:
    world = World(machine=finished())
    world.machine.debian.online = False
    assert changed(world.run(OFFLINE, stages=MACHINE)) == ["wheels"]


def test_the_wheels_are_those_of_both_locks() -> None:
    [wheels] = [kind for kind in Server(OFFLINE, SECRETS).machine() if kind.name == "wheels"]
    assert isinstance(wheels, wheelhouse.Wheelhouse)
    names = {name.partition("==")[0] for name, _ in wheelhouse.hashes(wheels.locks)}
    assert {"prefect", "prefect-shell", "asyncpg", "uv"} <= names
