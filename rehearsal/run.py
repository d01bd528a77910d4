"""The rehearsal, as a person lives it: seed two secrets, save blocks, deploy, bootstrap, look.

The story of the README on a cloud of this machine: a laptop's Prefect deploys the checkout, its
worker bootstraps the server ``prefect-1``, the server checks itself on schedule, and a drift check
finds nothing. Everything is left running, so that both UIs can be opened.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from rich.markup import escape
from rich.table import Table

from rehearsal import control, laptop
from rehearsal.config import SERVER_PORT
from rehearsal.control import Failed, err, out
from rehearsal.errors import Json
from rehearsal.laptop import SERVER, TUNNEL, WORKER, Process

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import TaskRun

NAME = "prefect-1"
BOOTSTRAP, DRIFT, HEALTH = f"bootstrap-server/{NAME}", f"check-drift/{NAME}", f"check-health/{NAME}"
BOOTSTRAP_SECONDS, DRIFT_SECONDS, HEALTH_SECONDS, TUNNEL_SECONDS = 600.0, 120.0, 180.0, 60.0
CHECKOUT = Path(__file__).parent.parent


def rehearse(report: Path | None, checkout: Path = CHECKOUT) -> None:
    """Rehearse what ``checkout`` deploys; ``report`` gets what came of it, as JSON.

    Raises Failed, and leaves everything running, at the first thing that is not as it should be.
    """
    if report and not report.absolute().parent.is_dir():
        raise Failed(f"{report} cannot be written: make its directory first")
    try:
        found = _rehearse(checkout)
    except httpx.HTTPError as error:
        logs = f"{SERVER.log} and {TUNNEL.log}"
        raise Failed(f"a Prefect server failed to answer ({error!r}): see {logs}") from error
    if report:
        report.write_text(json.dumps(found, indent=2) + "\n")
    _summary(found)
    if found["drift"]["state"] != "Unchanged":
        raise Failed(f"{DRIFT} says {found['drift']['state']} right after the bootstrap")


def _rehearse(checkout: Path) -> Json:
    began = time.monotonic()
    with control.alone():
        if control.is_up():
            laptop.serve()
        else:
            control.start(beside=laptop.serve)
    laptop.enter()
    # Prefect reads its settings when it is imported: from here on they are the laptop's. And it
    # takes a second, in which the server gets ready.
    from prefect.client.orchestration import SyncPrefectClient

    from rehearsal import follow

    url = laptop.served()
    with SyncPrefectClient(f"{url}/api") as client:
        auth = _prepare(client, checkout)
        err.print(f"the laptop is ready at {url} ({time.monotonic() - began:.1f} s)")
        bootstrapped = time.monotonic()
        run = follow.start(client, BOOTSTRAP)
        state = _follow(client, run, BOOTSTRAP, BOOTSTRAP_SECONDS)
        found: Json = {
            "bootstrap": {
                "state": state,
                "seconds": round(time.monotonic() - bootstrapped, 1),
                "resources": _resources(follow.table(client, f"{NAME}-resources", run)),
            }
        }
        drift = follow.start(client, DRIFT)
        server = _reach(checkout)
        with (
            err.status("waiting for the new server's first scheduled check of itself"),
            SyncPrefectClient(f"{server}/api", auth_string=auth) as there,
        ):
            health = follow.scheduled(there, HEALTH, HEALTH_SECONDS)
        err.print(f"the new server has checked itself on schedule: {health.name}")
        found["self_check"] = {"state": health.name, "scheduled": True}
        found["drift"] = {"state": _follow(client, drift, DRIFT, DRIFT_SECONDS)}
    found["urls"] = {"laptop": url, "server": server}
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def _prepare(client: SyncPrefectClient, checkout: Path) -> str:
    """Worker, blocks, deployments and secrets, side by side. Returns the new server's auth string."""
    from rehearsal import follow

    if not WORKER.running():
        follow.open_pool(client, "laptop")
        worker = ("prefect", "worker", "start", "--pool", "laptop", "--type", "process")
        WORKER.start(*worker, cwd=checkout)
    with err.status("saving the blocks and deploying the flows"):
        commands = {
            Process("blocks"): (sys.executable, "-m", "blocks"),
            Process("deploy"): ("prefect", "deploy", "--all"),
        }
        started = {one: one.start(*argv, cwd=checkout) for one, argv in commands.items()}
        from rehearsal.seed import seed  # Google's client takes its time, too

        auth = seed()
        for one, process in started.items():
            one.finish(process)
    return auth


