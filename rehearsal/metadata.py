"""The metadata server on 169.254.169.254, inside every network.

A machine is told from the others by its address. Values are a tree: read as text one by one, or
recursively as JSON, where Google writes names in camel case; ``wait_for_change`` holds a request
until the value's ETag is another, which is how the guest agent learns of a new SSH key.
Source: https://cloud.google.com/compute/docs/metadata/querying-metadata
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from rehearsal.config import METADATA, PROJECT, PROJECT_NUMBER
from rehearsal.errors import Json
from rehearsal.instances import mac
from rehearsal.network import MTU
from rehearsal.store import fingerprint, path_of, short

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

ROOT = "/computeMetadata/v1"
GUEST = f"{ROOT}/instance/guest-attributes/"
LONGEST_WAIT = 3600.0


def handler(cloud: Cloud, network: str) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    """The HTTP handler of one network's metadata server."""

    async def handle(request: web.BaseRequest) -> web.Response:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        instance = cloud.instance_at(network, peer[0]) if peer else None
        if instance is None:
            return _text("unknown instance\n", 404)
        if request.path in ("/", ROOT.rpartition("/")[0]):
            return _text("computeMetadata/\n")
        if request.headers.get("Metadata-Flavor") != "Google":
            return _text("Missing Metadata-Flavor:Google header.\n", 403)
        if request.path.startswith(GUEST):
            return await _guest(cloud, instance, request)
        if request.method != "GET":
            return _text("method not allowed\n", 405)
        return await _read(cloud, instance, request)

    return handle


async def _read(cloud: Cloud, instance: Json, request: web.BaseRequest) -> web.Response:
    path = re.sub("/+", "/", request.path)
    parts = [part for part in path.removeprefix(ROOT).split("/") if part]
    if parts[:2] == ["instance", "service-accounts"] and parts[-1] in ("token", "identity"):
        return _token(cloud, instance, parts)

    def current() -> Any:
        return _walk(tree(cloud, instance), parts)

    value = current()
    if request.query.get("wait_for_change", "").lower() == "true":
        seen = request.query.get("last_etag", fingerprint(value))
        wait = min(float(request.query.get("timeout_sec", LONGEST_WAIT)), LONGEST_WAIT)
        try:
            async with asyncio.timeout(wait), cloud.metadata_changed:
                while fingerprint(value := current()) == seen:
                    await cloud.metadata_changed.wait()
        except TimeoutError:
            pass
    if value is None:
        return _text("not found\n", 404)
    folder = isinstance(value, dict | list)
    if folder and not path.endswith("/") and request.query.get("recursive") != "true":
        return web.Response(status=301, headers={"Location": f"http://{METADATA}{path}/"})
    etag = fingerprint(value)
    return _shown(value if "attributes" in parts else _camel(value), value, request, etag)


def _shown(json: Any, value: Any, request: web.BaseRequest, etag: str) -> web.Response:
    recursive = request.query.get("recursive", "").lower() == "true"
    folder = isinstance(value, dict | list)
    if request.query.get("alt", "json" if recursive and folder else "text") == "json":
        response = web.json_response(json)
    elif folder:
        names = value if isinstance(value, dict) else {str(i): v for i, v in enumerate(value)}
        lines = [k + "/" * isinstance(v, dict | list) for k, v in names.items()]
        response = _text("".join(f"{line}\n" for line in lines))
    else:
        response = _text(str(value))
    response.headers.update({"ETag": etag, "Metadata-Flavor": "Google"})
    return response


async def _guest(cloud: Cloud, instance: Json, request: web.BaseRequest) -> web.Response:
    """Attributes that the guest writes for the API to read, such as its SSH host keys."""
    if attribute(cloud, instance, "enable-guest-attributes").upper() != "TRUE":
        return _text("Guest attributes endpoint access is disabled.\n", 403)
    values = cloud.guest_attributes.setdefault(instance["id"], {})
    key = request.path.removeprefix(GUEST).strip("/")
    if request.method == "PUT":
        if key.count("/") != 1:
            return _text("a key is NAMESPACE/KEY\n", 400)
        values[key] = (await request.read()).decode(errors="replace")
        return _text("")
    if key not in values:
        return _text("not found\n", 404)
    if request.method == "DELETE":
        del values[key]
        return _text("")
    return _text(values[key])


