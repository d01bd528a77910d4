"""Both programs of the database stage, as they are sent, against a real PostgreSQL."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from blocks.shell import Command, Result
from flows.errors import BootstrapError, CommandFailed, Final, Unreachable
from flows.probes import database
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
    [gap] = gaps(machine.schema, looked)
    assert gap.startswith("revision: behind by 1: ")
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


TRIGRAM = ", ".join(database.installed_indexes())


@pytest.mark.parametrize(
    ("spoil", "gap"),
    [
        (["DROP EXTENSION pg_trgm CASCADE"], "pg_trgm: missing → installed"),
        (
            ["DROP EXTENSION pg_trgm CASCADE", "CREATE EXTENSION pg_trgm"],
            f"missing indexes: {TRIGRAM} → none",
        ),
        (
            [
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'trgm_ix_flow_name'::regclass"
            ],
            "invalid indexes: trgm_ix_flow_name → none",
        ),
        (
            [
                "CREATE INDEX ix_ccnew ON flow (name)",
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_ccnew'::regclass",
            ],
            "invalid indexes: ix_ccnew → none",
        ),
    ],
)
def test_lost_and_invalid_indexes_are_named_and_healed(
    server: Postgres, at_head: tuple[str, list[Result]], tmp_path: Path, spoil: list[str], gap: str
) -> None:
    name = server.database(template=at_head[0])
    indexes = "SELECT string_agg(indexdef, ';' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'public'"
    before = server.sql(indexes, database=name)
    server.sql(*spoil, database=name)
    machine = Machine(tmp_path, server.url(name))
    looked = machine.look()
    assert (gaps(machine.database, looked), gaps(machine.schema, looked)) == ([], [gap])
    [command] = commands(machine.schema, looked)
    result = run(command)
    assert result.code == 0, result.stderr
    assert gaps(machine.schema, machine.look()) == []
    assert server.sql(indexes, database=name) == before


def test_an_index_that_met_duplicates_says_what_to_do(
    server: Postgres, at_head: tuple[str, list[Result]], tmp_path: Path
) -> None:
    name = server.database(template=at_head[0])
    machine = Machine(tmp_path, server.url(name))
    table = "CREATE TABLE t AS SELECT 1 AS x FROM generate_series(1, 2)"
    server.sql(table, database=name, user="prefect")
    with pytest.raises(asyncpg.UniqueViolationError):
        server.sql('CREATE UNIQUE INDEX CONCURRENTLY "Once" ON t (x)', database=name)
    for _ in range(2):  # the first try leaves one more
        [command] = commands(machine.schema, machine.look())
        assert run(command).stderr.endswith("delete what is there twice, and run again\n")
    server.sql("DELETE FROM t WHERE ctid = '(0,1)'", database=name)
    assert run(command).stdout == "2 indexes done\n"
    assert gaps(machine.schema, machine.look()) == []


def test_lost_rights_to_rows_are_repaired_by_the_line_we_name(
    server: Postgres, at_head: tuple[str, list[Result]], tmp_path: Path
) -> None:
    name = server.database(template=at_head[0])
    machine = Machine(tmp_path, server.url(name))
    server.sql("REVOKE DELETE ON flow_run FROM prefect", database=name)
    looked = machine.look()
    assert gaps(machine.schema, looked) == []
    [gap] = gaps(machine.database, looked)
    assert gap.startswith("rows: refused of flow_run; ")
    server.sql("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM prefect", database=name)
    [gap] = gaps(machine.database, machine.look())
    server.sql(*re.findall("GRANT [^;]*;", gap), database=name)
    looked = machine.look()
    assert gaps(machine.database, looked) == gaps(machine.schema, looked) == []


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
