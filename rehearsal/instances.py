"""Instances: their life, their changes, and the machines behind them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from rehearsal import errors, image, instance_body, inventory
from rehearsal.collection import (
    Collection,
    Mutated,
    check_fingerprint,
    check_scope,
    reference,
)
from rehearsal.config import PROJECT
from rehearsal.disk import Disk
from rehearsal.errors import ApiError, Json, OperationError
from rehearsal.gateway import Call, handles
from rehearsal.iam import ACT_AS
from rehearsal.machine import Machine
from rehearsal.network import join, part
from rehearsal.operations import mutates
from rehearsal.storage import DISKS
from rehearsal.store import fingerprint, link, normalize, path_of, short

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

SERIAL_BYTES = 1 << 20
"""As much of the console as one answer shows, as on Google."""


class Instances(Collection):
    name, kind = "instances", "compute#instance"

    def __init__(self) -> None:
        super().__init__()
        for action, handler in {
            "start": self.start,
            "stop": self.stop,
            "reset": self.reset,
            "setMetadata": self.set_metadata,
            "setTags": self.set_tags,
            "setMachineType": self.set_machine_type,
            "setServiceAccount": self.set_service_account,
            "setDeletionProtection": self.set_deletion_protection,
            "setScheduling": self.set_scheduling,
            "updateShieldedInstanceConfig": self.update_shielded,
            "addAccessConfig": self.add_access,
            "deleteAccessConfig": self.delete_access,
            "attachDisk": self.attach,
            "detachDisk": self.detach,
        }.items():
            mutates(f"compute.instances.{action}")(handler)
        handles("compute.instances.getGuestAttributes")(self.guest_attributes)
        handles("compute.instances.getSerialPortOutput")(self.serial)

    def stamp(self, resource: Json) -> Json:
        super().stamp(resource)
        for field in ("metadata", "tags"):
            value = resource.setdefault(field, {})
            value["fingerprint"] = fingerprint(value.get("items", []))
        ignored = ("fingerprint", "status")
        resource["fingerprint"] = fingerprint(
            {k: v for k, v in resource.items() if k not in ignored}
        )
        return resource

    # Insert

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        instance_body.prepare(cloud, call, resource)

    async def insert(self, cloud: Cloud, call: Call) -> Mutated:
        resource, work, undo = await super().insert(cloud, call)
        given = [d for d in resource["disks"] if d["source"] not in cloud.planned_disks]

        async def all_or_nothing() -> None:
            try:
                for account in resource.get("serviceAccounts", ()):
                    _check_act_as(cloud, call.caller, account["email"])
                await self.changed(cloud, resource)
            except BaseException:
                for attached in given:  # was there before us, and stays
                    attached["autoDelete"] = False
                await self.deleted(cloud, resource)
                raise

        return resource, all_or_nothing if work else None, undo

    async def update(self, cloud: Cloud, call: Call) -> Mutated:
        raise errors.not_implemented(call.method.id)

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        """Make disks, namespace and machine, and power it on."""
        self._check_quota(cloud, resource)
        for attached in resource["disks"]:
            await _make_disk(cloud, attached, resource["selfLink"])
        await self._boot_first(cloud, resource)

    async def _boot_first(self, cloud: Cloud, resource: Json) -> None:
        resource["status"] = "STAGING"
        machine = self._machine(cloud, resource)
        cloud.machines[resource["id"]] = machine
        await machine.create()
        nic = resource["networkInterfaces"][0]
        subnet = cloud.store.find(path_of(nic["subnetwork"]))
        vpc = cloud.vpcs[nic["network"]].namespace
        address = nic["networkIP"]
        await join(
            machine.namespace, vpc, port(resource), address, subnet["gatewayAddress"], mac(address)
        )
        await cloud.network_changed(nic["network"])
        await self._power_on(cloud, resource)

    def _check_quota(self, cloud: Cloud, resource: Json) -> None:
        region = short(resource["zone"]).rpartition("-")[0]
        for metric, used in inventory.regional_usage(cloud.store, region).items():
            if used > cloud.quotas[metric]:
                raise errors.over_quota(metric, cloud.quotas[metric], region)

    def _machine(self, cloud: Cloud, resource: Json) -> Machine:
        boot = cloud.store.find(path_of(resource["disks"][0]["source"]))
        cpus, memory = inventory.MACHINE_TYPES[short(resource["machineType"])]

        def seed(root: Path) -> None:
            write_hosts(root, resource["networkInterfaces"][0]["networkIP"], resource)

        async def ended(code: int) -> None:
            resource["status"] = "TERMINATED"
            if code and resource["scheduling"]["automaticRestart"]:
                await self._power_on(cloud, resource)

        return Machine(
            name=f"i{resource['id']}",
            hostname=resource["name"],
            disk=Disk(boot["id"]),
            layers=[image.image()],
            cpus=cpus,
            memory=memory << 20,
            seed=seed,
            ended=ended,
        )

    async def _power_on(self, cloud: Cloud, resource: Json) -> None:
        machine = cloud.machine(resource)
        await machine.start()
        for attached in resource["disks"][1:]:
            await _plug(cloud, machine, attached)
        resource["status"] = "RUNNING"

    # Life

    def deletable(self, cloud: Cloud, resource: Json) -> None:
        if resource["deletionProtection"]:
            raise errors.invalid_usage(
                "Resource cannot be deleted if it's protected against deletion."
            )

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        resource["status"] = "STOPPING"
        if machine := cloud.machines.pop(resource["id"], None):
            await part(
                cloud.vpcs[resource["networkInterfaces"][0]["network"]].namespace, port(resource)
            )
            await machine.delete()
        cloud.guest_attributes.pop(resource["id"], None)
        for attached in resource["disks"]:
            cloud.planned_disks.pop(attached["source"], None)
            if disk := cloud.store.get(attached["source"]):
                disk["users"] = []
                if attached["autoDelete"]:
                    await DISKS.deleted(cloud, disk)
                    cloud.store.remove(path_of(disk["selfLink"]))

    async def gone(self, cloud: Cloud, resource: Json) -> None:
        await cloud.network_changed(resource["networkInterfaces"][0]["network"])

    async def start(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)

        async def work() -> None:
            if resource["status"] == "TERMINATED":
                resource["status"] = "STAGING"
                cpus, memory = inventory.MACHINE_TYPES[short(resource["machineType"])]
                machine = cloud.machine(resource)
                machine.cpus, machine.memory = cpus, memory << 20
                await self._power_on(cloud, resource)

        return resource, work, None

    async def stop(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)

        async def work() -> None:
            if resource["status"] == "RUNNING":
                resource["status"] = "STOPPING"
                await cloud.machine(resource).stop()
                resource["status"] = "TERMINATED"

        return resource, work, None

    async def reset(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        if resource["status"] != "RUNNING":
            raise errors.not_ready(path_of(resource["selfLink"]))

        async def work() -> None:
            await cloud.machine(resource).cut()
            await self._power_on(cloud, resource)

        return resource, work, None

    def _target(self, cloud: Cloud, call: Call) -> Json:
        """The instance a request with an action in its path is about."""
        check_scope(cloud, call)
        return self.stamp(cloud.store.find(call.path.rpartition("/")[0]))

    # Changes

    async def set_metadata(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        check_fingerprint(call.body, resource["metadata"]["fingerprint"], "metadata")
        instance_body.check_metadata(call.body)
        resource["metadata"] = {"kind": "compute#metadata", "items": call.body.get("items", [])}
        self.stamp(resource)
        return resource, cloud.changed_metadata, None

    async def set_tags(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        check_fingerprint(call.body, resource["tags"]["fingerprint"])
        resource["tags"] = {"items": call.body.get("items", [])}
        self.stamp(resource)
        network = resource["networkInterfaces"][0]["network"]
        return resource, lambda: cloud.network_changed(network), None

    async def set_machine_type(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        body = normalize(call.body, PROJECT)
        zone = "/".join(call.path.split("/")[:4])
        wanted = instance_body.check_machine_type(cloud, body, zone)["selfLink"]

        async def work() -> None:
            if resource["status"] != "TERMINATED":
                path = path_of(resource["selfLink"])
                message = f"The resource '{path}' is not ready"
                raise OperationError("RESOURCE_NOT_READY", message, 400)
            resource["machineType"] = wanted

        return resource, work, None

    async def set_service_account(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)

        async def work() -> None:
            if resource["status"] != "TERMINATED":
                raise OperationError(
                    "RESOURCE_NOT_READY",
                    "The instance must be stopped before the service account can be changed.",
                    400,
                )
            email = call.body.get("email")
            if email:
                _check_act_as(cloud, call.caller, email)
            account = {"email": email, "scopes": call.body.get("scopes", [])}
            resource["serviceAccounts"] = [account] if email else []

        return resource, work, None

    async def set_deletion_protection(self, cloud: Cloud, call: Call) -> Mutated:
        check_scope(cloud, call)
        resource = cloud.store.find(call.path.removesuffix("/setDeletionProtection"))
        resource["deletionProtection"] = (
            call.query.get("deletionProtection", "true").lower() == "true"
        )
        return resource, None, None

    async def set_scheduling(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        resource["scheduling"].update(call.body)
        return resource, None, None

    async def update_shielded(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        current = resource["shieldedInstanceConfig"]
        locked = {"enableSecureBoot", "enableVtpm"}
        changes = {k: v for k, v in call.body.items() if current.get(k) != v}
        if resource["status"] != "TERMINATED" and locked & changes.keys():
            raise errors.invalid_usage("Instance should be in the STOPPED state.")
        current.update(changes)
        return resource, None, None

    async def add_access(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        nic = _interface(resource, call)
        if nic.get("accessConfigs"):
            raise errors.invalid_usage("At most one access config currently supported.")
        access = dict(call.body)
        instance_body.complete_access(cloud, access)
        nic["accessConfigs"] = [access]
        return resource, lambda: cloud.network_changed(nic["network"]), None

    async def delete_access(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
        nic = _interface(resource, call)
        name = call.query["accessConfig"]
        if name not in [access["name"] for access in nic.get("accessConfigs", ())]:
            raise errors.invalid("accessConfig", name, "There is no such access config.")
        del nic["accessConfigs"]
        return resource, lambda: cloud.network_changed(nic["network"]), None

    async def attach(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
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
                await _plug(cloud, cloud.machine(resource), attached)
            resource["disks"].append(attached)

        return resource, work, None

    async def detach(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self._target(cloud, call)
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

    # Looking inside

    async def guest_attributes(self, cloud: Cloud, call: Call) -> Json:
        resource = self._target(cloud, call)
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

    async def serial(self, cloud: Cloud, call: Call) -> Json:
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


def port(resource: Json) -> str:
    """The instance's port on the bridge of its network."""
    return f"i{resource['id'][-12:]}"


