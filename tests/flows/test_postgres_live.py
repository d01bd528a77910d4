"""Both programs of the database stage, as they are sent, against a real PostgreSQL."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from blocks.shell import Command, Result
from flows.errors import BootstrapError, CommandFailed, Final, Unreachable
from flows.probes import database, migrate
from flows.reconcile import State, diff
from flows.resources.postgres import Database, Schema
from tests.flows.postgres_server import Postgres, postgres


def gaps(kind: Database | Schema, result: Result) -> list[str]:
    return [str(change) for change in diff(kind.desired(), kind.parse(result))]


def commands(kind: Database | Schema, result: Result) -> list[Command]:
    return list(kind.commands(diff(kind.desired(), kind.parse(result))))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


def start(command: Command) -> subprocess.Popen[str]:
    """Run what a command runs, as ourselves."""
    argv = command.argv[command.argv.index("--") + 1 :]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        argv, cwd=command.cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdin
    process.stdin.write(command.stdin)
    process.stdin.close()
    process.stdin = None
    return process


def end(process: subprocess.Popen[str]) -> Result:
    stdout, stderr = process.communicate(timeout=100)
    return Result(process.returncode, stdout, stderr)


def run(command: Command) -> Result:
    return end(start(command))


class Machine:
    """A directory as the server has it, and both kinds in it."""

    def __init__(self, folder: Path, url: str) -> None:
        toml = folder / "prefect.toml"
        toml.write_text(f'[server.database]\nconnection_url = "{url}"\n')
        self.database = Database(sys.executable, str(folder), "prefect")
        self.schema = Schema(sys.executable, str(folder), "prefect", str(folder / "home"))
        self.folder = folder

    def look(self) -> Result:
        return run(self.database.probe())

    def state(self) -> State:
        return self.schema.parse(self.look())

    def migrate(self) -> Command:
        """The migration, whatever the state."""
        [command] = self.schema.commands(diff(self.schema.desired(), {"revision": "empty"}))
        return command

    def prefect(self, *args: str) -> None:
        argv = [str(Path(sys.executable).with_name("prefect")), "server", "database", *args, "-y"]
        env = {"PATH": os.defpath, "HOME": str(self.folder), "PREFECT_HOME": str(self.folder)}
        subprocess.run(argv, cwd=self.folder, env=env, check=True, capture_output=True, timeout=100)


@pytest.fixture(scope="module")
def at_head(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Result]]:
    """A database that two migrations brought to head at the same time, and how they ended."""
    name = server.database()
    machine = Machine(tmp_path_factory.mktemp("machine"), server.url(name))
    assert machine.state()["revision"] == "empty"
    command = machine.migrate()
    return name, [end(process) for process in [start(command), start(command)]]


def test_of_two_migrations_at_once_one_does_the_work_and_both_succeed(
    server: Postgres, at_head: tuple[str, list[Result]], tmp_path: Path
) -> None:
    name, results = at_head
    machine = Machine(tmp_path, server.url(name))
    looked = machine.look()
    assert gaps(machine.database, looked) == gaps(machine.schema, looked) == []
    assert [result.code for result in results] == [0, 0], results
    done = sorted(result.stdout for result in results)
    assert done == [f"{len(database.installed_revisions())} migrations done\n",
                    "nothing to do: at head\n"]  # fmt: skip
    assert any("waiting for prefect-bootstrap migration" in result.stderr for result in results)


def test_a_database_behind_is_migrated(
    server: Postgres, at_head: tuple[str, list[Result]], tmp_path: Path
) -> None:
    machine = Machine(tmp_path, server.url(server.database(template=at_head[0])))
    machine.prefect("downgrade", "-r", "-1")
    looked = machine.look()
    assert "pending migrations: 1 → 0" in gaps(machine.schema, looked)
    [command] = commands(machine.schema, looked)
    result = run(command)
    assert (result.code, result.stdout) == (0, "1 migrations done\n")
    assert gaps(machine.schema, machine.look()) == []


def test_a_newer_prefects_database_is_not_touched(
    server: Postgres, at_head: tuple[str, list[Result]], tmp_path: Path
) -> None:
    name = server.database(template=at_head[0])
    server.sql("UPDATE alembic_version SET version_num = 'ffffffffffff'", database=name)
    machine = Machine(tmp_path, server.url(name))
    assert machine.state()["revision"] == "ahead: ffffffffffff"
    result = run(machine.migrate())
    assert result.code == 1
    assert "['ffffffffffff'], which is not ours to migrate" in result.stderr


def test_another_programs_database_is_not_prefects(server: Postgres, tmp_path: Path) -> None:
    name = server.database()
    table = "CREATE TABLE alembic_version (version_num text)"
    server.sql(table, "INSERT INTO alembic_version VALUES ('x')", database=name, user="prefect")
    assert Machine(tmp_path, server.url(name)).state()["revision"] == "unknown: x"


def test_an_invalid_index_is_repaired_by_the_line_we_name(server: Postgres, tmp_path: Path) -> None:
    name = server.database()
    machine = Machine(tmp_path, server.url(name))
    build = 'CREATE UNIQUE INDEX CONCURRENTLY "Once" ON t (x)'
    server.sql("CREATE TABLE t AS SELECT 1 AS x FROM generate_series(1, 2)", database=name)
    with pytest.raises(asyncpg.UniqueViolationError):
        server.sql(build, database=name)
    looked = machine.look()
    assert machine.schema.parse(looked)["invalid indexes"] == ('"Once"',)
    with pytest.raises(Final) as error:
        commands(machine.schema, looked)
    line = 'REINDEX INDEX CONCURRENTLY "Once";'
    assert line in error.value.repair
    server.sql("DELETE FROM t WHERE ctid = '(0,1)'", line, database=name)
    assert machine.state()["invalid indexes"] == ()


def test_missing_rights_are_repaired_by_the_lines_we_name(server: Postgres, tmp_path: Path) -> None:
    name = server.database(owner="postgres")
    server.sql("REVOKE CREATE ON SCHEMA public FROM public", database=name)
    machine = Machine(tmp_path, server.url(name, user="guest"))
    missing = gaps(machine.database, machine.look())
    assert len(missing) == 2
    lines = [line for gap in missing for line in re.findall("GRANT [^;]*;", gap)]
    server.sql(*lines, database=name)
    assert gaps(machine.database, machine.look()) == []


def test_nothing_to_look_at_is_no_state(tmp_path: Path) -> None:
    schema = Schema(sys.executable, str(tmp_path), "prefect", "/")
    for text, says in [(None, "No such file"), ("[server.database]", "no connection_url")]:
        if text is not None:
            (tmp_path / "prefect.toml").write_text(text)
        with pytest.raises(CommandFailed, match=says):
            schema.parse(run(schema.probe()))


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        ("p%40ss", "other", Final, "InvalidPasswordError"),
        ("/postgres", "/absent", Final, "InvalidCatalogNameError"),
        ("/postgres", "/postgres?ssl=require", Final, "TLS"),
        (":{}/", ":1/", Unreachable, "ConnectionRefusedError"),
        ("127.0.0.1", "absent.invalid", Unreachable, "gaierror"),
    ],
)
def test_what_keeps_us_out_is_told_apart(
    server: Postgres, tmp_path: Path, old: str, new: str, kind: type[BootstrapError], says: str
) -> None:
    machine = Machine(tmp_path, server.url("postgres").replace(old.format(server.port), new))
    looked, migrated = machine.look(), run(machine.migrate())
    with pytest.raises(kind, match=says):
        machine.schema.parse(looked)
    assert migrated.code == 1
    assert "ss%25w" not in str((looked, migrated, machine.migrate(), machine.database.probe()))


def test_who_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+asyncpg://u:p@127.0.0.1:{silent.getsockname()[1]}/d"
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(database.look(url, ["a"]))
        assert time.monotonic() - started < 10


# The lock


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
