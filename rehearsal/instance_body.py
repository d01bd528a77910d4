"""The body of an instance: what has to be right in it, and what the service fills in."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from rehearsal import errors
from rehearsal.collection import check_labels, reference
from rehearsal.config import PROJECT, PROJECT_NUMBER
from rehearsal.errors import ApiError, Json
from rehearsal.gateway import Call
from rehearsal.storage import DISKS
from rehearsal.store import fingerprint, link, path_of, short

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

DEFAULT_ACCOUNT = f"{PROJECT_NUMBER}-compute@developer.gserviceaccount.com"


def prepare(cloud: Cloud, call: Call, resource: Json) -> None:
    check_machine_type(cloud, resource, call.place)
    check_labels(resource.get("labels", {}))
    check_metadata(resource.setdefault("metadata", {}))
    resource["metadata"]["kind"] = "compute#metadata"
    resource.setdefault("tags", {})
    resource.setdefault("deletionProtection", False)
    resource.setdefault("canIpForward", False)
    shielded = resource.setdefault("shieldedInstanceConfig", {})
    shielded.setdefault("enableSecureBoot", False)
    shielded.setdefault("enableVtpm", True)
    shielded.setdefault("enableIntegrityMonitoring", True)
    resource["shieldedInstanceIntegrityPolicy"] = {"updateAutoLearnPolicy": True}
    _default_scheduling(resource.setdefault("scheduling", {}))
    for account in resource.get("serviceAccounts", ()):
        if account.get("email", "default") == "default":
            account["email"] = DEFAULT_ACCOUNT
    _prepare_network(cloud, call, resource)
    _prepare_disks(cloud, resource, call.place)
    resource.update(
        status="PROVISIONING",
        cpuPlatform="Intel Broadwell",
        startRestricted=False,
    )


def check_machine_type(cloud: Cloud, resource: Json, zone: str) -> Json:
    machine_type = reference(cloud, resource, "machineType")
    if not path_of(machine_type["selfLink"]).startswith(f"{zone}/"):
        why = "Machine type is in another zone."
        raise errors.invalid("machineType", resource["machineType"], why)
    return machine_type


def _prepare_network(cloud: Cloud, call: Call, resource: Json) -> None:
    nics = resource.get("networkInterfaces")
    if not nics:
        why = "At least one network interface is required."
        raise errors.invalid("networkInterfaces", "", why)
    if len(nics) > 1:
        raise errors.not_implemented("more than one network interface")
    nic = nics[0]
    region = call.params["zone"].rpartition("-")[0]
    if "subnetwork" not in nic:
        default = link(f"projects/{PROJECT}/global/networks/default")
        network = reference(cloud, {"network": nic.get("network", default)}, "network")
        here = [s for s in cloud.subnets(network["selfLink"]) if short(s["region"]) == region]
        if not here or not network["autoCreateSubnetworks"]:
            why = f"No subnetwork of the network in region {region}, or none was named."
            raise errors.invalid("networkInterfaces[0].subnetwork", "", why)
        nic["subnetwork"] = here[0]["selfLink"]
    subnet = reference(cloud, nic, "subnetwork")
    if short(subnet["region"]) != region:
        why = f"The subnetwork is not in region {region}."
        raise errors.invalid("networkInterfaces[0].subnetwork", nic["subnetwork"], why)
    nic["network"] = subnet["network"]
    wanted = nic.setdefault("networkIP", cloud.free_address(subnet))
    _check_address(cloud, wanted, subnet)
    nic.update(name="nic0", kind="compute#networkInterface", stackType="IPV4_ONLY")
    for access in nic.get("accessConfigs", ()):
        complete_access(cloud, access)
    nic["fingerprint"] = fingerprint(nic)


def _check_address(cloud: Cloud, wanted: str, subnet: Json) -> None:
    field = "networkInterfaces[0].networkIP"
    try:
        address = ipaddress.IPv4Address(wanted)
    except ValueError:
        raise errors.invalid(field, wanted, "It is not an IPv4 address.") from None
    if address not in ipaddress.IPv4Network(subnet["ipCidrRange"]):
        raise errors.invalid(field, wanted, "It is not within the subnetwork's range.")
    if cloud.instance_at(subnet["network"], wanted):
        raise ApiError(400, "ipInUse", f"IP address '{wanted}' is already being used.")


def _prepare_disks(cloud: Cloud, resource: Json, zone: str) -> None:
    disks = resource.get("disks", [])
    if not disks or not disks[0].get("boot"):
        raise errors.invalid("disks", "", "The first disk has to be a boot disk.")
    for index, attached in enumerate(disks):
        initialize = attached.pop("initializeParams", None)
        if (initialize is None) == ("source" not in attached):
            raise errors.invalid(f"disks[{index}]", "", "Give initializeParams or a source.")
        if initialize is None:
            disk = reference(cloud, attached, "source")
            if user := user_of(cloud, disk["selfLink"]):
                raise errors.in_use("disk", path_of(disk["selfLink"]), user)
        else:
            _plan_disk(cloud, attached, initialize, resource["name"], zone, index)
        attached.setdefault("deviceName", f"persistent-disk-{index}")
        attached.setdefault("autoDelete", False)
        attached.setdefault("boot", False)
        attached.update(index=index, kind="compute#attachedDisk", type="PERSISTENT")
        attached.setdefault("mode", "READ_WRITE")
        attached.setdefault("interface", "SCSI")
    if len({attached["source"] for attached in disks}) < len(disks):
        raise errors.invalid("disks", "", "A disk can be attached once.")


def _default_scheduling(scheduling: Json) -> None:
    scheduling.setdefault("onHostMaintenance", "MIGRATE")
    scheduling.setdefault("automaticRestart", True)
    scheduling.setdefault("preemptible", False)
    scheduling.setdefault("provisioningModel", "STANDARD")


def check_metadata(metadata: Json) -> None:
    items = metadata.get("items", [])
    keys = [item.get("key", "") for item in items]
    if len(keys) != len(set(keys)) or not all(keys):
        raise errors.invalid("metadata.items", "", "Keys must be given and be unique.")
    sizes = [len(item.get("value", "").encode()) for item in items]
    if any(size > 256 << 10 for size in sizes) or sum(sizes) > 512 << 10:
        why = "A value has at most 256 KiB and all metadata 512 KiB."
        raise errors.invalid("metadata", "", why)


def complete_access(cloud: Cloud, access: Json) -> None:
    fixed = "natIP" in access
    access.setdefault("type", "ONE_TO_ONE_NAT")
    access.setdefault("name", "External NAT")
    wanted = access.setdefault("natIP", cloud.free_external())
    reserved = [a["address"] for a in cloud.store.every("addresses")]
    given = [i["networkInterfaces"][0] for i in cloud.store.every("instances")]
    if any(a.get("natIP") == wanted for nic in given for a in nic.get("accessConfigs", ())):
        raise ApiError(400, "ipInUse", f"IP address '{wanted}' is already being used.")
    if fixed and wanted not in reserved:
        why = "The specified external IP address was not found."
        raise errors.invalid("networkInterfaces[0].accessConfigs[0].natIP", wanted, why)
    access.setdefault("networkTier", "PREMIUM")
    access["kind"] = "compute#accessConfig"


def _plan_disk(
    cloud: Cloud, attached: Json, initialize: Json, instance: str, zone: str, index: int
) -> None:
    """Turn initializeParams into a disk resource to be made with the instance."""
    if (
        attached.get("boot")
        and not initialize.get("sourceImage")
        and not initialize.get("sourceSnapshot")
    ):
        raise errors.required(f"disks[{index}].initializeParams.sourceImage")
    name = initialize.get("diskName") or (instance if not index else f"{instance}-{index}")
    path = f"{zone}/disks/{name}"
    if cloud.store.get(link(path)) or user_of(cloud, link(path)):
        raise errors.exists(path)
    body = {
        "sizeGb": initialize.get("diskSizeGb"),
        "type": initialize.get("diskType"),
        "sourceImage": initialize.get("sourceImage"),
        "sourceSnapshot": initialize.get("sourceSnapshot"),
        "labels": initialize.get("labels"),
    }
    disk = {k: v for k, v in body.items() if v}
    DISKS.complete(cloud, zone, disk)
    attached["source"] = link(path)
    attached["diskSizeGb"] = disk["sizeGb"]
    cloud.planned_disks[link(path)] = disk


def user_of(cloud: Cloud, disk: str) -> str | None:
    """Path of the instance that has a disk, which may be still to be made."""
    for instance in cloud.store.every("instances"):
        if any(attached["source"] == disk for attached in instance["disks"]):
            return path_of(instance["selfLink"])
    return None
