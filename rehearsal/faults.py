"""Failures on order: what the next calls of a method answer, or how their operations end.

A fault names a method by discovery id and is used up after ``count`` calls. ``KNOWN`` are the
answers of Google that have exact words; anything else is given as status, reason and message.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Final

from rehearsal import errors
from rehearsal.config import ACCOUNT, PROJECT, PROJECT_NUMBER, ZONE
from rehearsal.errors import ApiError, Json, OperationError

KNOWN: Final[dict[str, ApiError | OperationError]] = {
    "rateLimitExceeded": errors.rate_limited(PROJECT_NUMBER),
    "resourceNotReady": errors.not_ready(f"projects/{PROJECT}/global/networks/default"),
    "conditionNotMet": errors.stale(),
    "accessNotConfigured": errors.disabled("compute.googleapis.com", PROJECT_NUMBER),
    "backendError": ApiError(503, "backendError", "Backend Error"),
    "internalError": ApiError(
        500, "internalError", "Internal error. Please try again or contact Google Support."
    ),
    "tooManyRequests": ApiError(429, "rateLimitExceeded", "Resource has been exhausted."),
    "ZONE_RESOURCE_POOL_EXHAUSTED": errors.out_of_stock(
        f"projects/{PROJECT}/zones/{ZONE}", "e2-medium"
    ),
    "QUOTA_EXCEEDED": errors.over_quota("CPUS", 8, "us-central1"),
    "RESOURCE_NOT_READY": OperationError("RESOURCE_NOT_READY", "The resource is not ready", 400),
    "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED": errors.concurrent_operations(PROJECT_NUMBER),
    "RESOURCE_ALREADY_EXISTS": errors.already_there(
        f"projects/{PROJECT}/zones/{ZONE}/instances/vm"
    ),
    "SERVICE_ACCOUNT_ACCESS_DENIED": errors.account_denied(ACCOUNT, ACCOUNT),
    "anotherActivation": ApiError(
        400, "failedPrecondition", "Another activation or deactivation is in progress"
    ),
    "INTERNAL_ERROR": OperationError("INTERNAL_ERROR", "Internal error.", 500),
}


@dataclass
class Fault:
    """``status`` ends the request, ``operation`` ends the operation, ``delay`` is seconds."""

    method: str
    count: int = 1
    delay: float = 0.0
    status: int = 0
    reason: str = ""
    message: str = "injected"
    operation: bool = False

    def __post_init__(self) -> None:
        if self.reason in KNOWN and not self.status:
            self.operation = isinstance(KNOWN[self.reason], OperationError)

    def error(self) -> ApiError | OperationError | None:
        if self.reason in KNOWN and not self.status:
            return KNOWN[self.reason]
        if self.operation and (self.reason or self.status):
            return OperationError(self.reason, self.message, self.status or 400)
        return (
            ApiError(self.status, self.reason or "injected", self.message) if self.status else None
        )


class Faults:
    """The faults on order, first come first served."""

    def __init__(self) -> None:
        self._orders: list[Fault] = []

    def order(self, fault: Fault) -> None:
        self._orders.append(fault)

    def clear(self) -> None:
        self._orders.clear()

    def list(self) -> list[Json]:
        return [asdict(fault) for fault in self._orders]

    async def before(self, method: str) -> None:
        """Delay or fail a request, as ordered."""
        if fault := self._take(method, operation=False):
            await asyncio.sleep(fault.delay)
            if error := fault.error():
                raise error

    async def during(self, method: str) -> None:
        """Delay or fail the operation a request began, as ordered."""
        if fault := self._take(method, operation=True):
            await asyncio.sleep(fault.delay)
            if error := fault.error():
                raise error

    def _take(self, method: str, *, operation: bool) -> Fault | None:
        for fault in self._orders:
            if fault.method == method and fault.operation is operation:
                fault.count -= 1
                if fault.count == 0:
                    self._orders.remove(fault)
                return fault
        return None
