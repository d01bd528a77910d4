"""The laptop: a Prefect server, a process worker and a tunnel to the new server, on this machine.

Each is a process in a control group of its own, so that the next ``run`` finds it and ``down`` ends
it whatever happened to the one that started it. Everything they write lies in one folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rehearsal import host
from rehearsal.cgroups import Cgroup
from rehearsal.config import CACHE, LAPTOP_PORT, NAME, STATE
from rehearsal.control import Failed

FOLDER = STATE / "laptop"
HOME = FOLDER / "home"
TEMPLATE = CACHE / f"prefect-{version('prefect')}"
"""A home with an empty database: a copy of it saves migrations and block types."""
START_SECONDS, FINISH_SECONDS = 120.0, 180.0


@dataclass(frozen=True)
class Process:
    """A process that outlives the command that started it."""

    name: str

    def start(
        self, *argv: str, environment: Mapping[str, str] | None = None, cwd: Path = FOLDER
    ) -> subprocess.Popen[bytes]:
        """Start it in place of whatever is left of an earlier one."""
        self.end()
        self._group.create()
        (FOLDER / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                [*self._group.enter(), *argv],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._pid.write_text(str(process.pid))
        deadline = time.monotonic() + START_SECONDS
        while not self.running() and process.poll() is None:  # until it has joined its group
            if time.monotonic() > deadline:
                raise self.failed(f"{' '.join(argv)} did not start")
            time.sleep(0.005)
        return process

    def finish(self, process: subprocess.Popen[bytes], what: str) -> None:
        """Wait for what ``start`` returned to end well; errors call it ``what``."""
        try:
            code = process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            self._group.end()
            raise self.failed(f"{what} did not end in {FINISH_SECONDS:.0f} s") from None
        if code:
            raise self.failed(f"{what} ended with exit code {code}")

    def running(self) -> bool:
        return self._pid.exists() and int(self._pid.read_text()) in self._group.processes()

    def end(self) -> None:
        self._group.end()
        for file in (self._pid, self.url):
            file.unlink(missing_ok=True)

    def failed(self, what: str) -> Failed:
        """The error that says ``what`` and the end of its output."""
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return Failed(f"{what}; its log is {self.log} and ends: {text[-1000:] or '(empty)'}")

    @property
    def log(self) -> Path:
        return FOLDER / f"{self.name}.log"

    @property
    def url(self) -> Path:
        """The file that has its URL, once that answers."""
        return FOLDER / f"{self.name}.url"

    @property
    def _pid(self) -> Path:
        return FOLDER / f"{self.name}.pid"

    @property
    def _group(self) -> Cgroup:
        return Cgroup(f"laptop-{self.name}")


SERVER, WORKER, TUNNEL = Process("server"), Process("worker"), Process("tunnel")
URLS = {"laptop": SERVER, "server": TUNNEL}
"""Whose Prefect → the process that makes it answer on loopback."""


def urls() -> dict[str, str]:
    """The Prefect UIs that can be opened now; empty when there are none."""
    return {
        whose: process.url.read_text()
        for whose, process in URLS.items()
        if process.running() and process.url.exists()
    }


def settings() -> dict[str, str]:
    """Prefect's settings on the laptop, and nothing of the caller's own Prefect.

    Flow runs put their temporary files under the folder, too: ``down`` removes it after any crash.
    """
    return {
        "PREFECT_HOME": str(HOME),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "TMPDIR": str(FOLDER / "tmp"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def serve() -> None:
    """Start the laptop's Prefect server, unless it runs. Does not wait for it.

    It calls nothing of Google's and so needs no view of the cloud: it starts while that comes up.
    """
    if SERVER.running():
        return
    WORKER.end()  # it and the tunnel belong to the server that is gone
    TUNNEL.end()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | settings()
    if not HOME.exists() and TEMPLATE.exists():
        shutil.copytree(TEMPLATE, HOME)
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = str(free_port(LAPTOP_PORT))
    environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"  # which its UI calls, too
    SERVER.start(
        *("prefect", "server", "start", "--host", "127.0.0.1", "--port", port),
        environment=environment,
    )
    (FOLDER / "port").write_text(port)


def served() -> str:
    """The URL of the laptop's Prefect server, once it answers."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url := planned()):
        if not SERVER.running() or time.monotonic() > deadline:
            raise SERVER.failed("the laptop's Prefect server did not start")
        time.sleep(0.1)
    if not TEMPLATE.exists():
        _keep_template()
    SERVER.url.write_text(url)
    return url


def planned() -> str:
    """Its URL, from when it was started."""
    return f"http://127.0.0.1:{(FOLDER / 'port').read_text()}"


def enter() -> None:
    """Make this process, and what it starts, one of the laptop: in the cloud's view, with its
    credentials, and with the laptop's Prefect, which need not answer yet."""
    kept = {k: v for k, v in host.environment().items() if not k.startswith("PREFECT_")}
    own = {**kept, **settings(), "PREFECT_API_URL": f"{planned()}/api"}
    os.environ.clear()
    os.environ.update(own)
    host.enter()


def answers(url: str) -> bool:
    """Whether a Prefect server answers there."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/api/health", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_port(wanted: int) -> int:
    """``wanted``, or another when that is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Failed("no port is free on 127.0.0.1: end what holds them")


def _keep_template() -> None:
    """Keep a copy of the new server's database, for the clouds to come."""
    part = TEMPLATE.with_name(f"{TEMPLATE.name}.{NAME}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    # Which block types it holds; without this, the server would write them all again.
    shutil.copy(HOME / "memo_store.toml", part)
    with (
        closing(sqlite3.connect(HOME / "prefect.db")) as live,
        closing(sqlite3.connect(part / "prefect.db")) as copy,
    ):
        live.backup(copy)
    try:
        part.rename(TEMPLATE)
    except OSError:  # another cloud's laptop was first
        shutil.rmtree(part)
