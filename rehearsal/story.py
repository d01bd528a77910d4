"""The story of a rehearsal: save blocks, deploy, bootstrap, and look at the new server.

A laptop's Prefect deploys the checkout, its worker bootstraps the server ``prefect-1``, the server
checks itself on schedule, and a drift check finds nothing. Everything is left running, so that both
UIs can be opened.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from rich.markup import escape

from rehearsal import follow, laptop
from rehearsal.config import SERVER_PORT
from rehearsal.control import Failed, err, told
from rehearsal.errors import Json
from rehearsal.iam import ACT_AS
from rehearsal.iam import TUNNEL as THROUGH_IAP
from rehearsal.laptop import SERVER, TUNNEL, WORKER, Process
from rehearsal.seed import seed

NAME = "prefect-1"
BOOTSTRAP, DRIFT, HEALTH = f"bootstrap-server/{NAME}", f"check-drift/{NAME}", f"check-health/{NAME}"
ANSWERS, LAST = "prefect: server's answers", "prefect: self-check"
"""The steps that end when the new server answers, and when all is done."""
BOOTSTRAP_SECONDS, DRIFT_SECONDS, HEALTH_SECONDS, TUNNEL_SECONDS = 600.0, 120.0, 180.0, 60.0


BESIDE_THE_ROLE = (ACT_AS, THROUGH_IAP, "secretmanager.versions.access")
"""What the README grants more narrowly than for the project."""


def tell(url: str, checkout: Path) -> Json:
    """Rehearse what ``checkout`` deploys with the laptop's Prefect at ``url``; what came of it.

    Raises Failed at the first thing that is not as it should be.
    """
    began = time.monotonic()
    with follow.api(url) as client:
        auth = prepare(client, checkout)
        seconds = time.monotonic() - began
        err.print(f"blocks, deployments and secrets are made ({seconds:.1f} s)")
        with _no_more_than_granted(checkout):
            return _bootstrapped(client, url, auth, checkout)


@contextmanager
def _no_more_than_granted(checkout: Path) -> Iterator[None]:
    """Meanwhile the account may do what the README grants it, and nothing else."""
    role = yaml.safe_load((checkout / "role.yaml").read_text())["includedPermissions"]
    told("POST", "/role", {"permissions": [*role, *BESIDE_THE_ROLE]})
    try:
        yield
    finally:
        told("POST", "/role", {"permissions": None})


def _bootstrapped(client: httpx.Client, url: str, auth: str, checkout: Path) -> Json:
    began = time.monotonic()
    run = follow.start(client, BOOTSTRAP)
    drift: list[str] = []
    at = {
        ANSWERS: lambda: None if TUNNEL.running() else _open_tunnel(checkout),
        LAST: lambda: drift.append(follow.start(client, DRIFT)),  # beside what only looks
    }
    state = _follow(client, run, BOOTSTRAP, BOOTSTRAP_SECONDS, at)
    seconds = time.monotonic() - began
    if not drift:  # the last step was reported after the end of its run
        drift.append(follow.start(client, DRIFT))
    rows = follow.table(client, f"{NAME}-resources", run)
    err.print(f"{BOOTSTRAP}: {state} ({seconds:.1f} s); its drift check:")
    server = reach(checkout)
    with (
        err.status("waiting for the new server's first scheduled check of itself"),
        follow.api(server, auth) as there,
    ):
        health = follow.scheduled(there, HEALTH, HEALTH_SECONDS)
    err.print(f"the new server has checked itself on schedule: {health['name']}")
    return {
        "bootstrap": {
            "state": state,
            "seconds": round(seconds, 1),
            "resources": [_resource(row) for row in rows],
        },
        "self_check": {
            "state": health["name"],
            "message": health["message"],
            "scheduled": True,
        },
        "drift": {"state": _follow(client, drift[0], DRIFT, DRIFT_SECONDS)},
        "urls": {"laptop": url, "server": server},
    }


def prepare(client: httpx.Client, checkout: Path) -> str:
    """Worker, blocks, secrets and what prefect.yaml there deploys, side by side. Returns the new
    server's auth string."""
    if not WORKER.running():
        follow.open_pool(client, "laptop")
        worker = ("prefect", "worker", "start", "--pool", "laptop", "--type", "process")
        WORKER.start(*worker, cwd=checkout)
    with err.status("saving the blocks and deploying the flows"):
        commands = {
            Process("blocks"): ("python", "-m", "blocks"),
            Process("deploy"): ("prefect", "deploy", "--all"),
        }
        started = {one: one.start(*argv, cwd=checkout) for one, argv in commands.items()}
        auth = seed()
        for one, process in started.items():
            one.finish(process, " ".join(commands[one]))
    return auth


