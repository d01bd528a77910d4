"""Instances: their life, and the machines behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rehearsal import errors, image, instance_body, inventory
from rehearsal.collection import (
    Collection,
    Mutated,
    check_scope,
)
from rehearsal.config import PROJECT
from rehearsal.disk import Disk
from rehearsal.errors import Json
from rehearsal.gateway import Call
from rehearsal.iam import ACT_AS
from rehearsal.machine import Machine
from rehearsal.network import join, part
from rehearsal.operations import mutates
from rehearsal.storage import DISKS
from rehearsal.store import fingerprint, path_of, short

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud


class Instances(Collection):
    name, kind = "instances", "compute#instance"

    def __init__(self) -> None:
        super().__init__()
        mutates("compute.instances.start")(self.start)
        mutates("compute.instances.stop")(self.stop)
        mutates("compute.instances.reset")(self.reset)

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
                    check_act_as(cloud, call.caller, account["email"])
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
            await plug(cloud, machine, attached)
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
        resource = target(cloud, call)

        async def work() -> None:
            if resource["status"] == "TERMINATED":
                resource["status"] = "STAGING"
                cpus, memory = inventory.MACHINE_TYPES[short(resource["machineType"])]
                machine = cloud.machine(resource)
                machine.cpus, machine.memory = cpus, memory << 20
                await self._power_on(cloud, resource)

        return resource, work, None

    async def stop(self, cloud: Cloud, call: Call) -> Mutated:
        resource = target(cloud, call)

        async def work() -> None:
            if resource["status"] == "RUNNING":
                resource["status"] = "STOPPING"
                await cloud.machine(resource).stop()
                resource["status"] = "TERMINATED"

        return resource, work, None

    async def reset(self, cloud: Cloud, call: Call) -> Mutated:
        resource = target(cloud, call)
        if resource["status"] != "RUNNING":
            raise errors.not_ready(path_of(resource["selfLink"]))

        async def work() -> None:
            await cloud.machine(resource).cut()
            await self._power_on(cloud, resource)

        return resource, work, None


def target(cloud: Cloud, call: Call) -> Json:
    """The instance a request with an action in its path is about."""
    check_scope(cloud, call)
    return INSTANCES.stamp(cloud.store.find(call.path.rpartition("/")[0]))


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


def check_act_as(cloud: Cloud, caller: str, account: str) -> None:
    if not cloud.identities.may(caller, ACT_AS):
        raise errors.account_denied(account, caller)


async def _make_disk(cloud: Cloud, attached: Json, user: str) -> None:
    if disk := cloud.planned_disks.pop(attached["source"], None):
        cloud.store.add(path_of(attached["source"]), DISKS.kind, disk)
        await DISKS.changed(cloud, disk)
    cloud.store.find(path_of(attached["source"]))["users"] = [user]


async def plug(cloud: Cloud, machine: Machine, attached: Json) -> None:
    disk = cloud.store.find(path_of(attached["source"]))
    await machine.plug(Disk(disk["id"]).file, attached["index"], attached["deviceName"])


INSTANCES = Instances()
