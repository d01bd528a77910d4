"""Everything a server is made of, in order, stage by stage: the only definition of desired state.

A pure function of the spec and the secrets' values; nothing in it has to exist yet. The machine is
finished and the database migrated before anything runs on them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Protocol

from flows.errors import Final
from flows.resources.apt import Packages
from flows.resources.files import Absent, Directory, File, User
from flows.resources.filesystem import RootFileSystem
from flows.resources.postgres import Database, Schema
from flows.resources.python import Installation, OwnPackage, Tool, Uv, WorkerEnvironment
from flows.resources.shell import MachineKind
from flows.resources.sshd import RELOAD, VALID, Sshd
from flows.resources.systemd import UNITS, Service
from flows.resources.wheelhouse import Wheelhouse

if TYPE_CHECKING:
    from flows.reconcile import Resource
    from flows.resources.orchestration import Api
    from flows.spec import ServerSpec

STAGES = ("cloud", "machine", "database", "prefect")
USER, HOME, OPT = "prefect", "/var/lib/prefect", "/opt/prefect"
SERVER, WORKER = f"{HOME}/.prefect", f"{HOME}/worker"
"""Working directories, each with its prefect.toml: Prefect reads it there and nowhere else."""
POOL = "server"
CHECK = "check-health"
WATCHING = ("bootstrap-server", "check-drift", "check-server")
"""The flows on the laptop's server, each deployed under the server's name."""
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
HEARTBEAT_SECONDS = 180
"""Between a run's signs of life: Prefect's default, which the clients' workers have, too."""
_HERE = Path(__file__).parent


class Secrets(Protocol):
    """Values that are in no state and no argument."""

    @property
    def auth_string(self) -> str: ...
    @property
    def database_url(self) -> str: ...