def mac(address: str) -> str:
    """Google's hardware address of an internal address."""
    return "42:01:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def write_hosts(root: Path, address: str, resource: Json) -> None:
    """What Google's DHCP hook writes into /etc/hosts."""
    name = resource["name"]
    full = f"{name}.{short(resource['zone'])}.c.{PROJECT}.internal"
    (root / "etc/hosts").write_text(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        f"{address} {full} {name}  # Added by Google\n"
        "169.254.169.254 metadata.google.internal  # Added by Google\n"
    )


def _interface(resource: Json, call: Call) -> Json:
    """The interface a request names."""
    nic: Json = resource["networkInterfaces"][0]
    if call.query["networkInterface"] != nic["name"]:
        raise errors.invalid("networkInterface", call.query["networkInterface"], "Unknown.")
    return nic


def _check_act_as(cloud: Cloud, caller: str, account: str) -> None:
    if not cloud.identities.may(caller, ACT_AS):
        raise errors.account_denied(account, caller)


async def _make_disk(cloud: Cloud, attached: Json, user: str) -> None:
    if disk := cloud.planned_disks.pop(attached["source"], None):
        cloud.store.add(path_of(attached["source"]), DISKS.kind, disk)
        await DISKS.changed(cloud, disk)
    cloud.store.find(path_of(attached["source"]))["users"] = [user]


async def _plug(cloud: Cloud, machine: Machine, attached: Json) -> None:
    disk = cloud.store.find(path_of(attached["source"]))
    await machine.plug(Disk(disk["id"]).file, attached["index"], attached["deviceName"])


INSTANCES = Instances()
