"""The machine's disk: a resource of its own, for it has a size that grows, and a label that says whose
it is. It is made before the machine and goes with it."""

from __future__ import annotations

from blocks.compute import Compute, Json
from flows.reconcile import Change, State
from flows.resources.kind import ZonalKind, short

IMAGE = "projects/debian-cloud/global/images/family/debian-12"


class Disk(ZonalKind):
    """The boot disk, Debian 12. The image matters when the disk is made, not after."""

    noun, collection, parameter = "disk", "disks", "disk"

    @property
    def link(self) -> str:
        return f"projects/{self.spec.project}/zones/{self.spec.zone}/disks/{self.id}"

    def desired(self) -> State:
        return {
            "zone": self.spec.zone,
            "type": "pd-balanced",
            "sizeGb": self.spec.machine.disk_gb,
        }

    def body(self) -> Json:
        zone = f"projects/{self.spec.project}/zones/{self.spec.zone}"
        return {
            "name": self.id,
            "type": f"{zone}/diskTypes/pd-balanced",
            "sizeGb": str(self.spec.machine.disk_gb),
            "sourceImage": IMAGE,
            "labels": self.labels,
        }

    def parse(self, body: Json) -> State:
        self.owned(body)
        return {
            "zone": short(body["zone"]),
            "type": short(body["type"]),
            "sizeGb": int(body["sizeGb"]),
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Grow it; the partition and the file system grow at the next boot, by Debian itself."""
        why = {"zone": "it stays where it was made", "type": "a disk keeps its type"}
        if any(isinstance(c.actual, int) and c.actual > self.spec.machine.disk_gb for c in changes):
            why["sizeGb"] = "disks never shrink"
        self.keep(changes, why)
        if changes:
            self.call(compute, "resize", body={"sizeGb": str(self.spec.machine.disk_gb)})
