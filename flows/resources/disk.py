"""The machine's disk: a resource of its own, for it has a size that grows, and a label that says whose
it is. It is made before the machine and goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from blocks.compute import Compute, Json
from flows.reconcile import Change, State
from flows.resources.kind import ZonalKind, flat, labelled, of_part, short

IMAGE = "projects/debian-cloud/global/images/family/debian-12"


class Disk(ZonalKind):
    """The boot disk, Debian 12. The image matters when the disk is made, not after."""

    noun, collection, parameter = "disk", "disks", "disk"
    fixed: ClassVar[Mapping[str, str]] = {
        "zone": "it stays where it was made",
        "type": "a disk keeps its type",
    }

    @property
    def link(self) -> str:
        return f"projects/{self.spec.project}/zones/{self.spec.zone}/disks/{self.id}"

    def desired(self) -> State:
        return {
            "zone": self.spec.zone,
            "type": "pd-balanced",
            "sizeGb": self.spec.machine.disk_gb,
            **flat("labels", self.labels),
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
            **flat("labels", body.get("labels", {})),
        }

    def replaced(self, change: Change) -> str:
        size = change.actual if change.attribute == "sizeGb" else None
        if isinstance(size, int) and size > self.spec.machine.disk_gb:
            return "disks never shrink"
        return super().replaced(change)

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Grow it; the partition and the file system grow at the next boot, by Debian itself."""
        self.keep(changes)
        if any(change.attribute == "sizeGb" for change in changes):
            self.call(compute, "resize", body={"sizeGb": str(self.spec.machine.disk_gb)})
        if labels := of_part("labels", changes):
            self.edit(compute, partial(self._set_labels, compute, labels))

    def _set_labels(self, compute: Compute, wanted: Json, now: Json) -> None:
        step, method = f"setLabels of {self.name}", self.api(compute).setLabels
        body = labelled(now, wanted)
        compute.change(method, step, resource=self.id, body=body, **self.place)
