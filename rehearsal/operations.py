"""Operations: what a mutation answers at once, while the work goes on.

PENDING → RUNNING → DONE. Work on one target is done in the order it was asked for. A repeated
``requestId`` answers the first operation again and does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from rehearsal.errors import ApiError, Json, OperationError
from rehearsal.gateway import Call, handles
from rehearsal.store import Store, now

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud
    from rehearsal.faults import Faults

WAIT_SECONDS = 120.0
"""The longest that ``wait`` holds a request, as Google's does."""

Work = Callable[[], Awaitable[None]]
Mutation = Callable[["Cloud", Call], Awaitable[tuple[Json, Work | None, Callable[[], None] | None]]]
"""The synchronous part of a mutation: (target, work of the operation, undo if that fails)."""

logger = logging.getLogger(__name__)


class Operations:
    """Runs operations and remembers them."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store, self._faults = store, faults
        self._done: dict[str, asyncio.Event] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asked: dict[tuple[str, str], Json] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, call: Call) -> Json | None:
        """The operation that an earlier request with the same requestId began."""
        request_id = call.query.get("requestId")
        if request_id is None:
            return None
        try:
            if uuid.UUID(request_id).int == 0:
                raise ValueError
        except ValueError:
            message = f"Invalid value for field 'requestId': '{request_id}'. Must be a UUID."
            raise ApiError(400, "invalid", message) from None
        return self._asked.get((call.caller, request_id))

    def begin(
        self, call: Call, target: Json, work: Work | None, undo: Callable[[], None] | None
    ) -> Json:
        """Start the work and answer its operation."""
        scope = call.place
        if call.params.get("zone") is None and call.params.get("region") is None:
            scope = f"projects/{call.params['project']}/global"
        stamp = uuid.uuid4().hex
        name = f"operation-{time.time_ns() // 10**6}-{stamp[:13]}-{stamp[13:21]}-{stamp[21:29]}"
        operation = self._store.add(
            f"{scope}/operations/{name}",
            "compute#operation",
            {
                "operationType": call.method.action,
                "targetLink": target["selfLink"],
                "targetId": target["id"],
                "user": call.caller,
                "status": "PENDING",
                "progress": 0,
                "insertTime": now(),
            },
        )
        del operation["creationTimestamp"]
        if request_id := call.query.get("requestId"):
            operation["clientOperationId"] = request_id
            self._asked[call.caller, request_id] = operation
        self._done[operation["selfLink"]] = asyncio.Event()
        task = asyncio.create_task(self._run(operation, call.method.id, work, undo))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return dict(operation)

    async def _run(
        self, operation: Json, method: str, work: Work | None, undo: Callable[[], None] | None
    ) -> None:
        async with self._locks[operation["targetLink"]]:
            operation.update(status="RUNNING", startTime=now())
            try:
                await self._faults.during(method)
                if work:
                    await work()
            except Exception as error:  # the boundary: an operation ends with its error
                if not isinstance(error, OperationError):
                    logger.exception("operation %s of %s", operation["name"], method)
                    error = OperationError("INTERNAL_ERROR", repr(error)[:500], 500)
                operation.update(error.fields())
                if undo:
                    undo()
            operation.update(status="DONE", progress=100, endTime=now())
        self._done[operation["selfLink"]].set()

    async def wait(self, operation: Json) -> Json:
        """Hold until the operation is done, two minutes at most."""
        done = self._done[operation["selfLink"]]
        try:
            await asyncio.wait_for(done.wait(), WAIT_SECONDS)
        except TimeoutError:
            pass
        return operation

    async def drain(self) -> None:
        """Wait for all work under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def mutates(*methods: str) -> Callable[[Mutation], Mutation]:
    """Register the synchronous part of a mutation; the rest becomes an operation."""

    def register(mutation: Mutation) -> Mutation:
        async def handler(cloud: Cloud, call: Call) -> Json:
            if known := cloud.operations.asked(call):
                return known
            return cloud.operations.begin(call, *await mutation(cloud, call))

        handles(*methods)(handler)
        return mutation

    return register


def _scoped(action: str) -> tuple[str, ...]:
    return tuple(f"compute.{scope}Operations.{action}" for scope in ("global", "region", "zone"))


@handles(*_scoped("get"))
async def _get(cloud: Cloud, call: Call) -> Json:
    return cloud.store.find(call.path)


@handles(*_scoped("wait"))
async def _wait(cloud: Cloud, call: Call) -> Json:
    return await cloud.operations.wait(cloud.store.find(call.path.removesuffix("/wait")))
