"""The flow check-server: look at a server from outside, for a dead one cannot say that it is dead.

It takes the result of the last self-check through IAP. That nothing could be looked at, as when
Google refuses the laptop, is told apart from a server that does not answer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Completed, Failed

from blocks.secrets import read_secrets
from flows.catalog import CHECK
from flows.errors import Unreachable
from flows.reach import Reach, reached, this_run
from flows.resources.deployment import ENDED, runs_of
from flows.spec import ServerSpec

SECONDS = 240
ANSWER_SECONDS = 20.0
"""For each answer of the server's API."""
MISSED = 2
"""So many intervals without a finished self-check are too many."""

Verdict = Literal["healthy", "degraded", "unhealthy", "stale", "unreachable", "unknown"]


@flow(name="check-server", flow_run_name="{server.name}", timeout_seconds=SECONDS)
def check_server(server: ServerSpec, target: str = "gcp") -> State[Any]:
    """Say how the server is, as its last self-check and its silence tell.

    Args:
        server: The server, as bootstrap-server has it.
        target: Name of the ServerTarget block that says how to reach Google Cloud and its machines.
    """
    try:
        verdict, said = look(server, target)
    except Exception as error:  # noqa: BLE001 - whatever it was, the server was not looked at
        verdict, said = "unknown", f"could not look: {_line(error)}"
    create_table_artifact(
        [{"server": server.name, "verdict": verdict, "what was seen": said}],
        key=f"{server.name}-server",
        description=f"{server.name} is {verdict}",
    )
    emit_event(
        f"prefect-bootstrap.server.{verdict}",
        resource=server.event_resource,
        payload={"message": said},
    )
    get_run_logger().info("%s: %s", verdict, said)
    kind = Completed if verdict in ("healthy", "degraded") else Failed
    return kind(name=verdict.capitalize(), message=said)


def look(server: ServerSpec, target: str) -> tuple[Verdict, str]:
    """How the server is, and why. Raises what kept it from being looked at, free of secrets."""
    ways, secrets = reached(target), read_secrets(server)
    patience = {PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}
    with (
        temporary_settings(patience),
        Reach(server, ways, secrets, this_run(), waits=False) as reach,
    ):
        if (status := reach.status()) != "RUNNING":
            return "unreachable", f"its machine is {status}"
        try:
            last = last_check(reach.api(), server.name)
        except Exception as error:
            if not silent(error):
                raise
            return "unreachable", secrets.redact(f"it cannot be reached: {_line(error)}")
    verdict, said = judge(last, server.self_check.interval_seconds, datetime.now(UTC))
    return verdict, secrets.redact(said)


def last_check(api: SyncPrefectClient, server: str) -> FlowRun | None:
    """The self-check that ended last, but for one that came too late or had to give way. One that
    crashed before it began counts, too: its worker may be cut off from the server."""
    runs = runs_of(api, CHECK, server, *ENDED, sort=FlowRunSort.END_TIME_DESC)
    return runs[0] if runs else None


def judge(last: FlowRun | None, interval: int, now: datetime) -> tuple[Verdict, str]:
    """What the last self-check, of one every ``interval`` seconds, says at ``now``."""
    if last is None or last.state is None or last.end_time is None:
        return "stale", "no self-check has finished yet"
    age = now - last.end_time
    said = f"self-check {_ago(age)}: {last.state.name}: {_line(last.state.message or 'no word')}"
    if age > MISSED * timedelta(seconds=interval):
        return "stale", f"{said} (one is due every {interval} s)"
    if last.state.is_completed():
        return "degraded" if last.state.name == "Degraded" else "healthy", said
    return "unknown" if last.state.name == "Unknown" else "unhealthy", said


def silent(error: BaseException) -> bool:
    """Whether it means that the server did not answer; an error of its own is no answer, either."""
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code >= 500
    if isinstance(error, Unreachable | httpx.TransportError):
        return True
    return error.__cause__ is not None and silent(error.__cause__)  # Prefect's look at the version


def _ago(age: timedelta) -> str:
    """About how long ago, such as "12 min ago"."""
    seconds = max(age.total_seconds(), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _line(said: object) -> str:
    """In one line; an error that says nothing by its kind."""
    return " ".join(str(said or "").split()) or type(said).__name__
