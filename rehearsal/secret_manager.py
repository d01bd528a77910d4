"""Secret Manager: secrets and their versions.

Global secrets only. An IAM policy is kept and shown; it grants nothing. Values are held apart from
the resources, and appear in no log and no error.
Sources: https://cloud.google.com/secret-manager/docs/reference/rest and, for how etags work,
https://cloud.google.com/secret-manager/docs/etags
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import google_crc32c

from rehearsal.config import PROJECT, PROJECT_NUMBER
from rehearsal.errors import ApiError, Json, forbidden, not_implemented
from rehearsal.gateway import Call, handles
from rehearsal.iam import permissions
from rehearsal.store import fingerprint, select

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

LARGEST: Final = 64 * 1024
"""Bytes of a payload."""
_MUTABLE = {"labels", "annotations", "versionAliases"}
_CREATABLE = _MUTABLE | {"replication", "etag"}
_STATES = {"enable": "ENABLED", "disable": "DISABLED", "destroy": "DESTROYED"}


@dataclass
class Version:
    """``payload`` is as ``access`` shows it; None once destroyed."""

    number: str
    resource: Json
    payload: Json | None = field(repr=False)


@dataclass
class Secret:
    resource: Json
    versions: list[Version] = field(default_factory=list)
    policy: Json = field(default_factory=lambda: {"etag": "ACAB"})
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))


class SecretStore:
    """The project's secrets by name, ``projects/NUMBER/secrets/ID``."""

    def __init__(self) -> None:
        self.secrets: dict[str, Secret] = {}

    def secret(self, call: Call) -> Secret:
        name = _name(call)
        if name not in self.secrets:
            raise ApiError(404, "notFound", f"Secret [{name}] not found.")
        return self.secrets[name]

    def version(self, call: Call) -> Version:
        """The version a call names by number, by alias or as ``latest``, whatever its state."""
        name, wanted = _name(call), call.params["versionsId"]
        secret = self.secrets.get(name)
        if wanted == "latest":
            if secret is None or not secret.versions:
                raise ApiError(404, "notFound", f"Secret [{name}] not found or has no versions.")
            return secret.versions[-1]
        if secret:
            wanted = str(secret.resource.get("versionAliases", {}).get(wanted, wanted))
            for version in secret.versions:
                if version.number == wanted:
                    return version
        raise ApiError(404, "notFound", f"Secret Version [{name}/versions/{wanted}] not found.")


@handles("secretmanager.projects.secrets.create")
async def _create(cloud: Cloud, call: Call) -> Json:
    secret_id = call.query.get("secretId", "")
    if not re.fullmatch(r"[\w-]{1,255}", secret_id, re.ASCII):
        raise _invalid("Secret ID must be 1 to 255 letters, digits, hyphens and underscores.")
    name = f"{_project(call)}/secrets/{secret_id}"
    if name in cloud.secrets.secrets:
        raise ApiError(409, "alreadyExists", f"Secret [{name}] already exists.")
    if unknown := call.body.keys() - _CREATABLE:
        raise not_implemented(f"secrets with {', '.join(sorted(unknown))}")
    if len(call.body.get("replication", {})) != 1:
        raise _invalid("Field [secret.replication] is required.")
    resource = {**call.body, "name": name, "createTime": _now(), "etag": _etag()}
    cloud.secrets.secrets[name] = Secret(resource)
    return resource


@handles("secretmanager.projects.secrets.get")
async def _get(cloud: Cloud, call: Call) -> Json:
    return cloud.secrets.secret(call).resource


@handles("secretmanager.projects.secrets.list")
async def _list(cloud: Cloud, call: Call) -> Json:
    _project(call)
    by_name = sorted(cloud.secrets.secrets.items())
    return _page("secrets", [secret.resource for _, secret in by_name], call)


@handles("secretmanager.projects.secrets.patch")
async def _patch(cloud: Cloud, call: Call) -> Json:
    resource = cloud.secrets.secret(call).resource
    fields = set(filter(None, call.query.get("updateMask", "").split(",")))
    if not fields:
        raise _invalid("Field [update_mask] is required.")
    if unknown := fields - _MUTABLE:
        raise not_implemented(f"changes of {', '.join(sorted(unknown))}")
    _touch(resource, call.body.get("etag"))
    for name in fields:
        resource.pop(name, None)
        if call.body.get(name):
            resource[name] = call.body[name]
    return resource


@handles("secretmanager.projects.secrets.delete")
async def _delete(cloud: Cloud, call: Call) -> Json:
    _touch(cloud.secrets.secret(call).resource, call.query.get("etag"))
    del cloud.secrets.secrets[_name(call)]
    return {}


@handles("secretmanager.projects.secrets.getIamPolicy")
async def _get_policy(cloud: Cloud, call: Call) -> Json:
    return cloud.secrets.secret(call).policy


