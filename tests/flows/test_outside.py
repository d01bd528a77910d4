"""What check-server says of a server: judged from its last self-check, or from its silence."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from blocks.compute import ApiError
from blocks.secrets import Secrets
from flows import outside
from flows.errors import Final, Unreachable
from flows.outside import check_server, judge, last_check, silent
from flows.report import latest
from tests.flows.paper_world import SECRETS
from tests.flows.test_compute_resources import spec
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def run(state: State[Any], age: timedelta) -> FlowRun:
    return FlowRun.model_validate({"flow_id": uuid4(), "state": state, "end_time": NOW - age})


MINUTE = timedelta(minutes=1)
JUDGED: list[tuple[State[Any], timedelta, str, str]] = [
    (Completed(message="fine"), MINUTE, "healthy", "self-check 60 s ago: Completed: fine"),
    (Completed(name="Healthy", message="fine"), 3 * MINUTE, "healthy", "3 min ago: Healthy: fine"),
    (Completed(name="Degraded", message="disk: 8 %"), MINUTE, "degraded", "Degraded: disk: 8 %"),
    (Failed(name="Unhealthy", message="disk:\n1 %"), MINUTE, "unhealthy", "Unhealthy: disk: 1 %"),
    (Failed(name="Unknown", message="no answer"), MINUTE, "unknown", "Unknown: no answer"),
    (Failed(message="died"), MINUTE, "unhealthy", "Failed: died"),
    (Crashed(message="killed"), MINUTE, "unhealthy", "Crashed: killed"),
    (Completed(name="Healthy"), 10 * MINUTE, "healthy", "10 min ago: Healthy: no word"),
    (Completed(name="Healthy"), 10.1 * MINUTE, "stale", "10 min ago: Healthy"),
    (Failed(name="Unhealthy"), timedelta(hours=30), "stale", "30 h ago: Unhealthy"),
    (Completed(name="Healthy"), timedelta(days=9), "stale", "9 d ago"),
    (Completed(name="Healthy"), -MINUTE, "healthy", "0 s ago"),  # its clock is ahead of ours
]


@pytest.mark.parametrize(("state", "age", "verdict", "said"), JUDGED)
def test_a_self_check_is_judged_by_its_state_and_its_age(
    state: State[Any], age: timedelta, verdict: str, said: str
) -> None:
    told = judge(run(state, age), 300, NOW)
    assert told[0] == verdict
    assert said in told[1]
    assert "\n" not in told[1]


def test_a_server_that_has_never_checked_itself_is_stale() -> None:
    assert judge(None, 300, NOW) == ("stale", "no self-check has finished yet")


def answered(status: int) -> PrefectHTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/api")
    return PrefectHTTPStatusError(
        "", request=request, response=httpx.Response(status, request=request)
    )


def wrapped(cause: Exception) -> Exception:
    """As Prefect's client says that it could not learn the server's version."""
    error = RuntimeError("Failed to reach API")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unreachable("no SSH"), True),
        (httpx.ReadTimeout("")      , True),
        (answered(503), True),
        (answered(401), False),  # it answers, but not to us
        (wrapped(httpx.ConnectError("")), True),
        (wrapped(answered(401)), False),
        (Final("IAP: not authorized"), False),
        (KeyError("name"), False),
    ],
)  # fmt: skip
def test_a_server_that_does_not_answer_is_told_from_one_that_could_not_be_asked(
    error: Exception, expected: bool
) -> None:
    assert silent(error) is expected


# The flow, against a server


@dataclass
class Ways:
    """A Reach to a server on loopback. ``error``: what Google's API, or SSH, says instead."""

    spec: Any
    url: str
    machine: str = "RUNNING"
    google: Exception | None = None
    ssh: Exception | None = None
    opened: ExitStack = field(default_factory=ExitStack)
    zone = "us-central1-a"

    def __call__(self, *_: object, waits: bool) -> Self:
        assert not waits, "a check has a deadline"
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def status(self) -> str:
        if self.google:
            raise self.google
        return self.machine

    def api(self) -> SyncPrefectClient:
        if self.ssh:
            raise self.ssh
        return self.opened.enter_context(SyncPrefectClient(self.url))


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(request.getfixturevalue("prefect_api")) as client:
        yield client


@pytest.fixture
def name() -> str:
    """A server's name, of this test only."""
    return f"p-{uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "reached", lambda target: target)
    monkeypatch.setattr(outside, "read_secrets", lambda server: SECRETS)


def ran(api: SyncPrefectClient, name: str, *states: State[Any], flow: str = "check-health") -> None:
    deployment = api.create_deployment(
        flow_id=api.create_flow_from_name(flow), name=name, entrypoint="a.b"
    )
    for state in states:
        made = api.create_flow_run_from_deployment(deployment)
        api.set_flow_run_state(made.id, Running(), force=True)
        api.set_flow_run_state(made.id, state, force=True)


