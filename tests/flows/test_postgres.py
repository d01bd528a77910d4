"""The database stage as data: recorded answer → state → commands, error → what to do about it."""

import asyncio
import importlib.util
import json
import socket
import ssl
from importlib.machinery import ModuleSpec
from pathlib import Path

import asyncpg
import pytest

from blocks.shell import Command, Result
from flows.errors import BootstrapError, Final, Unreachable
from flows.probes import database, migrate
from flows.reconcile import diff
from flows.resources.postgres import Database, Schema, refusal

RECORDED = Path(__file__).parent / "data"  # PostgreSQL 15.18, Prefect 3.8.8
PYTHON = "/opt/prefect/bin/python"
DATABASE = Database(PYTHON, "/etc/prefect", "prefect")
SCHEMA = Schema(PYTHON, "/etc/prefect", "prefect", "/var/lib/prefect")


def recorded(name: str, **spoilt: object) -> Result:
    answer = json.loads((RECORDED / f"database_{name}.json").read_text())
    return Result(0, json.dumps(answer | spoilt), "")


def gaps(kind: Database | Schema, result: Result) -> list[str]:
    return [str(change) for change in diff(kind.desired(), kind.parse(result))]


def commands(kind: Database | Schema, result: Result) -> list[Command]:
    return list(kind.commands(diff(kind.desired(), kind.parse(result))))


# Ring 1: answer → state → commands


def test_a_database_at_head_leaves_nothing_to_do() -> None:
    assert gaps(DATABASE, recorded("head")) == gaps(SCHEMA, recorded("head")) == []


def test_an_empty_database_is_fit_and_is_migrated() -> None:
    assert gaps(DATABASE, recorded("empty")) == []
    assert gaps(SCHEMA, recorded("empty")) == ["revision: empty → head"]
    [command] = commands(SCHEMA, recorded("empty"))
    assert command.argv[:4] == ("runuser", "-u", "prefect", "--")
    assert command.argv[4:] == (PYTHON, "-I", "-", "/etc/prefect", "/var/lib/prefect")
    assert command.cwd == "/etc/prefect"
    assert command.seconds > migrate.LOCK_SECONDS + migrate.UPGRADE_SECONDS


def test_both_kinds_look_once() -> None:
    assert DATABASE.probe() == SCHEMA.probe()


@pytest.mark.parametrize(
    ("spoilt", "repair"),
    [
        ({"server_version_num": 130014, "server_version": "13.14"}, "use PostgreSQL 14 or newer"),
        ({"in_recovery": True}, "put the primary's address"),
        (
            {"create_in_schema": False},
            "in prefect, run GRANT USAGE, CREATE ON SCHEMA public TO prefect;",
        ),
        ({"create_in_database": False}, "GRANT CREATE ON DATABASE prefect TO prefect;"),
        ({"pg_trgm_available": False}, "install PostgreSQL's contrib extensions"),
        (
            {"refused_tables": ["a", "b", "c", "d"]},
            "a, b, c and 1 more; in prefect, run GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES",
        ),
    ],
)
def test_what_the_database_lacks_is_said_with_its_repair(
    spoilt: dict[str, object], repair: str
) -> None:
    result = recorded("empty", database="prefect", **spoilt)
    [gap] = gaps(DATABASE, result)
    assert repair in gap
    with pytest.raises(Final, match="not fit for Prefect") as error:
        commands(DATABASE, result)
    assert repair.rpartition("; ")[2] in error.value.repair


def test_an_installed_extension_needs_no_right_to_install_it() -> None:
    assert gaps(DATABASE, recorded("head", create_in_database=False)) == []


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ({"revision": "ahead", "current": ["f1"]}, "ahead: f1.* newer .*never migrate down"),
        ({"revision": "unknown", "current": ["f1", "f2"]}, "unknown: f1, f2.* empty database"),
        ({"revision": "ahead", "current": ["f1"], "invalid_indexes": ["ix"]}, "never migrate down"),
    ],
)
def test_what_only_a_person_can_decide_is_never_migrated(
    spoilt: dict[str, object], says: str
) -> None:
    with pytest.raises(Final, match=says):
        commands(SCHEMA, recorded("head", **spoilt))


TRIGRAM = list(database.installed_indexes())


@pytest.mark.parametrize(
    ("spoilt", "gap"),
    [
        ({"revision": "behind", "pending": 2, "current": ["a"]}, "revision: behind by 2: a → head"),
        (
            {"pg_trgm_installed": False, "missing_indexes": TRIGRAM},
            "pg_trgm: missing → installed",
        ),
        ({"missing_indexes": TRIGRAM[:1]}, f"missing indexes: {TRIGRAM[0]} → none"),
        ({"invalid_indexes": ["a.ix", "ix"]}, "invalid indexes: a.ix, ix → none"),
    ],
)
def test_what_the_migration_heals_is_one_gap(spoilt: dict[str, object], gap: str) -> None:
    result = recorded("head", **spoilt)
    assert gaps(DATABASE, result) == []
    assert gaps(SCHEMA, result) == [gap]
    assert commands(SCHEMA, result) == commands(SCHEMA, recorded("empty"))


