"""The flow check-health: the server checks itself, where it runs.

Each check is a task run that says what it measured. Unhealthy fails the run, and so does what could
not be checked: that is never green.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import httpx
from prefect import State, flow, get_client, task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import WorkerStatus
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed

from blocks.shell import LocalShell
from flows.reconcile import diff
from flows.resources.postgres import Schema

DISK_FREE = 0.1
"""The share of a disk that has to be free."""
SECONDS = 30.0


class Unhealthy(Exception):
    """A check's bound is passed; the message says the figure and the bound."""


@task(name="api", task_run_name="API")
def check_api(port: int) -> str:
    """It answers, refuses a stranger, and lets us in."""
    settings = get_current_settings().api
    assert settings.auth_string is not None, "the worker's prefect.toml has it"  # noqa: S101
    user, _, password = settings.auth_string.get_secret_value().partition(":")
    base = f"http://127.0.0.1:{port}/api"
    with httpx.Client(base_url=base, timeout=SECONDS) as client:
        told = {
            "health": client.get("/health").status_code,
            "ready": client.get("/ready").status_code,
            "stranger": client.get("/admin/version").status_code,
            "ours": client.get("/admin/version", auth=(user, password)).status_code,
        }
    if told != {"health": 200, "ready": 200, "stranger": 401, "ours": 200}:
        raise Unhealthy(f"wrong answers: {told}")
    return "answers, and only to those with the auth string"


@task(name="database", task_run_name="database revision")
def check_database(directory: str) -> str:
    """The schema is at the head of the installed Prefect, with no invalid index."""
    schema = Schema(sys.executable, directory, user="", prefect_home=directory)
    [result] = LocalShell().run([schema.probe()])
    if changes := diff(schema.desired(), schema.parse(result)):
        raise Unhealthy("; ".join(map(str, changes)))
    return "at head"


@task(name="worker", task_run_name="worker")
def check_worker(pool: str) -> str:
    """A worker of the pool has reported lately."""
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool(pool)
    online = [worker.name for worker in workers if worker.status is WorkerStatus.ONLINE]
    if not online:
        raise Unhealthy(f"no worker of {pool} is online")
    return f"online: {', '.join(online)}"


@task(name="disk", task_run_name="disk")
def check_disk() -> str:
    """Enough of the disk is free."""
    usage = shutil.disk_usage("/")
    free = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB free"
    if usage.free < DISK_FREE * usage.total:
        raise Unhealthy(f"{free}, less than {DISK_FREE:.0%}")
    return free


@flow(name="check-health", flow_run_name="self-check", timeout_seconds=240)
def check_health(port: int, pool: str, directory: str) -> State[Any]:
    """Check API, database, worker and disk of the server that runs this."""
    checks: dict[str, Callable[[], str]] = {
        "API": lambda: check_api(port),
        "database": lambda: check_database(directory),
        "worker": lambda: check_worker(pool),
        "disk": check_disk,
    }
    rows = []
    for name, check in checks.items():
        try:
            rows.append({"check": name, "verdict": "healthy", "figure": check()})
        except Unhealthy as error:
            rows.append({"check": name, "verdict": "unhealthy", "figure": str(error)})
        except Exception as error:  # noqa: BLE001 - whatever it was, it was not checked
            said = f"{type(error).__name__}: {error}"
            rows.append({"check": name, "verdict": "could not check", "figure": said})
    create_table_artifact(table=rows, key="self-check")
    bad = [f"{row['check']}: {row['figure']}" for row in rows if row["verdict"] != "healthy"]
    if bad:
        return Failed(message="; ".join(bad))
    return Completed(message="; ".join(f"{r['check']}: {r['figure']}" for r in rows))
