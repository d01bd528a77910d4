"""What the self-check's two programs say of a real PostgreSQL and of the machine that runs the tests."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from blocks.shell import LocalShell
from flows.checks import database, machine
from flows.checks.check import Verdict
from flows.checks.database import Pressure
from flows.checks.machine import Vitals
from flows.errors import Final, Unreachable
from flows.spec import SelfCheck
from rehearsal.certificates import Authority
from tests.flows.postgres_server import Postgres, postgres

UNITS = ("prefect-server.service", "prefect-worker.service")
SYSTEMCTL = """#!/bin/sh
case $1 in
list-units) echo 'cron.service loaded failed failed Regular background program processing daemon' ;;
show) printf 'Id=prefect-server.service\\nNRestarts=2\\n\\nNRestarts=0\\nId=prefect-worker.service\\n' ;;
esac
"""
CHRONYC = """#!/bin/sh
echo A9FEA9FE,169.254.169.254,2,1795356000.1,{offset},0.0,0.0,1.0,0.0,0.1,0.0,0.0,64.2,{leap}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def there(server: Postgres, tmp_path: Path) -> Pressure:
    return looking(tmp_path, server.url(server.database()))


def looking(folder: Path, url: str) -> Pressure:
    (folder / "prefect.toml").write_text(f'[server.database]\nconnection_url = "{url}"\n')
    return Pressure(sys.executable, str(folder), "")


def look(kind: Pressure | Vitals) -> dict[str, Any]:
    [result] = LocalShell().run([kind.probe()], together=True)
    return dict(kind.parse(result))


async def hold(server: Postgres, name: str, kind: Pressure) -> dict[str, Any]:
    """What is seen while somebody has a transaction open."""
    connection = await asyncpg.connect(server.url(name).replace("+asyncpg", ""), timeout=10)
    try:
        async with connection.transaction():
            await connection.fetchval("SELECT pg_sleep(1.1)")
            return await asyncio.to_thread(look, kind)
    finally:
        await connection.close()


def test_an_empty_database_is_healthy_and_told_in_numbers(there: Pressure) -> None:
    found = look(there)
    checks = database.judged(found, {}, SelfCheck())
    assert {check.verdict for check in checks} == {"healthy"}
    assert found["max_connections"] == 100
    assert found["connections"] >= 1
    assert found["size"] > 1_000_000
    assert found["transaction"] < 1
    assert abs(found["ahead"]) < 0.5
    assert found["largest"] == []


def test_growth_dead_rows_and_an_old_transaction_are_seen(server: Postgres, tmp_path: Path) -> None:
    name = server.database()
    kind = looking(tmp_path, server.url(name))
    before = look(kind)
    server.sql(
        "CREATE TABLE small AS SELECT 1 AS a",
        "CREATE TABLE big WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 150000) AS a",
        "DELETE FROM big WHERE a > 10000",
        "SELECT pg_stat_force_next_flush()",
        database=name,
        user="prefect",
    )
    found = asyncio.run(hold(server, name, kind))
    assert found["size"] - before["size"] > 5_000_000
    assert found["dead"] == 140_000
    assert found["transaction"] >= 1
    assert [each.split()[0] for each in found["largest"]] == ["big", "small"]
    bounds = SelfCheck.model_construct(growth_mb=5, transaction_seconds=1)
    checks = database.judged(found, {"database: size": before["size"]}, bounds)
    bad = {check.name: check.verdict for check in checks if check.verdict != "healthy"}
    assert bad == {
        "database: growth": "degraded",
        "database: dead rows": "degraded",
        "database: oldest transaction": "degraded",
    }


def test_looking_works_where_nothing_may_be_written(server: Postgres, tmp_path: Path) -> None:
    name = server.database()
    server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert look(looking(tmp_path, server.url(name)))["size"] > 0


def test_a_database_that_is_away_or_refuses_is_told_with_its_repair(
    server: Postgres, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="Check that the database runs"):
        look(looking(tmp_path, f"postgresql+asyncpg://prefect:secret-pw@127.0.0.1:{port}/x"))
    with pytest.raises(Final, match="Correct the user or the password") as refused:
        look(looking(tmp_path, server.url(server.database(), password="wrong-secret")))
    assert "wrong-secret" not in str(refused.value)


# The machine


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that answer as Debian's."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program(tmp_path / "systemctl", SYSTEMCTL)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_a_machine_tells_its_figures_without_root(debian: Path) -> None:
    program(debian / "chronyc", "#!/bin/sh\nexit 1\n")
    found = look(Vitals(UNITS, "/api"))
    assert not [key for key in found if key.endswith(" error")]
    assert all(0 < found[name] <= 100 for name in ("disk", "inodes", "memory"))
    assert found["failed"] == ["cron.service"]
    assert found["restarts of prefect-server.service"] == 2
    assert found["restarts of prefect-worker.service"] == 0
    assert found["clock"] == ""
    assert "certificate" not in found


@pytest.mark.parametrize(
    ("offset", "leap", "clock"),
    [("-0.25", "Normal", 0.25), ("0.000012", "Normal", 0.000012), ("3.0", "Not synchronised", "Not synchronised")],
)  # fmt: skip
def test_the_clock_is_off_as_chrony_says(
    debian: Path, offset: str, leap: str, clock: float | str
) -> None:
    program(debian / "chronyc", CHRONYC.format(offset=offset, leap=leap))
    assert look(Vitals(UNITS, ""))["clock"] == clock


def test_what_fails_to_tell_its_figure_leaves_the_others(debian: Path) -> None:
    program(debian / "systemctl", "#!/bin/sh\necho no bus >&2; exit 1\n")
    found = look(Vitals(UNITS, "https://127.0.0.1:1/api"))
    assert "no bus" in found["units error"]
    assert "ConnectionRefusedError" in found["certificate error"]
    assert found["disk"] > 0
    checks = machine.judged(found, 0.0, {}, SelfCheck())
    unknown = {check.name for check in checks if check.verdict == "could not check"}
    assert unknown == {"machine: units", "machine: certificate"}


@pytest.mark.parametrize(
    ("trusted", "host", "days", "verdict"),
    [(True, "127.0.0.1", 30, "healthy"), (True, "localhost", 0, "unhealthy"), (False, "127.0.0.1", 0, "unhealthy")],
)  # fmt: skip
def test_a_certificate_is_judged_by_its_last_day_its_name_and_who_signed_it(
    debian: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
    host: str,
    days: int,
    verdict: Verdict,
) -> None:
    authority = Authority(debian)
    context = authority.context(["127.0.0.1"])
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=(server, context))
        thread.start()
        found = look(Vitals(UNITS, f"https://{host}:{server.getsockname()[1]}/api"))
        thread.join(10)
    assert round(found["certificate"]) == days
    [check] = machine._certificate(found, 14)
    assert check.verdict == verdict


def greet(server: socket.socket, context: ssl.SSLContext) -> None:
    """Shake hands with one client, who may not like what he sees."""
    server.settimeout(10)
    client, _ = server.accept()
    with client, suppress(ssl.SSLError, OSError):
        context.wrap_socket(client, server_side=True).close()


def test_the_programs_arguments_hold_no_secret(there: Pressure) -> None:
    assert "p%40ss" not in json.dumps([there.probe().argv, Vitals(UNITS, "").probe().argv])
