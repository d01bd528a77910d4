"""Google's answers when something is wrong, word for word where a recording of them exists.

``ApiError`` is the answer to a request; ``OperationError`` is what an operation ends with after its
request was answered 200. Compute Engine's classic errors have no ``status`` member; every other API
and Compute's newer checks have one.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}
"""HTTP status to ``google.rpc.Code`` name; gRPC clients get the same name."""
STATUS_OF_REASON = {"failedPrecondition": "FAILED_PRECONDITION", "aborted": "ABORTED"}
"""Reasons that share their HTTP status, 400 or 409, with another status name."""


class ApiError(Exception):
    """An HTTP error answer: ``code`` is the status, ``reason`` Google's short word for it."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: list[Json] | None = None,
        **item: str,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details, self.item = details, item

    def body(self, *, classic: bool) -> Json:
        """The error envelope; ``classic`` is Compute Engine's, without ``status``."""
        entry = {"message": self.message, "domain": "global", "reason": self.reason, **self.item}
        error: Json = {"code": self.code, "message": self.message, "errors": [entry]}
        if self.details:
            error["details"] = self.details
        if self.details or not classic:
            status = STATUS.get(self.code, "UNKNOWN")
            error["status"] = STATUS_OF_REASON.get(self.reason, status)
        return {"error": error}


class OperationError(Exception):
    """The error an operation ends with. ``http`` is its httpErrorStatusCode."""

    def __init__(
        self, code: str, message: str, http: int = 400, *, details: list[Json] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.http, self.details = code, message, http, details

    def fields(self) -> Json:
        """What the operation resource says of it."""
        error: Json = {"code": self.code, "message": self.message}
        if self.details:
            error["errorDetails"] = self.details
        words = {400: "BAD REQUEST", 403: "FORBIDDEN", 409: "CONFLICT", 503: "SERVICE UNAVAILABLE"}
        return {
            "error": {"errors": [error]},
            "httpErrorStatusCode": self.http,
            "httpErrorMessage": words.get(self.http, "INTERNAL SERVER ERROR"),
        }


def not_found(path: str) -> ApiError:
    return ApiError(404, "notFound", f"The resource '{path}' was not found")


def exists(path: str) -> ApiError:
    return ApiError(409, "alreadyExists", f"The resource '{path}' already exists")


def forbidden(permission: str, path: str) -> ApiError:
    return ApiError(403, "forbidden", f"Required '{permission}' permission for '{path}'")


def denied(permission: str, resource: str, service: str) -> ApiError:
    """What every API but Compute Engine says of a missing permission."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "IAM_PERMISSION_DENIED",
        "domain": service,
        "metadata": {"permission": permission, "resource": resource},
    }
    message = f"Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
    return ApiError(403, "forbidden", message, details=[info])


def invalid(field: str, value: object, why: str) -> ApiError:
    message = f"Invalid value for field 'resource.{field}': '{value}'. {why}"
    return ApiError(400, "invalid", message)


def required(field: str) -> ApiError:
    return ApiError(400, "required", f"Required field 'resource.{field}' not specified")


def malformed(description: str) -> ApiError:
    """A request that does not fit the schema: JSON that is none, or an unknown name."""
    violation = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"description": description}],
    }
    return ApiError(400, "badRequest", description, details=[violation])


def stale(what: str = "") -> ApiError:
    message = f"Supplied fingerprint does not match current {what} fingerprint."
    return ApiError(
        412,
        "conditionNotMet",
        message if what else "Invalid fingerprint.",
        locationType="header",
        location="If-Match",
    )


def not_ready(path: str) -> ApiError:
    return ApiError(400, "resourceNotReady", f"The resource '{path}' is not ready")


def in_use(kind: str, path: str, by: str) -> ApiError:
    message = f"The {kind} resource '{path}' is already being used by '{by}'"
    return ApiError(400, "resourceInUseByAnotherResource", message)


def invalid_usage(why: str) -> ApiError:
    return ApiError(400, "invalidResourceUsage", f"Invalid resource usage: '{why}'.")


def not_implemented(method: str) -> ApiError:
    return ApiError(501, "notImplemented", f"The rehearsal cloud does not implement {method}.")


def disabled(service: str, number: str) -> ApiError:
    """The API has not been enabled in the project."""
    title = {"compute.googleapis.com": "Compute Engine API"}.get(service, service)
    url = f"https://console.developers.google.com/apis/api/{service}/overview?project={number}"
    message = (
        f"{title} has not been used in project {number} before or it is disabled. Enable it by "
        f"visiting {url} then retry. If you enabled this API recently, wait a few minutes for the "
        "action to propagate to our systems and retry."
    )
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "SERVICE_DISABLED",
        "domain": "googleapis.com",
        "metadata": {"service": service, "consumer": f"projects/{number}"},
    }
    return ApiError(403, "accessNotConfigured", message, details=[info])


def rate_limited(number: str) -> ApiError:
    message = (
        "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute per "
        f"region' of service 'compute.googleapis.com' for consumer 'project_number:{number}'."
    )
    return ApiError(403, "rateLimitExceeded", message)


def concurrent_operations(number: str) -> ApiError:
    """Too many operations at once; it takes a minute to pass."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED",
        "domain": "compute.googleapis.com",
        "metadata": {"consumer": f"projects/{number}"},
    }
    return ApiError(403, "rateLimitExceeded", "Rate Limit Exceeded", details=[info])


def already_there(path: str) -> OperationError:
    """A conflict that shows only in the operation."""
    message = f"The resource '{path}' already exists"
    return OperationError("RESOURCE_ALREADY_EXISTS", message, 409)


def out_of_stock(zone: str, machine_type: str) -> OperationError:
    """``zone`` as ``projects/P/zones/Z``."""
    message = (
        f"The zone '{zone}' does not have enough resources available to fulfill the request.  "
        "Try a different zone, or try again later."
    )
    info = {
        "reason": "resource_availability",
        "domain": "compute.googleapis.com",
        "metadatas": {"zone": zone.rpartition("/")[2], "vmType": machine_type},
    }
    return OperationError(
        "ZONE_RESOURCE_POOL_EXHAUSTED", message, 503, details=[{"errorInfo": info}]
    )


def over_quota(metric: str, limit: float, region: str) -> OperationError:
    message = f"Quota '{metric}' exceeded.  Limit: {limit:.1f} in region {region}."
    info = {
        "metricName": f"compute.googleapis.com/{metric.lower()}",
        "limitName": f"{metric}-per-project-region",
        "limit": limit,
        "dimensions": {"region": region},
    }
    return OperationError("QUOTA_EXCEEDED", message, 403, details=[{"quotaInfo": info}])


def account_denied(account: str, caller: str) -> OperationError:
    message = (
        f"The user does not have access to service account '{account}'.  User: '{caller}'.  Ask a "
        "project owner to grant you the iam.serviceAccountUser role on the service account"
    )
    return OperationError("SERVICE_ACCOUNT_ACCESS_DENIED", message, 400)


def used_by(kind: str, path: str, by: str) -> OperationError:
    message = f"The {kind} resource '{path}' is already being used by '{by}'"
    return OperationError("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", message, 400)
