"""The server from within: its catalog, and what the service user can see of it, without ssh or root.

The catalog needs the secrets, so they are read where the server reads them, in its own prefect.toml.
What is compared there is thus the file's form, and that the worker's file has the same auth string.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

from blocks.secrets import Secrets
from blocks.shell import LocalShell, Shell
from flows.catalog import SERVER, USER, Server
from flows.checks.database import Pressure
from flows.checks.machine import Vitals
from flows.errors import Final
from flows.reconcile import Resource, State
from flows.resources.deployment import SelfCheck
from flows.resources.files import File
from flows.resources.orchestration import Answers, Worker
from flows.resources.postgres import Database, Schema
from flows.resources.python import OwnPackage
from flows.resources.shell import MachineKind, OnMachine, on_machine
from flows.spec import ServerSpec


@dataclass
class Own:
    """The server that runs this. Every member raises what keeps it from being known; machine and
    database are looked at in one round trip, when the first of them is asked for."""

    spec: ServerSpec
    client: SyncPrefectClient
    shell: Shell = field(default_factory=LocalShell)
    directory: str = SERVER

    @cached_property
    def secrets(self) -> Secrets:
        """As the server has them. Raises OSError, Final."""
        file = Path(self.directory, "prefect.toml")
        try:
            server = tomllib.loads(file.read_text())["server"]
            return Secrets(server["api"]["auth_string"], server["database"]["connection_url"])
        except (KeyError, TypeError, ValueError):  # whose messages may quote a secret
            raise Final(
                f"{file} lacks the auth string or the database's URL, or is no TOML.",
                repair="Run bootstrap-server.",
            ) from None

    @cached_property
    def server(self) -> Server:
        return Server(self.spec, self.secrets)

    @cached_property
    def settings(self) -> list[Resource]:
        return [each for each in self._asked if isinstance(each, Answers)]

    @cached_property
    def schema(self) -> list[Resource]:
        return [each for each in self._there if isinstance(each.kind, Schema)]

    @cached_property
    def others(self) -> list[Resource]:
        """All else of the catalog that can be compared here and has no check of its own."""
        special = (Vitals, Pressure, Schema)
        there = [each for each in self._there if not isinstance(each.kind, special)]
        asked = [e for e in self._asked if not isinstance(e, Answers | Worker | SelfCheck)]
        return [*there, *asked]

    @cached_property
    def left(self) -> list[str]:
        """What cannot be compared here, by name."""
        return [kind.name for kind in self.server.machine() if not readable(kind)]

    def vitals(self) -> State:
        return self._state(Vitals)

    def pressure(self) -> State:
        return self._state(Pressure)

    def _state(self, kind: type[MachineKind]) -> State:
        [found] = [each for each in self._there if isinstance(each.kind, kind)]
        return found.read() or {}

    @cached_property
    def _asked(self) -> list[Resource]:
        return self.server.prefect(lambda: self.client)

    @cached_property
    def _there(self) -> list[OnMachine]:
        services = self.server.services()
        units = tuple(service.unit for service in services)
        kinds: Sequence[MachineKind] = [
            Vitals(
                units, self.spec.server.ui_api_url if self.spec.self_check.certificate_days else ""
            ),
            Pressure(sys.executable, self.directory, ""),
            *(kind for kind in self.server.machine() if readable(kind)),
            *map(_as_ourselves, self.server.database()),
            *services,
        ]
        return on_machine(self.shell, kinds)


def readable(kind: MachineKind) -> bool:
    """Whether the service user can compare it: not a file that only root may read, and not our own
    package, which would be compared with itself; the deployment's version tells of that one."""
    if isinstance(kind, File):
        return kind.owner == f"{USER}:{USER}" or bool(int(kind.mode, 8) & 0o004)
    return not isinstance(kind, OwnPackage)


def _as_ourselves(kind: MachineKind) -> MachineKind:
    """The service user may not become another one, nor has to."""
    return replace(kind, user="") if isinstance(kind, Database | Schema) else kind
