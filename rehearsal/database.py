"""The database machine: Debian's PostgreSQL 15 at 10.104.120.4, as a peered service is reached.

A network of its own joins it to every VPC. TLS is on with the rehearsal's authority; the role owns
its database and is no superuser. The password is made anew with every cloud.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path

from rehearsal import image
from rehearsal.certificates import Authority
from rehearsal.config import DATABASE, DATABASE_NAME, DATABASE_ROLE, STATE
from rehearsal.disk import Disk
from rehearsal.errors import Json
from rehearsal.firewall import BRIDGE
from rehearsal.machine import Machine
from rehearsal.network import SERVICES_NAMESPACE, add_namespace, ip, join, remove_namespace
from rehearsal.process import CommandFailed

GATEWAY = "10.104.120.1"
DISK_GB = 20
READY_SECONDS = 30.0
PASSWORD = STATE / "database.password"
CONFIGURATION = """\
listen_addresses = '*'
password_encryption = 'scram-sha-256'
ssl = on
ssl_cert_file = '/etc/postgresql/server.crt'
ssl_key_file = '/etc/postgresql/server.key'
"""
ACCESS = """\
local all all peer
host all all 0.0.0.0/0 scram-sha-256
"""
ROLE = """\
CREATE ROLE "{role}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{password}';
CREATE DATABASE "{name}" OWNER "{role}";
"""
POSTGRES = ("runuser", "-u", "postgres", "--")


class Database:
    """The machine and what is said of it."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._disk = Disk("database")
        self.machine = Machine(
            name="database",
            hostname="database",
            disk=self._disk,
            layers=[image.database(), image.image()],
            cpus=0,
            memory=0,
            seed=self._seed,
            ended=self._ended,
        )

    async def create(self) -> None:
        """Boot it and make role and database. Returns when it answers."""
        await add_namespace(SERVICES_NAMESPACE)
        await ip(
            SERVICES_NAMESPACE,
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} up",
            f"addr add {GATEWAY}/24 dev {BRIDGE}",
        )
        await self._disk.create(DISK_GB)
        await self.machine.create()
        mac = "42:01:0a:68:78:04"
        namespace = self.machine.namespace
        await join(namespace, SERVICES_NAMESPACE, "db", DATABASE, GATEWAY, mac, prefix=24)
        await self.machine.start()
        await self._answers()
        password = secrets.token_urlsafe(24)
        PASSWORD.touch(mode=0o600)
        PASSWORD.write_text(password)
        sql = ROLE.format(role=DATABASE_ROLE, name=DATABASE_NAME, password=password)
        await self.machine.inside(*POSTGRES, "psql", "-qv", "ON_ERROR_STOP=1", stdin=sql)

    async def command(self, action: str) -> None:
        """``start``, ``stop`` or ``restart`` PostgreSQL; the machine stays on."""
        await self.machine.inside("systemctl", action, "postgresql@15-main")
        if action != "stop":
            await self._answers()

    async def close(self) -> None:
        await self.machine.delete()
        await remove_namespace(SERVICES_NAMESPACE)

    async def status(self) -> Json:
        """Where it is and whether it answers."""
        try:
            await self.machine.inside(*POSTGRES, "pg_isready", "-q", seconds=5)
            state = "RUNNING"
        except CommandFailed:
            state = "STOPPED"
        return {
            "state": state,
            "host": DATABASE,
            "port": 5432,
            "name": DATABASE_NAME,
            "role": DATABASE_ROLE,
            "password_file": str(PASSWORD),
            "leader": self.machine.leader,
        }

    async def _answers(self) -> None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                while (await self.status())["state"] != "RUNNING":  # noqa: ASYNC110 - no event there
                    await asyncio.sleep(0.1)
        except TimeoutError:
            tail = self.machine.console.read_text(errors="replace")[-1000:]
            raise CommandFailed(f"PostgreSQL does not answer: {tail}") from None

    def _seed(self, root: Path) -> None:
        folder = root / "etc/postgresql"
        (folder / "15/main/conf.d/rehearsal.conf").write_text(CONFIGURATION)
        (folder / "15/main/pg_hba.conf").write_text(ACCESS)
        certificate, key = self._authority.issue([DATABASE, "database"])
        shutil.copy(certificate, folder / "server.crt")
        shutil.copy(key, folder / "server.key")
        owner = (folder / "15/main").stat()
        for file in ("server.crt", "server.key", "15/main/pg_hba.conf"):
            shutil.chown(folder / file, owner.st_uid, owner.st_gid)

    async def _ended(self, _code: int) -> None:
        await self.machine.start()