def test_the_self_check_that_finished_last_counts(api: SyncPrefectClient, name: str) -> None:
    assert last_check(api, name) is None
    ran(api, name, Failed(name="Unhealthy"), Completed(name="Healthy", message="the last"))
    ran(api, name, Completed(name="Skipped"), Cancelled(), Running())
    ran(api, f"{name}-2", Failed(name="Unhealthy", message="another server's"))
    ran(api, name, Failed(message="another flow's"), flow="etl")
    last = last_check(api, name)
    assert last
    assert last.state
    assert last.state.message == "the last"


def test_a_self_check_that_crashed_before_it_began_counts(
    api: SyncPrefectClient, name: str
) -> None:
    """Its worker may be cut off from the server."""
    ran(api, name, Completed(name="Healthy"))
    check = api.read_deployment_by_name(f"check-health/{name}")
    made = api.create_flow_run_from_deployment(check.id)
    states: list[State[Any]] = [Pending(), Crashed(message="cut off")]
    for state in states:
        api.set_flow_run_state(made.id, state, force=True)
    last = last_check(api, name)
    assert last
    assert (last.state_type, last.run_count) == (StateType.CRASHED, 0)


def told(monkeypatch: pytest.MonkeyPatch, ways: Ways) -> State[Any]:
    monkeypatch.setattr(outside, "Reach", ways)
    state: State[Any] = check_server(ways.spec, return_state=True)
    return state


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (Completed(message="fine"), Completed(name="Healthy")),
        (Completed(name="Degraded", message="slow"), Completed(name="Degraded")),
        (Failed(name="Unhealthy", message=f"said {SECRETS.auth_string}"), Failed(name="Unhealthy")),
    ],
)
def test_what_was_seen_is_the_state_the_table_and_an_event(
    api: SyncPrefectClient,
    name: str,
    last: State[Any],
    expected: State[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran(api, name, last)
    state = told(monkeypatch, Ways(spec(name=name), str(api.api_url)))
    assert (state.name, state.type) == (expected.name, expected.type)
    assert SECRETS.auth_string not in str(state.message)
    verdict = str(expected.name).lower()
    row = {"server": name, "verdict": verdict, "what was seen": state.message}
    assert latest(f"{name}-server") == [row]
    wait_for_event(api, f"prefect-bootstrap.server.{verdict}", f"prefect-bootstrap.server.{name}")


def wait_for_event(api: SyncPrefectClient, event: str, resource: str) -> None:
    wanted = {"filter": {"event": {"name": [event]}, "resource": {"id": [resource]}}}
    deadline = time.monotonic() + 30
    while not api.request("POST", "/events/filter", json=wanted).json()["events"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)


NOWHERE = "http://127.0.0.1:1/api"
SILENT: dict[str, tuple[dict[str, Any], str, str]] = {
    "no machine": ({"machine": "not there"}, "Unreachable", "its machine is not there"),
    "stopped machine": ({"machine": "TERMINATED"}, "Unreachable", "its machine is TERMINATED"),
    "no SSH": ({"ssh": Unreachable("no SSH")}, "Unreachable", "it cannot be reached: no SSH"),
    "no API": ({}, "Unreachable", "it cannot be reached: [Errno 111]"),
    "no tunnel for us": ({"ssh": Final("IAP: not authorized")}, "Unknown", "IAP: not authorized"),
    "Google refuses": (
        {"google": ApiError(403, "forbidden", "no", "compute.instances.get")},
        "Unknown",
        "could not look: compute.instances.get: 403 forbidden: no",
    ),
    "Google is away": ({"google": Unreachable("oauth2")}, "Unknown", "could not look: oauth2"),
}


@pytest.mark.parametrize("case", SILENT)
def test_silence_is_never_green(
    api: SyncPrefectClient, name: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, word, said = SILENT[case]
    state = told(monkeypatch, Ways(spec(name=name), NOWHERE, **members))
    assert state.is_failed()
    assert state.name == word
    assert said in str(state.message)


def test_a_secret_that_cannot_be_read_is_not_the_servers_fault(
    api: SyncPrefectClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_server: object) -> Secrets:
        raise Final("The secret cannot be read.")

    monkeypatch.setattr(outside, "read_secrets", refused)
    state = told(monkeypatch, Ways(spec(name=name), NOWHERE))
    assert (state.name, state.message) == (
        "Unknown",
        "could not look: The secret cannot be read.",
    )


@contextmanager
def frozen() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


def test_a_frozen_server_is_unreachable_within_one_deadline(
    api: SyncPrefectClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "ANSWER_SECONDS", 1.0)
    began = time.monotonic()
    with frozen() as url:
        state = told(monkeypatch, Ways(spec(name=name), url))
    assert state.name == "Unreachable"
    assert time.monotonic() - began < 10  # and not as often as Prefect would try
