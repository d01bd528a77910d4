"""Bring the database to the head of the installed Prefect, and heal its indexes: once, however
many want to.

``python -I - DIRECTORY PREFECT_HOME`` runs ``prefect server database upgrade`` as the server would
run it: in DIRECTORY, where its ``prefect.toml`` is. Prefect's migrations take no lock, and two at a
time can leave the database in a state from which neither goes on. So ours hold an advisory lock for
as long as they run; whoever comes second waits, and finds nothing left to do.

The upgrade never goes on without the lock: it is killed when the connection that holds the lock is
lost, and by the kernel when this process dies. What PostgreSQL is in the middle of then, it ends.

An index that is not valid is of no use but slows every write. REINDEX keeps its definition, and what
an interrupted REINDEX leaves beside it (``_ccnew``, ``_ccold``) is nobody's.
"""

import asyncio
import ctypes
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from flows.probes.database import (
    FAILURES,
    connect,
    facts,
    installed_indexes,
    prepared,
    told,
)

KEY = 0x70726566656374  # "prefect"
LOCK_SECONDS = 600
UPGRADE_SECONDS = INDEX_SECONDS = 3000
"""Indexes are built on tables that may be large."""
BEAT_SECONDS = 1
PR_SET_PDEATHSIG = 1
LEFTOVER = re.compile(r'_cc(new|old)\d*"?$')
# A key of 64 bits is stored in two halves.
HOLDER = """
SELECT format('%s (pid %s, from %s)', a.application_name, a.pid, coalesce(host(a.client_addr), 'socket'))
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = $1
"""


class Stopped(Exception):
    """Not migrated, or not to the end; the message says why."""


async def lock(connection: Any, seconds: float) -> None:
    """Take the lock, which lasts as long as the connection. Raises Stopped after ``seconds``."""
    deadline, told_of = time.monotonic() + seconds, None
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", KEY):
        holder = await connection.fetchval(HOLDER, KEY)
        if time.monotonic() > deadline:
            raise Stopped(f"no lock in {seconds:.0f} s: {holder} holds it; let it end, or end it")
        if holder != told_of:
            print(f"waiting for {holder}", file=sys.stderr)
            told_of = holder
        await asyncio.sleep(BEAT_SECONDS)


def die_with(parent: int) -> None:
    """In the child: be killed by the kernel when the process ``parent`` is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone before we could ask
        os._exit(1)


async def upgrade(
    connection: Any, argv: Sequence[str], cwd: str, env: dict[str, str], seconds: float
) -> None:
    """Run ``argv`` while ``connection`` holds the lock. Raises Stopped; ``argv`` has ended then."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=partial(die_with, os.getpid()),
    )
    deadline = time.monotonic() + seconds
    try:
        while process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), BEAT_SECONDS)
            except TimeoutError:
                await connection.execute("SELECT 1")
            if process.returncode is None and time.monotonic() > deadline:
                raise Stopped(f"not done after {seconds:.0f} s, and ended")
    except FAILURES as error:
        raise Stopped(f"ended, since the lock is lost: {type(error).__name__}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Stopped(f"{' '.join(argv)}: exit {process.returncode}")


async def upgrade_prefect(connection: Any, directory: str, prefect_home: str) -> None:
    """Run Prefect's own upgrade. Raises Stopped."""
    prefect = str(Path(sys.executable).with_name("prefect"))
    argv = (prefect, "server", "database", "upgrade", "-y")
    # As the server's unit has it, and none of the variables that would win over prefect.toml.
    env = {"HOME": os.environ["HOME"], "PREFECT_HOME": prefect_home, "PATH": os.defpath}
    await upgrade(connection, argv, directory, env, UPGRADE_SECONDS)


def index_repairs(found: dict[str, Any]) -> list[str]:
    """The SQL that heals the indexes in ``facts``; leftovers first, since a REINDEX makes more."""
    expected = installed_indexes()
    left = [index for index in found["invalid_indexes"] if LEFTOVER.search(index)]
    return [
        *(f"DROP INDEX CONCURRENTLY IF EXISTS {index}" for index in left),
        *(
            f"REINDEX INDEX CONCURRENTLY {index}"
            for index in found["invalid_indexes"]
            if index not in left
        ),
        *(expected[name] for name in found["missing_indexes"]),
    ]


async def heal_indexes(connection: Any, found: dict[str, Any]) -> int:
    """How many statements it took. Raises Stopped, FAILURES."""
    statements = index_repairs(found)
    async with asyncio.timeout(INDEX_SECONDS):
        for statement in statements:
            try:
                await connection.execute(statement, timeout=INDEX_SECONDS)
            except asyncpg.UniqueViolationError as error:
                raise Stopped(
                    f"{statement}: {error}; delete what is there twice, and run again"
                ) from error
    return len(statements)


async def migrate(url: str, revisions: Sequence[str], directory: str, prefect_home: str) -> str:
    """Migrate and heal if need be, and say what was done. Raises Stopped, FAILURES."""
    connection = await connect(url, f"prefect-bootstrap migration on {socket.gethostname()}")
    try:
        await lock(connection, LOCK_SECONDS)
        found = await facts(connection, revisions)
        if found["revision"] not in ("empty", "behind", "head"):
            raise Stopped(f"the database is at {found['current']}, which is not ours to migrate")
        if found["revision"] != "empty" and not found["pg_trgm_installed"]:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        if found["pending"]:
            await upgrade_prefect(connection, directory, prefect_home)
        healed = await heal_indexes(connection, await facts(connection, revisions))
        done = [(found["pending"], "migrations"), (healed, "indexes")]
        return ", ".join(f"{n} {what} done" for n, what in done if n) or "nothing to do: at head"
    finally:
        connection.terminate()


def main(directory: str, prefect_home: str) -> None:
    url, revisions = prepared(directory)
    try:
        print(asyncio.run(migrate(url, revisions, directory, prefect_home)))
    except Stopped as stopped:
        sys.exit(str(stopped))
    except FAILURES as error:
        known = told(error)
        sys.exit(f"{known['error'][0]}: {known['message']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
