"""Look at the database as the server will meet it: from its machine, with its Python and its URL.

``python -I - DIRECTORY`` reads the URL from ``prefect.toml`` in DIRECTORY, so the URL is neither an
argument nor in the environment, and prints what ``look`` returns as one JSON object, or ``told`` of
the error that kept it from looking. It exits with 1 when it has nothing to look at or to compare
with: no ``prefect.toml``, no Prefect.

The database is compared with the migrations of the *installed* Prefect, which are read from their
files: importing Prefect takes seconds.
"""

import ast
import asyncio
import importlib.util
import json
import os
import pwd
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg

CONNECT_SECONDS = 10
QUERY_SECONDS = 30
MIGRATIONS = "server/database/_migrations/versions/postgresql"
FAILURES = (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What ``look`` raises: the network's, the URL's, the server's and asyncpg's errors."""

TRIGRAM_INDEX = re.compile(
    r"(CREATE|DROP) INDEX CONCURRENTLY\s+(?:IF (?:NOT )?EXISTS\s+)?(trgm_\w+)"
    r"(?:\s+ON (\w+)\s+USING gin \((\w+) gin_trgm_ops\))?"
)
# An index that is being built right now is not valid yet either: that one is not a fault.
# Prefect's tables are those of the same owner as the one in which Alembic notes the revision.
FACTS = """
SELECT current_setting('server_version') AS server_version,
       current_setting('server_version_num')::int AS server_version_num,
       quote_ident(current_user) AS "user",
       quote_ident(current_database()) AS database,
       quote_ident(coalesce(current_schema(), 'public')) AS schema,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS create_in_schema,
       has_database_privilege(current_database(), 'CREATE') AS create_in_database,
       EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm') AS pg_trgm_installed,
       EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') AS pg_trgm_available,
       pg_is_in_recovery() AS in_recovery,
       current_setting('max_connections')::int AS max_connections,
       (SELECT sum(numbackends) FROM pg_stat_database)::int AS connections,
       current_schema() IS NOT NULL
           AND coalesce(has_table_privilege(to_regclass('alembic_version'), 'SELECT'), true) AS readable,
       ARRAY(SELECT c.oid::regclass::text
             FROM pg_class c JOIN pg_class a ON a.oid = to_regclass('alembic_version')
             WHERE c.relkind IN ('r', 'p') AND (c.relnamespace, c.relowner) = (a.relnamespace, a.relowner)
               AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                        AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
             ORDER BY 1) AS refused_tables,
       ARRAY(SELECT c.relname::text FROM pg_class c
             WHERE c.relkind = 'i' AND starts_with(c.relname, 'trgm_')
               AND c.relnamespace::regnamespace::name = ANY (current_schemas(false))) AS trigram_indexes,
       ARRAY(SELECT i.indexrelid::regclass::text
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             WHERE NOT i.indisvalid
               AND c.relnamespace::regnamespace::name = ANY (current_schemas(false))
               AND i.indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index
                                        WHERE index_relid IS NOT NULL)
             ORDER BY 1) AS invalid_indexes,
       to_regclass('alembic_version') IS NOT NULL AS stamped,
       to_regclass('flow_run') IS NOT NULL AND to_regclass('block_type') IS NOT NULL AS of_prefect
"""


def connection_url(directory: str) -> str:
    """Prefect's database URL, from ``prefect.toml`` in ``directory``. Raises OSError, ValueError."""
    file = Path(directory, "prefect.toml")
    try:
        return str(tomllib.loads(file.read_text())["server"]["database"]["connection_url"])
    except (KeyError, TypeError):
        raise ValueError(f"{file} has no connection_url under [server.database]") from None


def asyncpg_dsn(url: str) -> str:
    """``url`` as asyncpg reads it: another scheme, and ``sslmode`` for ``ssl``.

    Everything before the ``?`` stays as it is written, encoded. Other options are SQLAlchemy's, and
    asyncpg would send them to the server.
    """
    parts = urlsplit(url)
    ssl = parse_qs(parts.query).get("ssl")
    query = urlencode({"sslmode": ssl[-1]}) if ssl else ""
    return urlunsplit(parts._replace(scheme="postgresql", query=query))


def _migrations() -> Path:
    spec = importlib.util.find_spec("prefect")
    return Path(spec.origin).parent / MIGRATIONS if spec and spec.origin else Path(MIGRATIONS)


