"""The Compute Engine API: requests, operations, and what an error means.

A failure is told by code and reason, never by its message. ``Remedy`` says what a caller does about
it; what may pass by itself is tried again here, with back-off, until a deadline. A change carries a
request id (see ``Run``), so a second try of a request whose answer was lost finds the first one's
operation instead of making two.
Sources: https://cloud.google.com/compute/docs/api/how-tos/api-requests-responses and
https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from http.client import HTTPException
from threading import Lock, local
from typing import TYPE_CHECKING, Any

from flows.errors import BootstrapError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

Json = dict[str, Any]


class Remedy(Enum):
    """What to do about an error of the API."""

    RETRY_NOW = "try again in a moment"
    RETRY_SLOWLY = "try again in a minute: something is not ready yet"
    OTHER_ZONE = "try another zone"
    REFETCH = "read again: somebody changed it meanwhile"
    ADOPT = "it exists: read and compare"
    ABSENT = "it does not exist"
    FATAL = "another try would fail the same way"


_BY_REASON = {
    "rateLimitExceeded": Remedy.RETRY_NOW,
    "userRateLimitExceeded": Remedy.RETRY_NOW,
    "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED": Remedy.RETRY_SLOWLY,
    "resourceNotReady": Remedy.RETRY_SLOWLY,
    "RESOURCE_NOT_READY": Remedy.RETRY_SLOWLY,
    "ZONE_RESOURCE_POOL_EXHAUSTED": Remedy.OTHER_ZONE,
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": Remedy.OTHER_ZONE,
    "RESOURCE_ALREADY_EXISTS": Remedy.ADOPT,
    "QUOTA_EXCEEDED": Remedy.FATAL,
}
_BY_CODE = {
    404: Remedy.ABSENT,
    409: Remedy.ADOPT,
    412: Remedy.REFETCH,
    429: Remedy.RETRY_NOW,
    501: Remedy.FATAL,
}
_ENABLE = "Enable the API: gcloud services enable {api}.googleapis.com"
_GRANT = "Grant the account the permission named here; role.yaml has all that are needed."
_ROOM = (
    "Run again later, choose another machine type, or, for a machine that is not made yet, list "
    "further zones of the region as zones in the spec."
)
_REPAIRS = {
    "SERVICE_DISABLED": _ENABLE,
    "accessNotConfigured": _ENABLE,
    "forbidden": _GRANT,
    "IAM_PERMISSION_DENIED": _GRANT,
    "QUOTA_EXCEEDED": "Ask for more quota in the console, or choose a smaller machine type.",
    "quotaExceeded": "Ask for more quota in the console, or delete what is not needed.",
    "SERVICE_ACCOUNT_ACCESS_DENIED": "Grant roles/iam.serviceAccountUser on that account.",
}
_BY_REMEDY = {
    Remedy.RETRY_NOW: "Run again in some minutes: Google did not recover in the time it was given.",
    Remedy.RETRY_SLOWLY: "Run again in some minutes: it was not ready in the time it was given.",
    Remedy.OTHER_ZONE: _ROOM,
    Remedy.REFETCH: "Run again when nobody else changes it.",
    Remedy.ADOPT: "Run again: what is there is compared with the spec.",
    Remedy.ABSENT: "Run again: what is missing is made.",
    Remedy.FATAL: "Change what Google refuses here, most likely in the spec.",
}
_PASSING = (Remedy.RETRY_NOW, Remedy.RETRY_SLOWLY)
FIRST_PAUSE, LONGEST_PAUSE, SLOW_PAUSE = 0.5, 20.0, 5.0
"""Seconds between tries: doubled from the first to the longest; slow ones begin at SLOW_PAUSE."""


class ApiError(BootstrapError):
    """``code`` is the HTTP status, ``reason`` Google's word for it, ``during`` the request or the
    operation it began."""

    def __init__(self, code: int, reason: str, message: str, during: str) -> None:
        self.code, self.reason, self.during = code, reason, during
        repair = _REPAIRS.get(reason) or _BY_REMEDY[self.remedy]
        api = during.partition(".")[0]
        super().__init__(f"{during}: {code} {reason}: {message}", repair=repair.format(api=api))

    @property
    def remedy(self) -> Remedy:
        if self.reason in _BY_REASON:
            return _BY_REASON[self.reason]
        return _BY_CODE.get(self.code, Remedy.RETRY_NOW if self.code >= 500 else Remedy.FATAL)


class DeadlinePassed(BootstrapError):
    """An operation was not done, or a failure did not pass, in the time it was given."""


@dataclass
class Run:
    """One run, however many clients it has: the ids of its requests, and what it has made.

    A request id follows from the flow run, its attempt, the step, and how often the run has begun
    that step. So every try of one call carries the same id, and makes one operation; a later call of
    the step carries another, for it has read what became of the first and must not be answered with
    its failure. A flow run that is started again is another ``attempt``: it, too, reads first, and
    what was still under way is found by its name.
    """

    id: uuid.UUID
    attempt: int = 1
    made: set[str] = field(default_factory=set)
    """Accounts that Google's other services may not know yet."""
    _begun: Counter[str] = field(default_factory=Counter)
    _alone: Lock = field(default_factory=Lock)

    def request_id(self, step: str) -> str:
        """The id of one more call of a step."""
        with self._alone:
            self._begun[step] += 1
            return str(uuid.uuid5(self.id, f"{self.attempt} {step} {self._begun[step]}"))


