"""The server as its clients meet it: its API, its events, its worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

import httpx
from packaging.version import Version
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Worker
from prefect.events.filters import EventFilter, EventIDFilter

from flows.checks.check import Check, most
from flows.spec import SelfCheck

ANSWERS = {"health": 200, "ready": 200, "without auth string": 401, "with auth string": 200}
POLL_SECONDS = 0.5
RESTART = "Restart it: systemctl restart prefect-server."
RESTART_WORKER = "Restart it: systemctl restart prefect-worker."
AUTH = "See that the auth_string in both prefect.toml is that of the spec's secret: run bootstrap-server."
EVENTS = "See that a websocket to /api/events/in gets through, and the journal of prefect-server."


def answers(client: SyncPrefectClient, bounds: SelfCheck) -> list[Check]:
    """The API answers in time, refuses a stranger, and lets us in."""
    base = str(client.api_url).rstrip("/")
    with httpx.Client(timeout=4 * bounds.answer_seconds) as stranger:
        asked = {
            "health": _asked(lambda: stranger.get(f"{base}/health")),
            "ready": _asked(lambda: stranger.get(f"{base}/ready")),
            "without auth string": _asked(lambda: stranger.get(f"{base}/admin/version")),
            "with auth string": _asked(lambda: client.request("GET", "/admin/version")),
        }
    told = {name: status for name, (status, _) in asked.items()}
    return answered(told, max(seconds for _, seconds in asked.values()), bounds)


def _asked(ask: Callable[[], httpx.Response]) -> tuple[int, float]:
    """The status, 0 for no answer, and the seconds that it took."""
    began, status = time.monotonic(), 0
    try:
        status = ask().status_code
    except httpx.HTTPStatusError as error:  # as Prefect's client tells it
        status = error.response.status_code
    except httpx.TransportError:
        pass
    return status, time.monotonic() - began


def answered(told: dict[str, int], seconds: float, bounds: SelfCheck) -> list[Check]:
    """``told``: the HTTP status of each question, 0 for none; ``seconds``: the longest answer."""
    wrong = {name: told[name] for name, status in ANSWERS.items() if told[name] != status}
    said = ", ".join(f"{name}: {status or 'no answer'}" for name, status in wrong.items())
    expected = ", ".join(f"{name}: {status}" for name, status in ANSWERS.items())
    repair = AUTH if any("auth" in name for name in wrong) else RESTART
    return [
        Check(
            "API: answers", "unhealthy" if wrong else "healthy", said or "right", expected, repair
        ),
        most("API: answer time", seconds, bounds.answer_seconds, "s", RESTART),
    ]


def event(client: SyncPrefectClient, sent: UUID, began: float, bounds: SelfCheck) -> list[Check]:
    """The event ``sent`` at ``began``, on the monotonic clock, can be read within the bound."""
    wanted = EventFilter(id=EventIDFilter(id=[sent]))
    while not client.read_events(wanted, limit=1).events:
        if time.monotonic() - began > 2 * bounds.event_seconds:
            figure, bound = f"not read in {2 * bounds.event_seconds} s", bounds.event_seconds
            return [Check("events: way", "unhealthy", figure, f"at most {bound} s", EVENTS)]
        time.sleep(POLL_SECONDS)
    return [most("events: way", time.monotonic() - began, bounds.event_seconds, "s", EVENTS)]


def worker(
    found: Sequence[Worker], name: str, ours: str, servers: str, bounds: SelfCheck
) -> list[Check]:
    """``found``: the workers of the pool. The worker runs flows with its own Prefect, so its version
    is ``ours``; it must not be older than the ``servers``."""
    seen = [each.last_heartbeat_time for each in found if each.name == name]
    age = (datetime.now(UTC) - seen[0]).total_seconds() if seen and seen[0] else None
    bound, unit = bounds.worker_seconds, "s ago"
    return [
        Check("worker: heartbeat", "unhealthy", "none", f"at most {bound} {unit}", RESTART_WORKER)
        if age is None
        else most("worker: heartbeat", age, bound, unit, RESTART_WORKER),
        Check(
            "worker: version",
            "unhealthy" if Version(ours) < Version(servers) else "healthy",
            ours,
            f"at least the server's {servers}",
            "Run bootstrap-server.",
        ),
    ]
