"""Flow runs through a Prefect server's API: start one, follow it step by step, read what it leaves.

Plain HTTP: to import Prefect, and to make models of every answer, would take the processors from
what is being rehearsed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from rehearsal.control import Failed
from rehearsal.errors import Json

POLL_SECONDS = 0.5
BUSY_SECONDS = 60.0
"""How long a server may be busy with one request: as long as SQLite waits for its lock in Prefect."""
GRACE_SECONDS = 3.0
"""How long task runs may be reported after their flow run."""
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def api(url: str, auth_string: str = "") -> httpx.Client:
    """A client of the Prefect server at ``url``."""
    user, _, password = auth_string.partition(":")
    auth = (user, password) if user else None
    timeout = BUSY_SECONDS + 30
    return httpx.Client(base_url=f"{url}/api", auth=auth, timeout=timeout, trust_env=False)


def ask(client: httpx.Client, verb: str, path: str, body: Json | None = None) -> Any:
    """The answer. Raises Failed with the server's words, or that it does not answer.

    A server on SQLite answers 503 while another write goes on, or after BUSY_SECONDS of one: it is
    asked again.
    """
    deadline = time.monotonic() + 2 * BUSY_SECONDS
    while True:
        try:
            answer = client.request(verb, path, json=body)
        except httpx.HTTPError as error:
            raise Failed(f"{client.base_url} does not answer ({error!r}): see its log") from error
        if not answer.is_error:
            return answer.json()
        if answer.status_code != 503 or time.monotonic() > deadline:
            raise Failed(f"{verb} {answer.request.url}: {answer.status_code}: {answer.text}")
        time.sleep(POLL_SECONDS)


def open_pool(client: httpx.Client, name: str) -> None:
    """Make a work pool before its worker does, so that nobody has to wait for that."""
    pool = {"name": name, "type": "process"}
    if name not in (each["name"] for each in ask(client, "POST", "/work_pools/filter", {})):
        ask(client, "POST", "/work_pools/", pool)


def start(client: httpx.Client, deployment: str, parameters: Json | None = None) -> str:
    """Start a run of ``deployment``, written as flow/name. Returns its id."""
    order = {"parameters": parameters or {}}
    path = f"/deployments/{found(client, deployment)['id']}/create_flow_run"
    return str(ask(client, "POST", path, order)["id"])


def found(client: httpx.Client, deployment: str) -> Json:
    """A deployment, written as flow/name."""
    answer: Json = ask(client, "GET", f"/deployments/name/{deployment}")
    return answer


def follow(
    client: httpx.Client, run: str, seconds: float, show: Callable[[list[Json]], None]
) -> Json:
    """The state of the run, once it ended or ``seconds`` are over. ``show`` gets its task runs."""
    deadline = time.monotonic() + seconds
    mine = {"flow_runs": {"id": {"any_": [run]}}}
    while True:
        state: Json = ask(client, "GET", f"/flow_runs/{run}")["state"]
        tasks = ask(client, "POST", "/task_runs/filter", mine)
        show(tasks)
        now = time.monotonic()
        if state["type"] in OVER:
            if all(task["state_type"] in OVER for task in tasks):
                return state
            deadline = min(deadline, now + GRACE_SECONDS)
        if now > deadline:
            return state
        time.sleep(POLL_SECONDS)


def table(client: httpx.Client, key: str, run: str) -> list[Json]:
    """The rows of the table artifact ``key`` that the run left."""
    which = {"artifacts": {"key": {"any_": [key]}, "flow_run_id": {"any_": [run]}}}
    artifacts = ask(client, "POST", "/artifacts/filter", which)
    if not artifacts:
        raise Failed(f"the run {run} left no artifact {key}: see its logs")
    rows: list[Json] = json.loads(artifacts[-1]["data"])
    return rows


def scheduled(client: httpx.Client, deployment: str, seconds: float) -> Json:
    """The state of the last run that the schedule of ``deployment`` started, once it completed.

    Runs that ended by themselves: of those overdue at a start, the surplus is cancelled.
    """
    which = {
        "deployments": {"id": {"any_": [found(client, deployment)["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
        "sort": "START_TIME_DESC",
        "limit": 50,
    }
    deadline = time.monotonic() + seconds
    while True:
        runs = ask(client, "POST", "/flow_runs/filter", which)
        ended = [run["state"] for run in runs if run["auto_scheduled"]]
        if ended and ended[0]["type"] == "COMPLETED":
            state: Json = ended[0]
            return state
        if time.monotonic() > deadline:
            last = f"the last is {said(ended[0])}" if ended else "none has ended"
            raise Failed(
                f"no scheduled run of {deployment} completed in {seconds:.0f} s ({last}): "
                "see its logs in the new server's UI"
            )
        time.sleep(POLL_SECONDS)


def said(state: Json) -> str:
    """A state in words: ``Failed: the message``."""
    return f"{state['name']}: {state['message']}" if state["message"] else str(state["name"])