@handles("secretmanager.projects.secrets.setIamPolicy")
async def _set_policy(cloud: Cloud, call: Call) -> Json:
    secret = cloud.secrets.secret(call)
    policy = call.body.get("policy", {})
    if policy.get("etag", secret.policy["etag"]) != secret.policy["etag"]:
        raise ApiError(
            409,
            "aborted",
            "There were concurrent policy changes. Please retry the whole read-modify-write with "
            "exponential backoff.",
        )
    secret.policy = {"version": 1, **policy, "etag": fingerprint(_etag())}
    return secret.policy


@handles("secretmanager.projects.secrets.addVersion")
async def _add_version(cloud: Cloud, call: Call) -> Json:
    secret = cloud.secrets.secret(call)
    payload = call.body.get("payload", {})
    data = _decode(payload.get("data", ""))
    checksum = str(google_crc32c.value(data))
    if str(payload.get("dataCrc32c", checksum)) != checksum:
        raise _invalid("The checksum of the payload does not match its data.")
    number = str(next(secret.numbers))
    replicas = secret.resource["replication"].get("userManaged", {}).get("replicas", [])
    places = {"userManaged": {"replicas": [{"location": r["location"]} for r in replicas]}}
    resource: Json = {
        "name": f"{secret.resource['name']}/versions/{number}",
        "createTime": _now(),
        "state": "ENABLED",
        "replicationStatus": places if replicas else {"automatic": {}},
        "etag": _etag(),
    }
    if "dataCrc32c" in payload:
        resource["clientSpecifiedPayloadChecksum"] = True
    shown = {"data": base64.b64encode(data).decode(), "dataCrc32c": checksum}
    secret.versions.append(Version(number, resource, shown))
    return resource


@handles("secretmanager.projects.secrets.versions.get")
async def _get_version(cloud: Cloud, call: Call) -> Json:
    return cloud.secrets.version(call).resource


@handles("secretmanager.projects.secrets.versions.list")
async def _list_versions(cloud: Cloud, call: Call) -> Json:
    newest_first = reversed(cloud.secrets.secret(call).versions)
    return _page("versions", [version.resource for version in newest_first], call)


@handles("secretmanager.projects.secrets.versions.access")
async def _access(cloud: Cloud, call: Call) -> Json:
    version = cloud.secrets.version(call)
    name, state = version.resource["name"], version.resource["state"]
    if state != "ENABLED" or version.payload is None:
        raise _precondition(f"Secret Version [{name}] is in {state} state.")
    return {"name": name, "payload": version.payload}


@handles(
    "secretmanager.projects.secrets.versions.enable",
    "secretmanager.projects.secrets.versions.disable",
    "secretmanager.projects.secrets.versions.destroy",
)
async def _change_state(cloud: Cloud, call: Call) -> Json:
    if not call.params["versionsId"].isdecimal():
        raise _invalid("Only get and access take an alias in place of a version's number.")
    version = cloud.secrets.version(call)
    if version.resource["state"] == "DESTROYED":
        raise _precondition("SecretVersion.state is already DESTROYED.")
    _touch(version.resource, call.body.get("etag"))
    version.resource["state"] = _STATES[call.method.action]
    if call.method.action == "destroy":
        version.payload, version.resource["destroyTime"] = None, _now()
    return version.resource


def _project(call: Call) -> str:
    """The project in Google's own spelling, by number; only one exists here."""
    if call.params["projectsId"] not in (PROJECT, PROJECT_NUMBER):
        raise forbidden(permissions(call.method.id)[0], call.path)
    return f"projects/{PROJECT_NUMBER}"


def _name(call: Call) -> str:
    return f"{_project(call)}/secrets/{call.params['secretsId']}"


def _page(kind: str, resources: list[Json], call: Call) -> Json:
    """One page of a list. A page token is the number of resources before it."""
    found = select(resources, call.query.get("filter", ""))
    size, token = int(call.query.get("pageSize", 0)) or 25000, call.query.get("pageToken") or "0"
    if not token.isdecimal():
        raise _invalid("Invalid page token.")
    end = int(token) + size
    answer: Json = {kind: found[int(token) : end], "totalSize": len(found)}
    if end < len(found):
        answer["nextPageToken"] = str(end)
    return answer


def _decode(data: str) -> bytes:
    """Payload bytes from base64 in either alphabet, padded or not."""
    text = data.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        payload = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise _invalid("Invalid value at 'payload.data' (TYPE_BYTES): not base64.") from None
    if not payload:
        raise _invalid("Secret Payload cannot be empty.")
    if len(payload) > LARGEST:
        raise _invalid(f"Secret Payload is larger than {LARGEST} bytes.")
    return payload


def _touch(resource: Json, etag: str | None) -> None:
    """Check the etag a change came with, if any, and give the resource its next one."""
    if etag and etag != resource["etag"]:
        raise _precondition(f"The etag of [{resource['name']}] is not {etag}.")
    resource["etag"] = _etag()


def _etag() -> str:
    return f'"{secrets.token_hex(7)}"'


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _invalid(message: str) -> ApiError:
    return ApiError(400, "badRequest", message)


def _precondition(message: str) -> ApiError:
    return ApiError(400, "failedPrecondition", message)