def test_a_schema_that_may_not_be_read_is_not_taken_for_an_empty_one() -> None:
    result = recorded("empty", readable=False, refused_tables=["alembic_version"])
    assert [gap.partition(":")[0] for gap in gaps(DATABASE, result)] == ["rows"]
    with pytest.raises(Final, match="may not look into it"):
        SCHEMA.parse(result)


def test_leftovers_go_before_what_is_built_again() -> None:
    found = {"invalid_indexes": ['"A_ccnew1"', "b", "b_ccold"], "missing_indexes": TRIGRAM[:1]}
    assert [line.split(" CONCURRENTLY ")[0] for line in migrate.index_repairs(found)] == [
        "DROP INDEX", "DROP INDEX", "REINDEX INDEX", "CREATE INDEX",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("current", "of_prefect", "revision", "pending"),
    [
        ([], False, "empty", 3),
        (["c"], True, "head", 0),
        (["a"], True, "behind", 2),
        (["x"], True, "ahead", 0),
        (["x"], False, "unknown", 0),
        (["b", "c"], True, "unknown", 0),
        ([], True, "unknown", 0),
    ],
)
def test_where_a_database_stands(
    current: list[str], of_prefect: bool, revision: str, pending: int
) -> None:
    found = database.standing(current, of_prefect, ["a", "b", "c"])
    assert (found["revision"], found["pending"]) == (revision, pending)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("postgresql+asyncpg://u:p%40%2F@h/d", "postgresql://u:p%40%2F@h/d"),
        ("postgresql+asyncpg://u:p@[::1]:1/d?ssl=require", "postgresql://u:p@[::1]:1/d?sslmode=require"),
        ("postgresql+asyncpg://u:p@h/d?prepared_statement_cache_size=0", "postgresql://u:p@h/d"),
    ],
)  # fmt: skip
def test_the_url_becomes_one_that_asyncpg_reads(ours: str, theirs: str) -> None:
    assert database.asyncpg_dsn(ours) == theirs


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (asyncpg.InvalidPasswordError("x"), Final, "password"),
        (asyncpg.InvalidAuthorizationSpecificationError("x"), Final, "pg_hba.conf"),
        (asyncpg.InvalidCatalogNameError("x"), Final, "CREATE DATABASE"),
        (ssl.SSLCertVerificationError("x"), Final, "CA"),
        (ConnectionError("rejected SSL upgrade"), Final, "TLS"),
        (asyncpg.InsufficientPrivilegeError("x"), Final, "complains"),
        (asyncpg.CannotConnectNowError("x"), Unreachable, "started"),
        (asyncpg.AdminShutdownError("x"), Unreachable, "started"),
        (asyncpg.TooManyConnectionsError("x"), Unreachable, "max_connections"),
        (asyncpg.ConnectionDoesNotExistError("x"), Unreachable, "runs"),
        (socket.gaierror(-2, "x"), Unreachable, "name service"),
        (ConnectionRefusedError(111, "x"), Unreachable, "runs"),
        (ConnectionResetError(104, "x"), Unreachable, "runs"),
        (TimeoutError(), Unreachable, "runs"),
        (OSError(113, "x"), Unreachable, "runs"),
    ],
)
def test_an_errors_type_decides_whether_another_try_may_help(
    error: Exception, kind: type[BootstrapError], says: str
) -> None:
    refused = refusal(**database.told(error))
    assert type(refused) is kind
    assert says in refused.repair


def test_a_url_that_cannot_be_read_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="secret") as error:  # the fault itself quotes it
        asyncio.run(database.look("postgresql+asyncpg://user:pass@host:secret/d", ["a"]))
    assert "secret" not in json.dumps(database.told(error.value))


@pytest.mark.parametrize(
    ("downs", "revisions"),
    [
        ({"c": "'b'", "a": "None", "b": "'a'"}, ["a", "b", "c"]),
        ({"a": "None", "b": "'a'", "c": "'a'"}, None),  # two heads
        ({"a": "None", "c": "'b'"}, None),  # a gap
        ({}, None),
    ],
)
def test_migrations_are_one_line_of_revisions_or_refused(
    downs: dict[str, str],
    revisions: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / database.MIGRATIONS).mkdir(parents=True)
    for revision, down in downs.items():
        text = (
            f"from typing import *\nrevision = {revision!r}\ndown_revision: str | None = {down}\n"
        )
        (tmp_path / database.MIGRATIONS / f"{revision}.py").write_text(text)
    spec = ModuleSpec("prefect", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    if revisions is None:
        with pytest.raises(ValueError, match="not one line"):
            database.installed_revisions()
    else:
        assert database.installed_revisions() == revisions
