"""The ways to one server: Google's API, its shell, its own API. Each is opened when first needed.

What comes back from the machine is freed of secrets here, before it can become a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import flow_run

from blocks.compute import Run
from blocks.iap import IapTarget
from blocks.secrets import Secrets, load_block
from blocks.shell import Command, Result
from blocks.ssh import SshShell
from flows.errors import BootstrapError, Unreachable
from flows.resources.instance import Instance
from flows.resources.orchestration import NO_TLS
from flows.spec import ServerSpec

if TYPE_CHECKING:
    from blocks.compute import Compute
    from blocks.target import ServerTarget

PATIENCE, IMPATIENCE = 180.0, 20.0
"""Seconds to wait for a machine that boots, and for one that should be there."""
ANSWER = 20.0
"""Seconds for Google's API to say how a machine is."""


@dataclass
class Reach:
    """Ways to the server of a spec; a context that closes what it opened.

    It is a Shell. ``waits``: machine and server may still start; otherwise one failure to connect is
    remembered, and is the answer to every later command or request.
    """

    spec: ServerSpec
    target: ServerTarget
    secrets: Secrets
    as_run: Run
    waits: bool = True
    _open: ExitStack = field(default_factory=ExitStack)
    _ssh: SshShell | None = None
    _api: SyncPrefectClient | None = None
    _over: int = 0
    """The connection that the client goes through."""
    _failure: BootstrapError | None = None
    _silence: Unreachable | None = None
    _alone: RLock = field(default_factory=RLock)
    _compute: Compute | None = None
    _first: Lock = field(default_factory=Lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def compute(self) -> Compute:
        """The client of Google's API."""
        with self._first:
            if self._compute is None:
                self._compute = self.target.compute(self.spec.project, self.as_run)
            return self._compute

    @property
    def zone(self) -> str:
        """The zone in which the machine is. Raises BootstrapError."""
        return Instance(self.spec).zone(self.compute())

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        results = self.ssh().run(commands, together=together)
        clean = self.secrets.redact
        return [Result(r.code, clean(r.stdout), clean(r.stderr)) for r in results]

    def ssh(self) -> SshShell:
        """The connection to the machine. Raises Unreachable, Final."""
        with self._alone:
            if self._failure and not self.waits:
                raise self._failure
            if self._ssh is None:
                try:
                    self._ssh = self._open.enter_context(self._shell())
                except BootstrapError as error:
                    self._failure = error
                    raise
            return self._ssh

    def api(self) -> SyncPrefectClient:
        """A client of the new server, through the machine's loopback; another one after a restart
        of the machine, which ends every connection to it. Raises Unreachable."""
        with self._alone:
            connection = self.ssh().connection()
            if self._api is None or connection != self._over:
                self._over = connection
                port = self._open.enter_context(self.ssh().forward(self.spec.server.port))
                url = f"http://127.0.0.1:{port}/api"
                client = SyncPrefectClient(
                    url,
                    auth_string=self.secrets.auth_string,
                    httpx_settings={"verify": NO_TLS},
                )
                self._api = self._open.enter_context(client)
                self._silence = None if self.waits else self._silent(url)
            if self._silence and not self.waits:
                raise self._silence
            return self._api

    def _silent(self, url: str) -> Unreachable | None:
        """What keeps the server from answering. Prefect's client would try again, for every request."""
        try:
            httpx.get(f"{url}/health", timeout=IMPATIENCE, verify=NO_TLS, trust_env=False)
        except httpx.TransportError as error:
            said = str(error).rstrip(".") or type(error).__name__
            repair = f"On {self.spec.name}: journalctl --unit prefect-server"
            return Unreachable(f"the server does not answer: {said}.", repair=repair)
        return None

    def _shell(self) -> SshShell:
        spec = self.spec
        return SshShell(
            IapTarget(spec.project, self.zone, spec.name),
            spec.machine.ssh_user,
            self.target.ssh_private_key.get_secret_value(),
            self._host_keys,
            self.status,
            self.target.token,
            PATIENCE if self.waits else IMPATIENCE,
            self.target.tunnel,
        )

    def status(self) -> str:
        """What Google says of the machine, such as RUNNING. Raises BootstrapError."""
        compute = self.compute()
        get = compute.service.instances().get(**self._where, fields="status")
        found = compute.read(get, seconds=ANSWER)
        return str(found["status"]) if found else "not there"

    @property
    def _where(self) -> dict[str, str]:
        return {"project": self.spec.project, "zone": self.zone, "instance": self.spec.name}

    def _host_keys(self) -> list[str]:
        """As the guest agent publishes them: "type base64"; none before its first boot is over."""
        compute = self.compute()
        get = compute.service.instances().getGuestAttributes(**self._where, queryPath="hostkeys/")
        found: dict[str, Any] = compute.read(get) or {}
        items = found.get("queryValue", {}).get("items", [])
        return [f"{item['key']} {item['value'].split()[0]}" for item in items]


def reached(block: str) -> ServerTarget:
    """The ServerTarget block of that name. Raises Final."""
    from blocks.target import ServerTarget  # prefect-gcp: a second, not for prefect deploy

    return load_block(ServerTarget, block, "Save one: python -m blocks")


def this_run() -> Run:
    """The flow run we are in."""
    return Run(UUID(flow_run.get_id()), flow_run.get_run_count())
