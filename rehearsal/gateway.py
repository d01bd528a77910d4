"""The way every API request takes, whatever brought it: REST, a batch, or gRPC.

match → caller → fault → service enabled → permission → validate → handler → validate → log.

A handler is registered for a method's discovery id with ``@handles``; a method without one answers
501. It gets the cloud and a ``Call`` and returns the response body, or raises ``ApiError``.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from jsonschema import ValidationError

from rehearsal import errors, iam
from rehearsal.discovery import Api, Method
from rehearsal.errors import ApiError, Json

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

DOCUMENTS = (
    "compute.v1",
    "secretmanager.v1",
    "cloudresourcemanager.v1",
    "cloudresourcemanager.v3",
    "serviceusage.v1",
    "iam.v1",
    "iamcredentials.v1",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One request that passed every check. ``path`` is the resource path without API prefix."""

    method: Method
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: Json
    caller: str
    path: str

    @property
    def place(self) -> str:
        """The project's region or zone that the path lies in: ``projects/P/zones/Z``."""
        return "/".join(self.path.split("/")[:4])


Handler = Callable[["Cloud", Call], Awaitable[Json]]
HANDLERS: dict[str, Handler] = {}


def handles(*methods: str) -> Callable[[Handler], Handler]:
    """Register a handler for methods by discovery id, such as ``compute.instances.insert``."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(methods, handler))
        return handler

    return register


class Gateway:
    """Answers requests for all APIs. ``log`` receives one JSON object a line."""

    def __init__(self, cloud: Cloud, log: TextIO) -> None:
        self.cloud, self._log = cloud, log
        self.apis = [Api(document) for document in DOCUMENTS]

    async def answer(
        self,
        host: str,
        verb: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | Json,
        authorization: str,
    ) -> tuple[int, Json]:
        """Status and body of one request. ``path`` starts with a slash; bodies are never logged."""
        began = time.monotonic()
        caller, method_id, classic = None, f"{verb} {path}", False
        try:
            caller = self.cloud.identities.caller(authorization)
            api, method, params = self._match(host, verb, path)
            method_id, classic = method.id, api.name == "compute"
            if caller is None:
                raise ApiError(401, "authError", "Request had invalid authentication credentials.")
            status, answer = 200, await self._handle(api, method, params, query, body, caller, path)
        except ApiError as error:
            status, answer = error.code, error.body(classic=classic)
        except ValidationError as error:
            # Where, not what: the value could be a secret.
            where = f"{error.json_path} ({error.validator})"
            logger.error("our own answer to %s breaks Google's schema at %s", method_id, where)
            status, answer = 500, _internal(f"{method_id}: {where}")
        except Exception as error:  # the boundary: one request's defect must not end the cloud
            logger.exception("%s failed", method_id)
            status, answer = 500, _internal(f"{method_id}: {error!r}")
        self.log_line(caller, method_id, status, verb, path, began)
        return status, answer

    def _match(self, host: str, verb: str, path: str) -> tuple[Api, Method, dict[str, str]]:
        for api in self.apis:
            if host in (api.host, "www.googleapis.com") and (found := api.match(verb, path)):
                return api, *found
        raise ApiError(404, "notFound", f"There is no method {verb} {path} at {host}.")

    async def _handle(
        self,
        api: Api,
        method: Method,
        params: dict[str, str],
        query: Mapping[str, str],
        raw: bytes | Json,
        caller: str,
        path: str,
    ) -> Json:
        cloud = self.cloud
        await cloud.faults.before(method.id)
        cloud.services.check(api.host)
        path = path.removeprefix(api.base)
        public = path.startswith("projects/debian-cloud/")  # its images are everybody's
        for permission in () if public else iam.permissions(method.id):
            if not cloud.identities.may(caller, permission):
                if api.name == "compute":
                    raise errors.forbidden(permission, path)
                raise errors.denied(permission, re.sub("^v[0-9]+/", "", path), api.host)
        body = _parse(raw)
        if method.request:
            body = api.writable(method.request, body)
        api.check_request(method, params, query, body)
        handler = HANDLERS.get(method.id)
        if handler is None:
            raise errors.not_implemented(method.id)
        answer = await handler(cloud, Call(method, params, query, body, caller, path))
        api.check_response(method, answer)
        return answer

    def log_line(
        self, caller: str | None, method: str, status: int, verb: str, path: str, began: float
    ) -> None:
        entry = {
            "time": round(time.time(), 3),
            "caller": caller,
            "method": method,
            "status": status,
            "request": f"{verb} {path}",
            "seconds": round(time.monotonic() - began, 4),
        }
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()


def _parse(raw: bytes | Json) -> Json:
    if isinstance(raw, dict):
        return raw
    try:
        body = json.loads(raw or b"{}", parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise errors.malformed("Invalid JSON payload received. It is not JSON.") from None
    if not isinstance(body, dict):
        raise errors.malformed("Invalid JSON payload received. Root element must be a message.")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _internal(message: str) -> Json:
    return ApiError(500, "backendError", message).body(classic=False)