@dataclass(frozen=True)
class Server:
    """One server, as its spec has it."""

    spec: ServerSpec
    secrets: Secrets = field(repr=False)

    @property
    def place(self) -> Installation:
        """Where Prefect lies: another lock is another directory."""
        version, uv = self.spec.prefect.version, self.spec.prefect.uv_version
        lock = locked("prefect", version)
        root = f"{OPT}/{version}-{hashlib.sha256(lock.encode()).hexdigest()[:8]}"
        wheels = f"{OPT}/wheels" if self.spec.prefect.install_from == "laptop" else ""
        program = Uv(uv, f"{OPT}/uv-{uv}", locked("uv", uv), wheels)
        return Installation(version, root, lock, program, f"{OPT}/cache")

    def sources(self) -> tuple[list[MachineKind], list[MachineKind]]:
        """What the programs come from: Debian's packages first, and the laptop's wheels.

        From the laptop, nothing that Google's image lacks is needed from Debian's archive.
        """
        place = self.place
        if not place.uv.wheels:
            # Google's image has the last; where one is missing, it costs apt 8 s.
            return [Packages(("ca-certificates", "python3-venv", "unattended-upgrades"))], []
        return [], [Wheelhouse(place.uv.wheels, (place.lock, place.uv.lock))]

    def machine(self) -> list[MachineKind]:
        """Debian, users, files and programs; nothing is started.

        Who logs in stays root by sudo, as Google's guest agent has it: the flows run Python as root,
        so a sudoers file that allows just that allows everything. Nor are their names listed in
        sshd's settings: with a new one in ``ServerTarget``, nobody could log in to change the list.
        """
        own = f"{USER}:{USER}"
        journald = (("systemctl", "restart", "systemd-journald.service"),)
        sshd = _template("sshd.conf")
        packages, wheels = self.sources()
        return [
            RootFileSystem(),
            *packages,
            User(USER, HOME),
            Directory(OPT),
            Directory(HOME, "700", own),
            Directory(SERVER, "700", own),
            Directory(WORKER, "700", own),
            *wheels,
            *(kind for kinds in self.beside().values() for kind in kinds),
            Directory("/etc/systemd/journald.conf.d"),
            File(
                "/etc/systemd/journald.conf.d/prefect.conf",
                _template("journald.conf"),
                then=journald,
            ),
            File("/etc/apt/apt.conf.d/99prefect.conf", _template("apt.conf")),
            File("/etc/ssh/sshd_config.d/00-prefect.conf", sshd, then=(RELOAD,), valid=VALID),
            Sshd(sshd),
            File(f"{SERVER}/prefect.toml", self._server_toml(), "600", own),
            File(f"{WORKER}/prefect.toml", self._worker_toml(), "600", own),
            Absent(f"{SERVER}/.env"),  # Prefect reads it there, too, and prefers it
            Absent(f"{WORKER}/.env"),
            File(f"{UNITS}/prefect-server.service", self._unit("server", SERVER)),
            File(f"{UNITS}/prefect-worker.service", self._unit("worker", WORKER)),
        ]

    def beside(self) -> dict[str, list[MachineKind]]:
        """What of the machine is made while others are, by the stage that needs it."""
        place = self.place
        return {
            "database": [place.uv, WorkerEnvironment(place)],
            "prefect": [Tool(place), OwnPackage(place)],
        }

    def database(self) -> list[MachineKind]:
        """PostgreSQL as the machine sees it, through the Prefect of the worker's environment."""
        there = (f"{self.place.worker}/bin/python", SERVER, USER)
        return [Database(*there), Schema(*there, prefect_home=SERVER)]

    def services(self) -> tuple[Service, Service]:
        """The server and the worker, running."""
        health = f"http://127.0.0.1:{self.spec.server.port}/api/health"
        return Service("prefect-server.service", health), Service("prefect-worker.service")

    def prefect(self, api: Api) -> list[Resource]:
        """What the running server says of itself, and what it has to hold."""
        from flows.resources import automation  # Prefect's client: not for a pure import
        from flows.resources import deployment as made
        from flows.resources import orchestration as of

        check = made.Deployment(
            api,
            flow=CHECK,
            deployment=self.spec.name,
            entrypoint="flows.health.check_health",
            pool=POOL,
            interval=self.spec.self_check.interval_seconds,
            parameters={"server": self.spec.model_dump(mode="json", exclude_defaults=True)},
            version=self._version(),
        )
        return [
            of.Answers(api, self.spec.prefect.version, self._settings()),
            of.WorkPool(api, POOL),
            check,  # soon: it takes the server's scheduler seconds to make a run
            automation.zombies(api, silence=3 * HEARTBEAT_SECONDS),
            automation.strays(api, self.spec.name, seconds=HEARTBEAT_SECONDS),
            of.Worker(api, POOL, self.spec.name),
            made.SelfCheck(check),
        ]

    def notifications(self, api: Api, laptop: Api) -> list[Resource]:
        """Who is told, and by whom, when a run that looks after the server fails."""
        from flows.resources import automation

        name, block = self.spec.name, self.spec.notify
        if not block:
            return []
        return [
            automation.NotificationBlock(api, laptop, block),
            automation.failures(api, "notify-self-check", name, [CHECK], block),
            automation.failures(laptop, f"notify-{name}", name, WATCHING, block),
        ]

    def _settings(self) -> dict[str, str | int | bool | tuple[str, ...]]:
        """What the server must report as effective; ISO 8601 durations, as its API writes them."""
        server = self.spec.server
        return {
            "server.api.host": "0.0.0.0",  # noqa: S104 - the firewall says who reaches it
            "server.api.port": server.port,
            "server.ui.api_url": server.ui_api_url,
            "server.ui.static_directory": f"{SERVER}/ui",
            "server.database.migrate_on_start": True,
            "server.database.sqlalchemy.connect_args.application_name": self.spec.name,
            "server.events.retention_period": f"P{server.events_days}D",
            "server.concurrency.lease_storage": LEASES,
            "server.services.db_vacuum.enabled": ("events", "flow_runs"),
            "server.services.db_vacuum.retention_period": f"P{server.flow_runs_days}D",
        }

    def _version(self) -> str:
        """Another one for everything that a self-check proves: code, versions, settings."""
        code = OwnPackage(self.place).desired()["digest"]
        proven = f"{code} {self.place.root} {self.spec.server!r}"
        return hashlib.sha256(proven.encode()).hexdigest()[:12]

    def _server_toml(self) -> str:
        server = self.spec.server
        return _template(
            "server.toml",
            directory=SERVER,
            name=_quoted(self.spec.name),
            port=server.port,
            auth_string=_quoted(self.secrets.auth_string),
            ui_api_url=_quoted(server.ui_api_url),
            database_url=_quoted(self.secrets.database_url),
            events_days=server.events_days,
            flow_runs_seconds=server.flow_runs_days * 86400,
            leases=_quoted(LEASES),
        )

    def _worker_toml(self) -> str:
        auth = _quoted(self.secrets.auth_string)
        return _template(
            "worker.toml",
            port=self.spec.server.port,
            auth_string=auth,
            heartbeat=HEARTBEAT_SECONDS,
        )

    def _unit(self, which: str, directory: str) -> str:
        place = self.place
        program = {"server": place.prefect, "worker": f"{place.worker}/bin/prefect"}[which]
        return _template(
            f"prefect-{which}.service",
            name=self.spec.name,
            user=USER,
            home=HOME,
            directory=directory,
            unit=f"{UNITS}/prefect-{which}.service",
            prefect=program,
            proven=place.proven,
            pool=POOL,
            port=self.spec.server.port,
            hardening=_template("hardening.conf", home=HOME),
        )


def locked(program: str, version: str) -> str:
    """The lock of a program at a version. Raises Final when there is none."""
    path = _HERE / "locks" / f"{program}-{version}.txt"
    if not path.exists():
        there = [other.stem.partition("-")[2] for other in path.parent.glob(f"{program}-*.txt")]
        raise Final(
            f"There is no lock for {program} {version}, only for {', '.join(sorted(there))}.",
            repair=f"Make it with: make lock PROGRAM={program} VERSION={version}",
        )
    return path.read_text()


def _template(name: str, /, **values: str | int) -> str:
    return Template((_HERE / "templates" / name).read_text()).substitute(values)


def _quoted(text: str) -> str:
    """A TOML string; the checks of the spec let nothing but printable ASCII through."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
