"""Disks and snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehearsal import errors, inventory
from rehearsal.collection import Collection, Mutated, check_scope, reference
from rehearsal.config import PROJECT
from rehearsal.disk import Disk
from rehearsal.errors import Json
from rehearsal.gateway import Call
from rehearsal.operations import mutates
from rehearsal.store import link, normalize, path_of

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud


class Disks(Collection):
    name, kind = "disks", "compute#disk"

    def __init__(self) -> None:
        super().__init__()
        mutates("compute.disks.resize")(self.resize)
        mutates("compute.disks.createSnapshot")(self.snapshot)

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        self.complete(cloud, call.place, resource)

    def complete(self, cloud: Cloud, zone: str, resource: Json) -> None:
        """Check and fill in a disk of a zone, given by its path."""
        resource.setdefault("type", link(f"{zone}/diskTypes/pd-standard"))
        reference(cloud, resource, "type")
        smallest = 10
        for field in ("sourceImage", "sourceSnapshot"):
            if field in resource:
                source = reference(cloud, {field: image_link(resource[field])}, field)
                resource[field] = source["selfLink"]
                resource[f"{field}Id"] = source["id"]
                smallest = int(source["diskSizeGb"])
        size = int(resource.setdefault("sizeGb", str(smallest)))
        if not smallest <= size <= 65536:
            why = f"Must be at least the source's size, {smallest} GB, and at most 65536 GB."
            raise errors.invalid("sizeGb", size, why)
        resource.update(status="READY", sizeGb=str(size), physicalBlockSizeBytes="4096")
        resource.setdefault("users", [])

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        disk = Disk(resource["id"])
        if not disk.file.exists():
            snapshot = resource.get("sourceSnapshotId")
            source = Disk(snapshot) if snapshot else None
            await disk.create(int(resource["sizeGb"]), source)

    def deletable(self, cloud: Cloud, resource: Json) -> None:
        if resource["users"]:
            path = path_of(resource["selfLink"])
            raise errors.in_use("disk", path, path_of(resource["users"][0]))

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        await Disk(resource["id"]).delete()

    async def resize(self, cloud: Cloud, call: Call) -> Mutated:
        resource = cloud.store.find(call.path.rpartition("/")[0])
        size = int(call.body.get("sizeGb", 0))
        if not int(resource["sizeGb"]) < size <= 65536:
            why = f"New disk size '{size}' GiB must be larger than existing size."
            raise errors.invalid("sizeGb", size, why)

        async def work() -> None:
            await Disk(resource["id"]).resize(size)
            resource["sizeGb"] = str(size)

        return resource, work, None

    async def snapshot(self, cloud: Cloud, call: Call) -> Mutated:
        disk = cloud.store.find(call.path.rpartition("/")[0])
        path = f"projects/{PROJECT}/global/snapshots/{call.body.get('name') or 'snapshot'}"
        _, work, undo = SNAPSHOTS.take(cloud, path, disk, dict(call.body))
        return disk, work, undo


def image_link(url: str) -> str:
    """An image's link; a family's link becomes its newest image's."""
    return link(inventory.IMAGE) if path_of(url) in inventory.FAMILIES else url


class Snapshots(Collection):
    name, kind = "snapshots", "compute#snapshot"

    async def insert(self, cloud: Cloud, call: Call) -> Mutated:
        check_scope(cloud, call)
        body = normalize(call.body, PROJECT)
        if not body.get("name"):
            raise errors.required("name")
        disk = reference(cloud, body, "sourceDisk")
        return self.take(cloud, f"{call.path}/{body['name']}", disk, body)

    def take(self, cloud: Cloud, path: str, disk: Json, body: Json) -> Mutated:
        body.update(
            status="CREATING",
            sourceDisk=disk["selfLink"],
            sourceDiskId=disk["id"],
            diskSizeGb=disk["sizeGb"],
        )
        snapshot = cloud.store.add(path, self.kind, body)

        async def work() -> None:
            await Disk(snapshot["id"]).create(int(disk["sizeGb"]), Disk(disk["id"]))
            snapshot["status"] = "READY"

        return snapshot, work, lambda: cloud.store.remove(path)

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        await Disk(resource["id"]).delete()


DISKS, SNAPSHOTS = Disks(), Snapshots()