def _follow(client: SyncPrefectClient, run: UUID, deployment: str, seconds: float) -> str:
    """The name of the state the run completed with; its steps are shown as they end."""
    from prefect.client.schemas.objects import StateType

    from rehearsal import follow

    shown: set[UUID] = set()
    with err.status(deployment) as status:

        def show(tasks: list[TaskRun]) -> None:
            ended = [task for task in tasks if task.end_time and task.id not in shown]
            for task in sorted(ended, key=lambda task: str(task.end_time)):
                shown.add(task.id)
                _line(task)
            now = [task.name for task in tasks if task.state_type == StateType.RUNNING]
            status.update(escape(f"{deployment}: {', '.join(now) or 'waiting'}"))
            if not WORKER.running():
                raise WORKER.failed(f"the laptop's worker ended during {deployment}")

        flow_run = follow.follow(client, run, seconds, show)
    state = flow_run.state
    if state is None or not state.is_final():
        words = follow.said(state) if state else "no state"
        ended = f"did not end in {seconds:.0f} s ({words})"
    elif state.is_completed():
        return str(state.name)
    else:
        ended = f"ended {follow.said(state)}"
    where = f"{SERVER.url.read_text()}/runs/flow-run/{run}"
    raise Failed(f"{deployment} {ended}: see its logs at {where} or in {WORKER.log}")


def _line(task: TaskRun) -> None:
    """``cloud    network prefect-1-net  1.2 s``"""
    from prefect.client.schemas.objects import StateType

    stage, _, resource = task.name.partition(": ")
    word = "" if task.state_type == StateType.COMPLETED else f"  [red]{task.state_name}[/]"
    seconds = task.total_run_time.total_seconds()
    err.print(f"  {escape(stage):9} {escape(resource)}  {seconds:.1f} s{word}", soft_wrap=True)


def _resources(rows: list[Json]) -> list[Json]:
    return [
        {
            "stage": row["stage"],
            "name": row["resource"],
            "outcome": row["outcome"],
            "changes": row["changed"],
            "seconds": row["seconds"],
        }
        for row in rows
    ]


def _reach(checkout: Path) -> str:
    """The new server's URL on loopback, through a tunnel that stays open."""
    if TUNNEL.running() and TUNNEL.url.exists() and laptop.answers(TUNNEL.url.read_text()):
        return TUNNEL.url.read_text()
    TUNNEL.end()
    url = f"http://127.0.0.1:{(port := laptop.free_port(SERVER_PORT))}"
    connect = (sys.executable, "-m", "flows.connect", "--server", NAME, "--port", str(port))
    TUNNEL.start(*connect, cwd=checkout)
    deadline = time.monotonic() + TUNNEL_SECONDS
    while url not in TUNNEL.log.read_text(errors="replace") or not laptop.answers(url):
        if not TUNNEL.running() or time.monotonic() > deadline:
            raise TUNNEL.failed(f"{' '.join(connect[1:])} did not reach the new server")
        time.sleep(0.1)
    TUNNEL.url.write_text(url)
    return url


def _summary(found: Json) -> None:
    columns = ("stage", "name", "outcome", "seconds")
    table = Table("stage", "resource", "outcome", "seconds", box=None)
    for row in found["bootstrap"]["resources"]:
        table.add_row(*(escape(str(row[column])) for column in columns))
    out.print(table)
    bootstrap, urls = found["bootstrap"], found["urls"]
    out.print(
        f"bootstrap {bootstrap['state']} in {bootstrap['seconds']} s, "
        f"self-check {found['self_check']['state']}, drift check {found['drift']['state']}, "
        f"all in {found['seconds']} s"
    )
    out.print(f"the laptop's Prefect: {urls['laptop']}")
    out.print(f"the new server:       {urls['server']} (its login is the secret prefect-auth:")
    login = "gcloud secrets versions access latest --secret=prefect-auth"
    out.print(f"    python -m rehearsal exec -- {login})")
    out.print("end all of it with: make down")