def installed_indexes() -> dict[str, str]:
    """Name → SQL that makes it, of the indexes that the installed Prefect has on trigrams.

    They are what a lost extension takes with it. Their migrations are named by date, each with the
    way up before the way down.
    """
    indexes: dict[str, str] = {}
    for file in sorted(_migrations().glob("*.py")):
        up, _, _ = file.read_text().partition("def downgrade")
        for does, name, table, column in TRIGRAM_INDEX.findall(up):
            if does == "DROP":
                indexes.pop(name, None)
            elif table:
                indexes[name] = (
                    f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name}"
                    f" ON {table} USING gin ({column} gin_trgm_ops)"
                )
    return indexes


def installed_revisions() -> list[str]:
    """The revisions of the installed Prefect, oldest first. Raises ValueError when there are none."""
    folder = _migrations()
    after: dict[str | None, str] = {}
    files = sorted(folder.glob("*.py"))
    for file in files:
        values = {
            target.id: node.value
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        after[ast.literal_eval(values["down_revision"])] = ast.literal_eval(values["revision"])
    ordered: list[str] = []
    while (last := ordered[-1] if ordered else None) in after:
        ordered.append(after[last])
    if not ordered or len(ordered) != len(files):
        raise ValueError(f"the migrations in {folder} are not one line of revisions")
    return ordered


def standing(current: Sequence[str], of_prefect: bool, revisions: Sequence[str]) -> dict[str, Any]:
    """``revision``: where the database stands, and how many migrations are ``pending``.

    ``empty``, ``head`` and ``behind`` are certain. A revision that is not ours says nothing of its
    age: with Prefect's tables beside it we call it ``ahead``, since a newer Prefect is who writes
    such. ``unknown`` is the rest: another program's database, or more or fewer than one revision.
    """
    pending = 0
    if not current and not of_prefect:
        revision, pending = "empty", len(revisions)
    elif len(current) != 1:
        revision = "unknown"
    elif current[0] in revisions:
        pending = len(revisions) - 1 - revisions.index(current[0])
        revision = "behind" if pending else "head"
    else:
        revision = "ahead" if of_prefect else "unknown"
    return {"revision": revision, "pending": pending, "current": list(current)}


async def connect(url: str, application_name: str) -> Any:
    """A connection of asyncpg's; works through a pooler too. Raises FAILURES."""
    return await asyncpg.connect(
        asyncpg_dsn(url),
        timeout=CONNECT_SECONDS,
        command_timeout=QUERY_SECONDS,
        statement_cache_size=0,
        server_settings={"application_name": application_name},
    )


async def facts(connection: Any, revisions: Sequence[str]) -> dict[str, Any]:
    """What ``look`` returns, over an open connection."""
    found = dict(await connection.fetchrow(FACTS))
    stamped, of_prefect = found.pop("stamped"), found.pop("of_prefect")
    looked = stamped and found["readable"]
    rows = await connection.fetch("SELECT version_num FROM alembic_version") if looked else []
    stands = standing(sorted(row["version_num"] for row in rows), of_prefect, revisions)
    there = found.pop("trigram_indexes")
    expected = installed_indexes() if stands["revision"] == "head" else {}
    missing = [name for name in expected if name not in there]
    return found | stands | {"head": revisions[-1], "missing_indexes": missing}


async def look(url: str, revisions: Sequence[str]) -> dict[str, Any]:
    """The columns of FACTS up to ``invalid_indexes``, and ``revision``, ``pending``, ``current``,
    ``head``, ``missing_indexes``: JSON values, names quoted as SQL wants them. Raises FAILURES, in
    45 s at the latest.
    """
    connection = await connect(url, "prefect-bootstrap check")
    try:
        async with asyncio.timeout(QUERY_SECONDS):
            return await facts(connection, revisions)
    finally:
        await connection.close(timeout=5)


def told(error: BaseException) -> dict[str, Any]:
    """``error``: the names of its class and of those it derives from, nearest first; ``message``.

    A plain ValueError may quote a part of the URL, so it gets no message.
    """
    spoken = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
    message = str(error)[:500] if isinstance(error, spoken) else ""
    return {"error": [kind.__name__ for kind in type(error).__mro__], "message": message}


def prepared(directory: str) -> tuple[str, list[str]]:
    """What a program of ours needs: the URL and the installed revisions. Exits without them."""
    # As under systemd: the root certificates of ?ssl=verify-full are the service user's.
    os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    try:
        return connection_url(directory), installed_revisions()
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def main(directory: str) -> None:
    url, revisions = prepared(directory)
    try:
        found = asyncio.run(look(url, revisions))
    except FAILURES as error:
        found = told(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
