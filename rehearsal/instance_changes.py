"""Changes of an instance, one method each, and looks inside it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rehearsal import errors, instance_body
from rehearsal.collection import Mutated, check_fingerprint, reference
from rehearsal.config import PROJECT
from rehearsal.errors import ApiError, Json, OperationError
from rehearsal.gateway import Call, handles
from rehearsal.instances import INSTANCES, check_act_as, plug, target
from rehearsal.operations import mutates
from rehearsal.store import link, normalize, path_of

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

SERIAL_BYTES = 1 << 20
"""As much of the console as one answer shows, as on Google."""


@mutates("compute.instances.setMetadata")
async def _set_metadata(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    check_fingerprint(call.body, resource["metadata"]["fingerprint"], "metadata")
    instance_body.check_metadata(call.body)
    resource["metadata"] = {"kind": "compute#metadata", "items": call.body.get("items", [])}
    INSTANCES.stamp(resource)
    return resource, cloud.changed_metadata, None


@mutates("compute.instances.setTags")
async def _set_tags(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    check_fingerprint(call.body, resource["tags"]["fingerprint"])
    resource["tags"] = {"items": call.body.get("items", [])}
    INSTANCES.stamp(resource)
    network = resource["networkInterfaces"][0]["network"]
    return resource, lambda: cloud.network_changed(network), None


@mutates("compute.instances.setMachineType")
async def _set_machine_type(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    body = normalize(call.body, PROJECT)
    wanted = instance_body.check_machine_type(cloud, body, call.place)["selfLink"]

    async def work() -> None:
        if resource["status"] != "TERMINATED":
            path = path_of(resource["selfLink"])
            message = f"The resource '{path}' is not ready"
            raise OperationError("RESOURCE_NOT_READY", message, 400)
        resource["machineType"] = wanted

    return resource, work, None


@mutates("compute.instances.setServiceAccount")
async def _set_service_account(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)

    async def work() -> None:
        if resource["status"] != "TERMINATED":
            raise OperationError(
                "RESOURCE_NOT_READY",
                "The instance must be stopped before the service account can be changed.",
                400,
            )
        email = call.body.get("email")
        if email:
            check_act_as(cloud, call.caller, email)
        account = {"email": email, "scopes": call.body.get("scopes", [])}
        resource["serviceAccounts"] = [account] if email else []

    return resource, work, None


@mutates("compute.instances.setDeletionProtection")
async def _set_deletion_protection(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    resource["deletionProtection"] = call.query.get("deletionProtection", "true").lower() == "true"
    return resource, None, None


@mutates("compute.instances.setScheduling")
async def _set_scheduling(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    resource["scheduling"].update(call.body)
    return resource, None, None


@mutates("compute.instances.updateShieldedInstanceConfig")
async def _update_shielded(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    current = resource["shieldedInstanceConfig"]
    locked = {"enableSecureBoot", "enableVtpm"}
    changes = {k: v for k, v in call.body.items() if current.get(k) != v}
    if resource["status"] != "TERMINATED" and locked & changes.keys():
        raise errors.invalid_usage("Instance should be in the STOPPED state.")
    current.update(changes)
    return resource, None, None


@mutates("compute.instances.addAccessConfig")
async def _add_access(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    nic = _interface(resource, call)
    if nic.get("accessConfigs"):
        raise errors.invalid_usage("At most one access config currently supported.")
    access = dict(call.body)
    instance_body.complete_access(cloud, access)
    nic["accessConfigs"] = [access]
    return resource, lambda: cloud.network_changed(nic["network"]), None


@mutates("compute.instances.deleteAccessConfig")
async def _delete_access(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    nic = _interface(resource, call)
    name = call.query["accessConfig"]
    if name not in [access["name"] for access in nic.get("accessConfigs", ())]:
        raise errors.invalid("accessConfig", name, "There is no such access config.")
    del nic["accessConfigs"]
    return resource, lambda: cloud.network_changed(nic["network"]), None


@mutates("compute.instances.attachDisk")
async def _attach(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    attached = normalize(call.body, PROJECT)
    disk = reference(cloud, attached, "source")
    if disk["users"]:
        path = path_of(disk["selfLink"])
        raise errors.in_use("disk", path, path_of(disk["users"][0]))
    index = 1 + max(d["index"] for d in resource["disks"])
    attached.setdefault("deviceName", f"persistent-disk-{index}")
    attached.update(index=index, kind="compute#attachedDisk", type="PERSISTENT", boot=False)
    attached.setdefault("mode", "READ_WRITE")
    attached.setdefault("autoDelete", False)

    async def work() -> None:
        disk["users"] = [resource["selfLink"]]
        if resource["status"] == "RUNNING":
            await plug(cloud, cloud.machine(resource), attached)
        resource["disks"].append(attached)

    return resource, work, None


@mutates("compute.instances.detachDisk")
async def _detach(cloud: Cloud, call: Call) -> Mutated:
    resource = target(cloud, call)
    name = call.query.get("deviceName", "")
    attached = next((d for d in resource["disks"] if d["deviceName"] == name), None)
    if attached is None:
        raise errors.invalid("deviceName", name, "No attached disk found with device name.")
    if attached["boot"] and resource["status"] != "TERMINATED":
        raise errors.invalid_usage("The boot disk of a running instance cannot be detached.")

    async def work() -> None:
        disk = cloud.store.find(path_of(attached["source"]))
        if resource["status"] == "RUNNING":
            await cloud.machine(resource).unplug(attached["index"], name)
        disk["users"] = []
        resource["disks"].remove(attached)

    return resource, work, None


@handles("compute.instances.getGuestAttributes")
async def _guest_attributes(cloud: Cloud, call: Call) -> Json:
    resource = target(cloud, call)
    query = call.query.get("queryPath") or call.query.get("variableKey") or ""
    values = cloud.guest_attributes.get(resource["id"], {})
    items = [
        {"namespace": key.partition("/")[0], "key": key.partition("/")[2], "value": value}
        for key, value in sorted(values.items())
        if not query or key == query or key.startswith(query.rstrip("/") + "/")
    ]
    if not items:
        message = f"The resource '{query}' of type 'Guest Attribute' was not found."
        raise ApiError(404, "notFound", message)
    return {
        "kind": "compute#guestAttributes",
        "selfLink": link(call.path),
        "queryPath": query,
        "queryValue": {"items": items},
    }


@handles("compute.instances.getSerialPortOutput")
async def _serial(cloud: Cloud, call: Call) -> Json:
    resource = cloud.store.find(call.path.rpartition("/")[0])
    console = cloud.machine(resource).console
    content = await asyncio.to_thread(console.read_bytes) if console.exists() else b""
    if int(call.query.get("port", 1)) != 1:
        content = b""
    start = max(int(call.query.get("start", 0)), len(content) - SERIAL_BYTES, 0)
    return {
        "kind": "compute#serialPortOutput",
        "selfLink": link(call.path),
        "contents": content[start:].decode(errors="replace"),
        "start": str(start),
        "next": str(len(content)),
    }


def _interface(resource: Json, call: Call) -> Json:
    """The interface a request names."""
    nic: Json = resource["networkInterfaces"][0]
    if call.query["networkInterface"] != nic["name"]:
        raise errors.invalid("networkInterface", call.query["networkInterface"], "Unknown.")
    return nic
