"""The lock under which a database is migrated, against a real PostgreSQL."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.probes import database, migrate
from tests.flows.postgres_server import Postgres, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


def sessions(server: Postgres, name: str, test: Any) -> Any:
    """Run ``test`` with two connections to the database ``name``."""

    async def both() -> Any:
        url = server.url(name)
        first = await database.connect(url, "the first")
        second = await database.connect(url, "the second")
        try:
            return await test(first, second)
        finally:
            first.terminate()
            second.terminate()

    return asyncio.run(both())


def test_who_holds_the_lock_is_named(server: Postgres) -> None:
    async def test(first: Any, second: Any) -> None:
        await migrate.lock(first, 0)
        await migrate.lock(second, 0)

    with pytest.raises(migrate.Stopped, match=r"the first \(pid \d+, from 127.0.0.1\) holds it"):
        sessions(server, server.database(), test)


def test_an_upgrade_ends_when_its_lock_is_lost(server: Postgres, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    async def test(first: Any, second: Any) -> None:
        upgrade = asyncio.create_task(migrate.upgrade(first, sleeper(pid), "/", {}, 30))
        await asyncio.to_thread(appears, pid)
        await second.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'the first'"
        )
        await upgrade

    with pytest.raises(migrate.Stopped, match="the lock is lost"):
        sessions(server, server.database(owner="prefect"), test)
    assert not alive(pid)


def test_an_upgrade_ends_when_its_time_is_up(server: Postgres, tmp_path: Path) -> None:
    async def test(first: Any, _: Any) -> None:
        await migrate.upgrade(first, sleeper(tmp_path / "pid"), "/", {}, 0)

    with pytest.raises(migrate.Stopped, match="not done after 0 s"):
        sessions(server, server.database(), test)
    assert not alive(tmp_path / "pid")


def test_an_upgrade_does_not_outlive_us(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        "import asyncio; from unittest.mock import AsyncMock; from flows.probes.migrate import upgrade\n"
        f"asyncio.run(upgrade(AsyncMock(), {sleeper(pid)!r}, '/', {{}}, 30))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        appears(pid)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sleeper(pid: Path) -> list[str]:
    """A command that writes its process id and then takes long."""
    return ["/bin/sh", "-c", 'echo $$ > "$0.part"; mv "$0.part" "$0"; exec sleep 60', str(pid)]


def appears(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: Path) -> bool:
    """Whether the process whose id the file has still runs; a zombie does not."""
    status = Path("/proc", pid.read_text().strip(), "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
