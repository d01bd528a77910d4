"""The machine's disk: a resource of its own, for it has a size that grows, and a label that says whose
it is. Google makes it with the machine, so that none is left in a zone that has no room for the
machine, and it goes with the machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from blocks.compute import Compute, Json
from flows.errors import Final
from flows.reconcile import Change, State, diff
from flows.resources.kind import ZonalKind, flat, labelled, of_part, short

IMAGE = "projects/debian-cloud/global/images/family/debian-12"
TYPE = "pd-balanced"


class Disk(ZonalKind):
    """The boot disk, Debian 12. The image matters when the disk is made, not after."""

    noun, collection, parameter = "disk", "disks", "disk"
    fixed: ClassVar[Mapping[str, str]] = {
        "zone": "it stays where it was made",
        "type": "a disk keeps its type",
    }

    def desired(self) -> State:
        return {
            "zone": self.spec.zone,
            "type": TYPE,
            "sizeGb": self.spec.machine.disk_gb,
            **flat("labels", self.labels),
        }

    def body(self) -> Json:
        """What it is made of, as the request for its machine has it."""
        return {
            "diskName": self.id,
            "diskSizeGb": str(self.spec.machine.disk_gb),
            "sourceImage": IMAGE,
            "labels": self.labels,
        }

    def attached(self, zone: str, there: Json | None) -> Json:
        """The disk of a machine to be made in a zone: the one that is ``there``, or a new one."""
        kind = f"projects/{self.spec.project}/zones/{zone}/diskTypes/{TYPE}"
        new = {"initializeParams": {**self.body(), "diskType": kind}}
        return {
            "boot": True,
            "autoDelete": True,
            **({"source": there["selfLink"]} if there else new),
        }

    def there(self, compute: Compute) -> Json | None:
        """The one that a machine has left behind. Raises NotOurs, and NeedsReplacement where it
        could not be made what it should be."""
        body = self.fetch(compute)
        if body:
            self.keep(diff(self.desired(), self.parse(body)))
        return body

    def create(self, compute: Compute) -> None:
        """Never without its machine; another run may have made that meanwhile."""
        if there := self.there(compute):
            self.update(compute, diff(self.desired(), self.parse(there)))
            return
        raise Final(
            f"{self.name} does not exist, and is made with its machine only.",
            repair=f"Let instance {self.id} be made: it is on the ignore list, or has another disk.",
        )

    def parse(self, body: Json) -> State:
        self.owned(body)
        return {
            "zone": self.zone_of(body),
            "type": short(body["type"]),
            "sizeGb": int(body["sizeGb"]),
            **flat("labels", body.get("labels", {})),
        }

    def why_not(self, change: Change) -> str:
        if self._shrinks(change):
            return "disks never shrink"
        return super().why_not(change)

    def instead(self, change: Change) -> str:
        if self._shrinks(change):
            return f"Write disk_gb: {change.actual} or more under machine in the spec."
        return super().instead(change)

    def _shrinks(self, change: Change) -> bool:
        size = change.actual if change.attribute == "sizeGb" else None
        return isinstance(size, int) and size > self.spec.machine.disk_gb

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Grow it while it is in use; the machine's stage grows what is on it."""
        self.keep(changes)
        if any(change.attribute == "sizeGb" for change in changes):
            self.edit(compute, partial(self._resize, compute))
        if labels := of_part("labels", changes):
            self.edit(compute, partial(self._set_labels, compute, labels))

    def _resize(self, compute: Compute, now: Json) -> None:
        size = self.spec.machine.disk_gb
        if int(now["sizeGb"]) < size:  # the answer to an earlier request may have been lost
            self.alter(compute, now, "resize", body={"sizeGb": str(size)})

    def _set_labels(self, compute: Compute, wanted: Json, now: Json) -> None:
        body = labelled(now, wanted)
        self.alter(compute, now, "setLabels", named="resource", body=body)
