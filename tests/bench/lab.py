"""A rehearsal with one machine that is made anew as often as wanted, and what is measured on it.

The process that opens the lab enters the cloud's view, so that a command it times is a process as a
user starts it, and nothing more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import httpx
import yaml

from rehearsal import config, control, follow, laptop, story
from rehearsal.database import PASSWORD
from rehearsal.errors import Json
from tests.conftest import ROOT, Cloud
from tests.fleet import prepare, spec_of, sql

NAME = "prefect-1"
FLEET = [f"prefect-{number}" for number in range(2, 17)]
LONGEST = 900.0
"""Seconds for anything that is timed."""
CONNECTIONS = 500
"""PostgreSQL's own 100 are not enough for sixteen servers, each of which may hold fifteen."""
ROOM = ("CPUS=64", "CPUS_ALL_REGIONS=64", "SSD_TOTAL_GB=2000")
"""A new project's quotas are not enough for them either."""
DEPLOYED = (
    "flows.bootstrap.bootstrap_server",
    "flows.drift.check_drift",
)
EMPTY = [
    r"\connect postgres",
    f'DROP DATABASE IF EXISTS "{config.DATABASE_NAME}" WITH (FORCE)',
    f'CREATE DATABASE "{config.DATABASE_NAME}" OWNER "{config.DATABASE_ROLE}"',
]


@dataclass(frozen=True)
class Timed:
    """A process that came to its end."""

    seconds: float
    code: int
    output: str

    def well(self) -> Timed:
        """Itself, if it went well. Raises RuntimeError with the end of its output."""
        if self.code:
            raise RuntimeError(f"exit {self.code}: {self.output[-3000:]}")
        return self


def timed(*argv: str, stdin: str = "", cwd: Path, env: Mapping[str, str] | None = None) -> Timed:
    """Run a command; ``env`` is added to ours."""
    began = time.monotonic()
    done = subprocess.run(
        argv,
        input=stdin,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    return Timed(time.monotonic() - began, done.returncode, done.stdout)


@dataclass(frozen=True)
class Lab:
    """The cloud, the laptop's Prefect, and a folder of a project with many servers."""

    cloud: Cloud
    client: httpx.Client
    """Of the laptop's API."""
    url: str
    folder: Path
    auth: str
    """The auth string of every server that is called prefect-1."""

    @property
    def database_url(self) -> str:
        where = f"{config.DATABASE}:5432/{config.DATABASE_NAME}"
        return f"postgresql+asyncpg://{config.DATABASE_ROLE}:{PASSWORD.read_text()}@{where}?ssl=require"

    @property
    def specs(self) -> list[Json]:
        """Of every server, prefect-1 first, as prefect.yaml of this folder has them."""
        found: Json = yaml.safe_load((self.folder / "prefect.yaml").read_text())
        return [each["parameters"]["server"] for each in found["deployments"][:: len(DEPLOYED)]]

    def write(self, specs: Iterable[Json]) -> None:
        """prefect.yaml of this folder, with a bootstrap and a drift check for each server."""
        deployments = [
            {
                "name": spec["name"],
                "entrypoint": entrypoint,
                "parameters": {"server": spec, "target": "gcp"},
                "work_pool": {"name": "laptop"},
                "schedules": [],
            }
            for spec in specs
            for entrypoint in DEPLOYED
        ]
        project = {"name": "bench", "pull": [], "deployments": deployments}
        (self.folder / "prefect.yaml").write_text(yaml.safe_dump(project))

    # What is done to the machine

    def fresh(self) -> None:
        """An empty database, and a machine that answers SSH and on which nothing was done."""
        self.gone()
        self._machine()
        sql(self.cloud, *EMPTY)

    def gone(self) -> None:
        """Delete the machine, if there is one."""
        own = ("gcloud", "compute", "instances")
        off = ("--no-deletion-protection", "--quiet")
        if self.cloud.run(*own, "update", NAME, *off, check=False).returncode == 0:
            self.cloud.run(*own, "delete", NAME, "--quiet", timeout=120)
        for known in self.folder.glob("home*/.ssh/known_hosts"):
            known.unlink()

    def _machine(self) -> None:
        """As the flows' cloud stage makes it; also the ways of others to it: a key, and a token."""
        command = (sys.executable, "-m", "tests.bench.machine", str(self.folder))
        timed(*command, stdin=json.dumps(self.specs[0]), cwd=ROOT).well()

    def root(self, script: str, name: str = NAME) -> str:
        """Output of a shell script on a machine, as root."""
        return self.cloud.ctl("root", name, "--", "sh", "-c", script, timeout=300).stdout

    def far(self, milliseconds: float, megabits: float) -> None:
        """Put all machines as far away; (0, 0) is near."""
        how = ("--round-trip", str(milliseconds), "--rate", str(megabits))
        self.cloud.ctl("link", *(how if milliseconds else ("--near",)))

    # What is asked

    def requests(self) -> list[Json]:
        """Every request that Google's APIs got, oldest first."""
        return [json.loads(line) for line in config.LOG.read_text().splitlines()]

    def ordered(self, deployments: Iterable[str]) -> list[Json]:
        """The runs of deployments that are started at once, when all have ended. Raises RuntimeError
        when one has not ended well."""
        started = [follow.start(self.client, each) for each in deployments]
        for run in started:
            state = follow.follow(self.client, run, LONGEST, lambda _tasks: None)
            if state["type"] != "COMPLETED":
                raise RuntimeError(f"run {run} ended {follow.said(state)}")
        return [follow.ask(self.client, "GET", f"/flow_runs/{run}") for run in started]

    def last(self, flow: str) -> Json:
        """The run of a flow that ended last."""
        which = {"flows": {"name": {"any_": [flow]}}, "sort": "END_TIME_DESC", "limit": 1}
        [run] = follow.ask(self.client, "POST", "/flow_runs/filter", which)
        found: Json = run
        return found


def moment(run: Json, name: str) -> float:
    """A time of a flow run, such as ``end_time``, in seconds."""
    return datetime.fromisoformat(run[name]).timestamp()


@contextmanager
def opened() -> Iterator[Lab]:
    """The cloud and the laptop's Prefect, in place of what an earlier one has left."""
    with control.alone():
        control.start(beside=laptop.serve)
    try:
        laptop.enter()
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            follow.api(laptop.served()) as client,
        ):
            lab = Lab(Cloud(), client, laptop.served(), Path(folder), "")
            yield _prepared(lab)
    finally:
        subprocess.run([sys.executable, "-m", "rehearsal", "down"], cwd=ROOT, check=False)


def _prepared(lab: Lab) -> Lab:
    first = {
        "name": NAME,
        "project": config.PROJECT,
        "zone": config.ZONE,
        "auth_secret": {"block": "prefect-auth"},
        "database_url_secret": {"block": "prefect-database-url"},
    }
    lab.write([first, *(spec_of(name, first) for name in FLEET)])
    sql(lab.cloud, f"ALTER SYSTEM SET max_connections = {CONNECTIONS}")
    lab.cloud.ctl("database", "restart")
    for quota in ROOM:
        lab.cloud.ctl("fault", "--quota", quota)
    network = ("gcloud", "compute", "networks", "create", "fleet", "--subnet-mode=custom")
    lab.cloud.run(*network)
    auth = story.prepare(lab.client, lab.folder)
    prepare(lab.cloud, lab.url, FLEET)
    return replace(lab, auth=auth)
