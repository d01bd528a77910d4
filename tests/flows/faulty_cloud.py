"""A cloud on paper whose calls fail as they are told to, and a clock that only waiting moves.

A call is a line of a clean run's log: the request, without what differs from run to run, and the how
manyeth of its kind it is. So whatever the cloud stage asks is in the table of faults by itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from httplib2 import Response

from blocks.compute import Compute, Run, described
from flows.reconcile import Outcome, reconcile
from flows.resources.compute import bound, cloud_resources
from flows.spec import ServerSpec
from flows.stages import PASSING, RETRIES
from rehearsal import operations
from rehearsal.faults import Fault
from tests.flows.test_compute_resources import KEY, Http, spec
from tests.paper import Caller, paper

Called = tuple[str, int]
"""A request, and the how manyeth of its kind."""
KEPT = ("networks", "subnetworks", "routers", "firewalls", "instances", "disks")
SLOW = 45.0
"""Seconds of a delayed answer."""


@dataclass
class FaultyHttp(Http):
    """Fails ``at`` one call, or from then on at all of its kind, in the way of ``fault``."""

    at: Called | None = None
    fault: str = ""
    lasts: bool = False
    now: float = 0.0
    calls: list[Called] = field(default_factory=list)
    stuck: bool = False
    """An operation under way does not end before ``hangs`` does."""
    hangs: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: Counter[str] = field(default_factory=Counter)

    def request(
        self, uri: str, method: str, body: str | None = None, **rest: Any
    ) -> tuple[Response, bytes]:
        path = re.sub("operations/[^/]+", "operations/*", urlsplit(uri).path)
        with self.lock:
            self._seen[path := f"{method} {path}"] += 1
            self.calls.append((path, self._seen[path]))
        kind, first = self.at or ("", 0)
        number = self._seen[path]
        hit = path == kind and (number >= first if self.lasts else number == first)
        if self.stuck and path.endswith("/wait"):
            self.now += 120
        send: Callable[[], Any] = lambda: super(FaultyHttp, self).request(uri, method, body, **rest)  # noqa: E731
        return FAULTS[self.fault](self, uri, method, send) if hit else send()

    def forget(self) -> None:
        """Count anew."""
        self.calls.clear()
        self._seen.clear()

    def lift(self) -> None:
        self.at, self.stuck = None, False
        if not self.hangs.is_set():
            self.caller.run(_set(self.hangs))

    def ordered(self, uri: str, method: str, **fault: Any) -> None:
        """How the operation of the next request ends."""
        url = urlsplit(uri)
        _, called, _ = self.caller.gateway._match(url.netloc, method, url.path)
        self.caller.cloud.faults.order(Fault(called.id, operation=True, **fault))


async def _set(event: asyncio.Event) -> None:
    event.set()


Sent = Callable[[], tuple[Response, bytes]]
Failing = Callable[[FaultyHttp, str, str, Sent], tuple[Response, bytes]]


def _refused(code: int, reason: str) -> Failing:
    error = {"code": code, "message": "injected", "errors": [{"reason": reason}]}
    answer = Response({"status": str(code)}), json.dumps({"error": error}).encode()
    return lambda _http, _uri, _method, _send: answer


def _before(_http: FaultyHttp, _uri: str, _method: str, _send: Sent) -> tuple[Response, bytes]:
    raise ConnectionResetError("before the effect")


def _after(_http: FaultyHttp, _uri: str, _method: str, send: Sent) -> tuple[Response, bytes]:
    send()
    raise ConnectionResetError("after the effect")


def _late(http: FaultyHttp, _uri: str, _method: str, send: Sent) -> tuple[Response, bytes]:
    http.now += SLOW
    return send()


def _ends(**fault: Any) -> Failing:
    def failing(http: FaultyHttp, uri: str, method: str, send: Sent) -> tuple[Response, bytes]:
        http.ordered(uri, method, **fault)
        return send()

    return failing


FAULTS: dict[str, Failing] = {
    "reset before": _before,
    "reset after": _after,
    "delayed": _late,
    "500": _refused(500, "internalError"),
    "503": _refused(503, "backendError"),
    "429": _refused(429, "rateLimitExceeded"),
    "rate limit": _refused(403, "rateLimitExceeded"),
    "not ready": _refused(400, "resourceNotReady"),
    "403": _refused(403, "forbidden"),
    "409": _refused(409, "alreadyExists"),
    "412": _refused(412, "conditionNotMet"),
    "operation error": _ends(reason="INTERNAL_ERROR"),
    "over quota": _ends(reason="QUOTA_EXCEEDED"),
    "stock-out": _ends(reason="ZONE_RESOURCE_POOL_EXHAUSTED"),
    "never ends": _ends(reason="hang", status=1),
}
OF_OPERATIONS = ("operation error", "over quota", "stock-out", "never ends")


@dataclass
class FaultyLab:
    caller: Caller
    http: FaultyHttp

    def sleep(self, seconds: float) -> None:
        self.http.now += seconds

    def connect(self, run: Run | None = None) -> Compute:
        one = run or Run(uuid.uuid4())
        api = described("compute", "v1")
        clock, connection = (lambda: self.http.now), (lambda: self.http)
        return Compute("rehearsal", api, one, connection, self.sleep, clock)

    def run(self, wanted: ServerSpec | None = None) -> list[Outcome]:
        """As a process of its own that knows nothing but the spec, with the stage's retries."""
        one = Run(uuid.uuid4())
        kinds = cloud_resources(wanted or spec(), KEY)
        return [self._settled(each) for each in bound(kinds, lambda: self.connect(one))]

    def _settled(self, resource: Any) -> Outcome:
        for pause in (*RETRIES, None):
            try:
                return reconcile(resource, apply=True)
            except PASSING:
                if pause is None:
                    raise
                self.sleep(pause)
        raise AssertionError

    def inventory(self) -> list[str]:
        """Everything that was made, and what stands behind it."""
        cloud = self.caller.cloud
        made = [each["selfLink"] for kind in KEPT for each in cloud.store.every(kind)]
        return sorted([*made, *cloud.services.accounts, f"{len(cloud.machines)} machines"])


@contextmanager
def faulty() -> Iterator[FaultyLab]:
    with paper() as caller:
        http = FaultyHttp(caller)
        faults, during = caller.cloud.faults, caller.cloud.faults.during

        async def hang(method: str) -> None:
            order = next((f for f in faults._orders if f.method == method), None)
            if order and order.reason == "hang":
                faults._orders.remove(order)
                http.stuck = True
                await http.hangs.wait()
            await during(method)

        faults.during = hang  # type: ignore[method-assign]
        longest, operations.WAIT_SECONDS = operations.WAIT_SECONDS, 0.005
        try:
            yield FaultyLab(caller, http)
        finally:
            operations.WAIT_SECONDS = longest
            http.lift()