def _token(cloud: Cloud, instance: Json, parts: list[str]) -> web.Response:
    emails = [account["email"] for account in instance.get("serviceAccounts", ())]
    email = emails[0] if emails and parts[2] == "default" else parts[2]
    if parts[-1] != "token" or email not in emails:
        return _text("not found\n", 404)
    return web.json_response(cloud.identities.token(email), headers={"Metadata-Flavor": "Google"})


def attribute(cloud: Cloud, instance: Json, key: str) -> str:
    """A metadata value: the instance's, else the project's, else empty."""
    return attributes(instance["metadata"]).get(key) or attributes(cloud.common_metadata).get(
        key, ""
    )


def attributes(metadata: Json) -> dict[str, str]:
    return {item["key"]: item.get("value", "") for item in metadata.get("items", ())}


def tree(cloud: Cloud, instance: Json) -> Json:
    """Everything the server knows for a machine, with names as they stand in paths."""
    nic = instance["networkInterfaces"][0]
    subnet = cloud.store.find(path_of(nic["subnetwork"]))
    ranges = ipaddress.ip_network(subnet["ipCidrRange"])
    number = f"projects/{PROJECT_NUMBER}"
    accounts = {
        name: {"aliases": ["default"], "email": a["email"], "scopes": a.get("scopes", [])}
        for a in instance.get("serviceAccounts", ())
        for name in ("default", a["email"])
    }
    return {
        "instance": {
            "attributes": attributes(instance["metadata"]),
            "cpu-platform": instance["cpuPlatform"],
            "description": instance.get("description", ""),
            "disks": [
                {
                    "device-name": disk["deviceName"],
                    "index": disk["index"],
                    "mode": disk["mode"],
                    "type": "PERSISTENT-BALANCED",
                }
                for disk in instance["disks"]
            ],
            "hostname": f"{instance['name']}.{short(instance['zone'])}.c.{PROJECT}.internal",
            "id": int(instance["id"]),
            "machine-type": f"{number}/machineTypes/{short(instance['machineType'])}",
            "maintenance-event": "NONE",
            "name": instance["name"],
            "network-interfaces": [
                {
                    "access-configs": [
                        {"external-ip": access["natIP"], "type": access["type"]}
                        for access in nic.get("accessConfigs", ())
                    ],
                    "dns-servers": [METADATA],
                    "forwarded-ips": [],
                    "gateway": subnet["gatewayAddress"],
                    "ip": nic["networkIP"],
                    "ip-aliases": [],
                    "mac": mac(nic["networkIP"]),
                    "mtu": MTU,
                    "network": f"{number}/networks/{short(nic['network'])}",
                    "subnetmask": str(ranges.netmask),
                    "target-instance-ips": [],
                }
            ],
            "preempted": "FALSE",
            "remaining-cpu-time": -1,
            "scheduling": {
                "automatic-restart": str(instance["scheduling"]["automaticRestart"]).upper(),
                "on-host-maintenance": instance["scheduling"]["onHostMaintenance"],
                "preemptible": "FALSE",
            },
            "service-accounts": accounts,
            "tags": instance["tags"].get("items", []),
            "virtual-clock": {"drift-token": "0"},
            "zone": f"{number}/zones/{short(instance['zone'])}",
        },
        "oslogin": {"authenticate": {"sessions": {}}},
        "project": {
            "attributes": attributes(cloud.common_metadata),
            "numeric-project-id": int(PROJECT_NUMBER),
            "project-id": PROJECT,
        },
    }


def _walk(value: Any, parts: list[str]) -> Any:
    for part in parts:
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


def _camel(value: Any) -> Any:
    """Names as they stand in JSON. Those below ``attributes`` are the user's and stay."""
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        re.sub("-(.)", lambda m: m[1].upper(), key): content
        if key == "attributes"
        else _camel(content)
        for key, content in value.items()
    }


def _text(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, headers={"Metadata-Flavor": "Google"})