def _follow(
    client: httpx.Client,
    run: str,
    deployment: str,
    seconds: float,
    at: Mapping[str, Callable[[], None]] | None = None,
) -> str:
    """The name of the state the run completed with; its steps are shown as they end.

    ``at`` says what to do when a step of that name has completed.
    """
    shown: set[str] = set()
    with err.status(deployment) as status:

        def show(tasks: list[Json]) -> None:
            ended = [task for task in tasks if task["end_time"] and task["id"] not in shown]
            for task in sorted(ended, key=lambda task: str(task["end_time"])):
                shown.add(task["id"])
                _line(task)
                if at and task["name"] in at and task["state_type"] == "COMPLETED":
                    at[task["name"]]()
            now = [task["name"] for task in tasks if task["state_type"] == "RUNNING"]
            status.update(escape(f"{deployment}: {', '.join(now) or 'waiting'}"))
            if not WORKER.running():
                raise WORKER.failed(f"the laptop's worker ended during {deployment}")

        state = follow.follow(client, run, seconds, show)
    if state["type"] == "COMPLETED":
        return str(state["name"])
    if state["type"] not in follow.OVER:
        ended = f"did not end in {seconds:.0f} s ({follow.said(state)})"
    else:
        ended = f"ended {follow.said(state)}"
    where = f"{SERVER.url.read_text()}/runs/flow-run/{run}"
    raise Failed(f"{deployment} {ended}: see its logs at {where} or in {WORKER.log}")


def _line(task: Json) -> None:
    """``cloud    network prefect-1-net  1.2 s``"""
    stage, _, resource = task["name"].partition(": ")
    word = "" if task["state_type"] == "COMPLETED" else f"  [red]{task['state_name']}[/]"
    seconds = task["total_run_time"]
    err.print(f"  {escape(stage):9} {escape(resource)}  {seconds:.1f} s{word}", soft_wrap=True)


def _resource(row: Json) -> Json:
    """A row of the bootstrap's table, as the report has it."""
    return {
        "stage": row["stage"],
        "name": row["resource"],
        "outcome": row["outcome"],
        "changes": row["changes"],
        "seconds": row["seconds"],
    }


def reach(checkout: Path) -> str:
    """The new server's URL on loopback, through a tunnel that stays open."""
    if TUNNEL.running() and TUNNEL.url.exists() and laptop.answers(TUNNEL.url.read_text()):
        return TUNNEL.url.read_text()
    if not TUNNEL.running() or TUNNEL.url.exists():
        _open_tunnel(checkout)
    deadline = time.monotonic() + TUNNEL_SECONDS
    while True:
        said = re.match(r"http://127\.0\.0\.1:\d+", TUNNEL.log.read_text(errors="replace"))
        if said and laptop.answers(said[0]):
            TUNNEL.url.write_text(said[0])
            return said[0]
        if not TUNNEL.running() or time.monotonic() > deadline:
            raise TUNNEL.failed("python -m flows.connect did not reach the new server")
        time.sleep(0.1)


def _open_tunnel(checkout: Path) -> None:
    """Begin to open a tunnel to the new server, in place of one that does not answer."""
    TUNNEL.end()
    port = str(laptop.free_port(SERVER_PORT))
    TUNNEL.start("python", "-m", "flows.connect", "--server", NAME, "--port", port, cwd=checkout)
