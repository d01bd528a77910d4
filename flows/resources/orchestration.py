"""What lives in the new server itself, seen and made through its API.

The client is always of that server: inside a flow run, Prefect's own settings lead to the server
that runs the flow. Every wait has a deadline.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from flows.errors import Final
from flows.reconcile import Change, State, Value

Api = Callable[[], SyncPrefectClient]
"""Opens the client when it is first needed: before that, there is no server."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. To read all authorities takes 0.05 s, and on the loopback there is no TLS."""
ONLINE_SECONDS = 90.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Answers:
    """The server as it answers: its version, its effective settings, and whom it lets in."""

    api: Api = field(repr=False)
    version: str
    settings: State
    """Dotted path in the settings → value, as the API writes it."""

    @property
    def name(self) -> str:
        return "server's answers"

    def desired(self) -> State:
        return {
            "version": self.version,
            "without auth string": 401,
            "with auth string": 200,
            "UI": 200,
            "UI's API URL": self.settings["server.ui.api_url"],
            **self.settings,
        }

    def read(self) -> State:
        client = self.api()
        base = str(client.api_url).rstrip("/")
        with httpx.Client(timeout=30, verify=NO_TLS, trust_env=False) as stranger:
            refused = stranger.get(f"{base}/admin/version").status_code
            page = stranger.get(root := base.removesuffix("api"), follow_redirects=True).status_code
            ui = stranger.get(f"{root}ui-settings").json()["api_url"]
        answer = client._client.get("/admin/settings")
        effective = answer.json()
        return {
            "version": client.api_version(),
            "without auth string": refused,
            "with auth string": answer.status_code,
            "UI": page,
            "UI's API URL": ui,
            **{path: _at(effective, path) for path in self.settings},
        }

    def apply(self, changes: tuple[Change, ...]) -> None:
        raise Final(
            f"The server does not run as its configuration says: {'; '.join(map(str, changes))}.",
            repair="Look for a .env file or PREFECT_ variables that beat its prefect.toml.",
        )


@dataclass(frozen=True)
class WorkPool:
    """A pool of flow runs that are processes of the worker."""

    api: Api = field(repr=False)
    pool: str

    @property
    def name(self) -> str:
        return f"work pool {self.pool}"

    def desired(self) -> State:
        return {"type": "process", "paused": False}

    def read(self) -> State | None:
        try:
            pool = self.api().read_work_pool(self.pool)
        except ObjectNotFound:
            return None
        return {"type": pool.type, "paused": pool.is_paused}

    def apply(self, changes: tuple[Change, ...]) -> None:
        if changes[0].missing:
            self.api().create_work_pool(WorkPoolCreate(name=self.pool, type="process"))
        elif any(change.attribute == "type" for change in changes):
            raise Final(
                f"Work pool {self.pool} is of another type, which cannot be changed.",
                repair=f"Delete it (prefect work-pool delete {self.pool}) and run again.",
            )
        else:
            self.api().update_work_pool(self.pool, WorkPoolUpdate(is_paused=False))


@dataclass(frozen=True)
class Worker:
    """A worker that has reported to its pool lately."""

    api: Api = field(repr=False)
    pool: str
    worker: str

    @property
    def name(self) -> str:
        return f"worker {self.worker}"

    def desired(self) -> State:
        return {"status": "ONLINE"}

    def read(self) -> State | None:
        try:
            workers = self.api().read_workers_for_work_pool(self.pool)
        except PrefectHTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:  # gone with its pool
                return None
            raise
        found = [each for each in workers if each.name == self.worker]
        return {"status": str(found[0].status.value)} if found else None

    def apply(self, changes: tuple[Change, ...]) -> None:
        """Its service is running: wait for its first heartbeat."""
        deadline = time.monotonic() + ONLINE_SECONDS
        while self.read() != self.desired():
            if time.monotonic() > deadline:
                raise Final(
                    f"Worker {self.worker} has not reported in {ONLINE_SECONDS:.0f} s.",
                    repair="See its journal: journalctl --unit prefect-worker.",
                )
            time.sleep(POLL_SECONDS)


def _at(settings: Any, path: str) -> Value:
    """The value at a dotted path; a list as a sorted tuple."""
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return tuple(sorted(settings)) if isinstance(settings, list) else settings
