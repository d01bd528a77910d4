"""How much the database has to bear: one statement, which only reads.

``python -I - DIRECTORY`` reads the URL from ``prefect.toml`` in DIRECTORY and prints what ``look``
returns as one JSON object, or ``told`` of the error that kept it from looking.
"""

import asyncio
import json
import os
import pwd
import sys
import time
from typing import Any

from flows.probes.database import FAILURES, QUERY_SECONDS, connect, connection_url, told

# Of other users' transactions only a monitor sees the age; those of Prefect are its own user's.
FIGURES = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS clock,
       current_setting('max_connections')::int AS max_connections,
       (SELECT sum(numbackends) FROM pg_stat_database)::int AS connections,
       pg_database_size(current_database()) AS size,
       (SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0)
        FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())::float8 AS transaction,
       coalesce((SELECT sum(n_dead_tup) FROM pg_stat_user_tables), 0)::int8 AS dead,
       coalesce((SELECT sum(n_live_tup) FROM pg_stat_user_tables), 0)::int8 AS live,
       ARRAY(SELECT relname || ' ' || pg_size_pretty(pg_total_relation_size(relid))
             FROM pg_stat_user_tables
             ORDER BY pg_total_relation_size(relid) DESC, relname LIMIT 5) AS largest
"""


async def look(url: str) -> dict[str, Any]:
    """The columns of FIGURES (bytes, seconds, rows), ``seconds`` that they took, and ``ahead``: how
    many seconds this machine's clock is ahead of the database's. Raises FAILURES."""
    connection = await connect(url, "prefect-bootstrap health")
    try:
        async with asyncio.timeout(QUERY_SECONDS):
            began, clock = time.monotonic(), time.time()
            found = dict(await connection.fetchrow(FIGURES))
            seconds = time.monotonic() - began
    finally:
        await connection.close(timeout=5)
    # Its clock was read somewhere between the two: what is off by less than that is not off.
    behind = found.pop("clock") - clock
    ahead = -min(behind, 0.0) if behind < 0 else -max(behind - seconds, 0.0)
    return found | {"seconds": seconds, "ahead": ahead}


def main(directory: str) -> None:
    # As under systemd: the root certificates of ?ssl=verify-full are the service user's.
    os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    try:
        found = asyncio.run(look(connection_url(directory)))
    except FAILURES as error:
        found = told(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