@dataclass
class _Backoff:
    """Longer and longer pauses, with jitter, up to a deadline."""

    deadline: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    pause: float = FIRST_PAUSE

    def wait(self, *, slowly: bool) -> bool:
        """Pause, and whether there was time for it."""
        self.pause = max(self.pause, SLOW_PAUSE if slowly else 0)
        if self.clock() + self.pause > self.deadline:
            return False
        self.sleep(self.pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
        self.pause = min(self.pause * 2, LONGEST_PAUSE)
        return True


class _Api:
    """An API, or a part of it. Each of its parts is made once, for all threads: googleapiclient
    completes the API's description as it makes them, which is not for two at a time."""

    def __init__(self, part: Any, alone: Lock) -> None:
        self._part, self._alone = part, alone
        self._parts: dict[str, _Api] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if not hasattr(found, "__is_resource__"):
            return found
        with self._alone:
            if name not in self._parts:
                self._parts[name] = _Api(found(), self._alone)
        return lambda: self._parts[name]


@cache
def described(api: str, version: str) -> Any:
    """An API of Google as its description has it, whose requests need a connection."""
    from googleapiclient.discovery import build
    from googleapiclient.http import build_http

    return _Api(build(api, version, http=build_http(), cache_discovery=False), Lock())


@dataclass(frozen=True)
class Compute:
    """A client for one project, in any thread: each has a connection of its own, for httplib2 is not
    thread safe. ``connection`` makes one."""

    project: str
    service: Any
    run: Run
    connection: Callable[[], Any]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _here: local = field(default_factory=local, repr=False, compare=False)

    @classmethod
    def connect(cls, account: Credentials, project: str, run: Run) -> Compute:
        """A client that acts as the account."""
        from google_auth_httplib2 import AuthorizedHttp
        from googleapiclient.http import build_http

        def connection() -> Any:
            return AuthorizedHttp(account, http=build_http())

        return cls(project, described("compute", "v1"), run, connection)

    @cached_property
    def iam(self) -> Any:
        """The IAM API."""
        return described("iam", "v1")

    def ask(self, request: Any, *, seconds: float = 60) -> Json:
        """The answer to a request that begins no operation. Raises ApiError."""
        return self._ask(request, self.clock() + seconds)

    def read(self, request: Any, *, seconds: float = 60) -> Json | None:
        """The answer to a request that changes nothing; None when the resource does not exist."""
        try:
            return self.ask(request, seconds=seconds)
        except ApiError as error:
            if error.remedy is Remedy.ABSENT:
                return None
            raise

    def change(
        self, method: Callable[..., Any], step: str, *, seconds: float = 300, **arguments: Any
    ) -> Json:
        """Call a method and wait for its operation; the operation, done. ``step`` is what an error
        calls it. Raises ApiError as of the request or of the operation."""
        deadline = self.clock() + seconds
        backoff = _Backoff(deadline, self.clock, self.sleep)
        while True:
            request_id = self.run.request_id(step)
            operation = self._ask(
                method(project=self.project, requestId=request_id, **arguments), deadline
            )
            while operation["status"] != "DONE":
                if self.clock() > deadline:
                    raise DeadlinePassed(
                        f"{step}: operation {operation['name']} is not done after {seconds:.0f} s.",
                        repair="Run again: it will find what that operation made.",
                    )
                operation = self._ask(self._wait(operation), deadline)
            if "error" not in operation:
                return operation
            first = operation["error"]["errors"][0]
            code = operation.get("httpErrorStatusCode", 400)
            error = ApiError(code, first["code"], first["message"], f"operation of {step}")
            slowly = error.remedy is Remedy.RETRY_SLOWLY
            if error.remedy not in _PASSING or not backoff.wait(slowly=slowly):
                raise error

    @property
    def _http(self) -> Any:
        """This thread's connection."""
        if not hasattr(self._here, "http"):
            self._here.http = self.connection()
        return self._here.http

    def _wait(self, operation: Json) -> Any:
        """The request that holds until the operation is done, two minutes at most."""
        name = {"project": self.project, "operation": operation["name"]}
        for scope in ("zone", "region"):
            if scope in operation:
                place = operation[scope].rpartition("/")[2]
                service = getattr(self.service, f"{scope}Operations")()
                return service.wait(**name, **{scope: place})
        return self.service.globalOperations().wait(**name)

    def _ask(self, request: Any, deadline: float) -> Json:
        """The answer, trying again what may pass by itself."""
        from google.auth.exceptions import TransportError
        from googleapiclient.errors import HttpError
        from httplib2 import HttpLib2Error

        backoff = _Backoff(deadline, self.clock, self.sleep)
        while True:
            slowly = False
            try:
                answer: Json = request.execute(http=self._http)
                return answer
            except HttpError as http:
                error = _told(http, request.methodId)
                if error.remedy not in _PASSING:
                    raise error from None
                slowly = error.remedy is Remedy.RETRY_SLOWLY
                cause: Exception = error
            except (OSError, HTTPException, HttpLib2Error, TransportError) as network:
                cause = network
            if backoff.wait(slowly=slowly):
                continue
            if isinstance(cause, ApiError):
                raise cause
            raise DeadlinePassed(
                f"{request.methodId}: no answer from Google: {cause!r}.",
                repair="Check the network and that Google's APIs can be reached from here.",
            ) from cause


def _told(error: Any, method: str) -> ApiError:
    """What an HttpError says; the reason of its ErrorInfo where it has one."""
    try:
        body = json.loads(error.content)["error"]
    except (ValueError, KeyError, TypeError):
        return ApiError(error.status_code, "", str(error.reason), method)
    infos = [d["reason"] for d in body.get("details", ()) if "reason" in d]
    reasons = infos + [e["reason"] for e in body.get("errors", ()) if "reason" in e]
    return ApiError(error.status_code, next(iter(reasons), ""), body.get("message", ""), method)
