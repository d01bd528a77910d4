"""How a machine is changed: where it runs, or costing a restart, which the spec may forbid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from blocks.compute import ApiError, Compute, DeadlinePassed, Json, Remedy
from flows.reconcile import Change
from flows.resources.account import Account
from flows.resources.kind import ZonalKind, labelled, of_part, short

SCOPES = tuple(
    f"https://www.googleapis.com/auth/{s}" for s in ("logging.write", "monitoring.write")
)
"""Logs and metrics: the machine asks Google for nothing else."""
AT_REST = ("RUNNING", "TERMINATED", "STOPPED", "SUSPENDED")
"""What an instance stays in; everything else is on the way to one of these."""
DOWN = ("TERMINATED", "STOPPED")
LOOK_PAUSE, LOOKS = 2.0, 150
NEED_A_STOP = (
    "machineType",
    "serviceAccount.email",
    "serviceAccount.scopes",
    "shieldedInstanceConfig.enableSecureBoot",
    "shieldedInstanceConfig.enableVtpm",
)

Edit = Callable[[Compute, Json, Json], None]


class Edits(ZonalKind):
    """The changes of an instance that exists."""

    def why_not(self, change: Change) -> str:
        if change.attribute in NEED_A_STOP and self.spec.machine.downtime == "never":
            return "the machine would have to stop, and downtime in the spec is never"
        return super().why_not(change)

    def instead(self, change: Change) -> str:
        if change.attribute in NEED_A_STOP:
            return (
                f"Write downtime: allowed under machine in the spec, put {change.attribute} back, or "
                "stop the machine yourself and run again."
            )
        return super().instead(change)

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Change it where it runs, or costing a restart where Google wants it stopped."""
        is_down = any(c.attribute == "status" and c.actual in DOWN for c in changes)
        self.keep(tuple(c for c in changes if not (is_down and c.attribute in NEED_A_STOP)))
        parts = {_part(change) for change in changes}
        stopped = {_part(change) for change in changes if change.attribute in NEED_A_STOP}
        for part in self._edits:
            if part in parts - stopped:
                self._edit(compute, part, changes)
        up = "status" in parts or (stopped and self._at_rest(compute)["status"] not in DOWN)
        try:
            if stopped:
                self._stop(compute)
            for part in self._edits:
                if part in stopped:
                    self._edit(compute, part, changes)
        finally:  # a type that Google refuses must not leave the server down
            if up:
                self._restart(compute, changes)

    # Changes: each is told what is wanted of its part and what is there now, and keeps the rest

    def _edit(self, compute: Compute, part: str, changes: tuple[Change, ...]) -> None:
        self.edit(compute, partial(self._edits[part], compute, of_part(part, changes)))

    @property
    def _edits(self) -> Mapping[str, Edit]:
        return {
            "labels": self._set_labels,
            "metadata": self._set_metadata,
            "tags": self._set_tags,
            "accessConfigs": self._cut_off,
            "scheduling": self._set_scheduling,
            "deletionProtection": self._protect,
            "machineType": self._set_machine_type,
            "serviceAccount": self._set_account,
            "shieldedInstanceConfig": self._set_shielded,
        }

    def _set_labels(self, compute: Compute, wanted: Json, now: Json) -> None:
        self.alter(compute, now, "setLabels", body=labelled(now, wanted))

    def _set_metadata(self, compute: Compute, wanted: Json, now: Json) -> None:
        kept = {k: v for k, v in {**values(now), **wanted}.items() if v or k not in wanted}
        body = {"items": items(kept), "fingerprint": now["metadata"]["fingerprint"]}
        self.alter(compute, now, "setMetadata", body=body)

    def _set_tags(self, compute: Compute, wanted: Json, now: Json) -> None:
        tags = sorted({*now["tags"].get("items", ()), *wanted})
        body = {"items": tags, "fingerprint": now["tags"]["fingerprint"]}
        self.alter(compute, now, "setTags", body=body)

    def _cut_off(self, compute: Compute, _: Json, now: Json) -> None:
        for nic, access in ways_out(now):
            self.alter(
                compute, now, "deleteAccessConfig", networkInterface=nic, accessConfig=access
            )

    def _set_scheduling(self, compute: Compute, wanted: Json, now: Json) -> None:
        self.alter(compute, now, "setScheduling", body={**now.get("scheduling", {}), **wanted})

    def _protect(self, compute: Compute, _: Json, now: Json) -> None:
        wanted = {"deletionProtection": True}
        self.alter(compute, now, "setDeletionProtection", named="resource", **wanted)

    def _set_machine_type(self, compute: Compute, _: Json, now: Json) -> None:
        kind = self.machine_type(short(now["zone"]))
        self.alter(compute, now, "setMachineType", body={"machineType": kind})

    def _set_account(self, compute: Compute, wanted: Json, now: Json) -> None:
        account: Json = next(iter(now.get("serviceAccounts", ())), self.account)
        known = {"email": account["email"], "scopes": account.get("scopes", [])}
        self.alter(compute, now, "setServiceAccount", body={**known, **wanted})

    def _set_shielded(self, compute: Compute, wanted: Json, now: Json) -> None:
        self.alter(compute, now, "updateShieldedInstanceConfig", body=wanted)

    # Power

    def _restart(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Start it; with the type that it had, where the zone has no room for the other."""
        before = [str(c.actual) for c in changes if c.attribute == "machineType"]
        try:
            self._start(compute)
        except ApiError as error:
            if before and error.remedy is Remedy.OTHER_ZONE:
                now = self.present(compute)
                kind = self.machine_type(short(now["zone"]), before[0])
                self.alter(compute, now, "setMachineType", body={"machineType": kind})
                self._start(compute)
            raise

    def _start(self, compute: Compute) -> None:
        now = self._at_rest(compute)
        if now["status"] == "SUSPENDED":
            self.alter(compute, now, "resume")
        elif now["status"] != "RUNNING":
            self.alter(compute, now, "start")

    def _stop(self, compute: Compute) -> None:
        """Shut it down; a suspended one goes on first, so that nothing in its memory is lost."""
        now = self._at_rest(compute)
        if now["status"] == "SUSPENDED":
            self.alter(compute, now, "resume")
        if now["status"] in ("RUNNING", "SUSPENDED"):
            self.alter(compute, now, "stop")

    def _at_rest(self, compute: Compute) -> Json:
        """What is there, once it is neither starting nor stopping: another run may be at it."""
        for _ in range(LOOKS):
            now = self.present(compute)
            if now["status"] in AT_REST:
                return now
            compute.sleep(LOOK_PAUSE)
        raise DeadlinePassed(
            f"{self.name} has been {now['status']} for {LOOKS * LOOK_PAUSE:.0f} s.",
            repair="Look at its serial console, then run again.",
        )

    def machine_type(self, zone: str, name: str = "") -> str:
        """The link of a machine type, the spec's unless it is named."""
        kind = name or self.spec.machine.type
        return f"projects/{self.spec.project}/zones/{zone}/machineTypes/{kind}"

    @property
    def account(self) -> Json:
        return {"email": Account(self.spec).id, "scopes": list(SCOPES)}


def _part(change: Change) -> str:
    return change.attribute.partition(".")[0]


def items(values: Mapping[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in values.items()]


def values(body: Json) -> dict[str, str]:
    items: list[Json] = body.get("metadata", {}).get("items", [])
    return {item["key"]: item.get("value", "") for item in items}


def ways_out(body: Json) -> list[tuple[str, str]]:
    """Interface and name of each external address."""
    nics: list[Json] = body["networkInterfaces"]
    return [
        (nic["name"], access["name"])
        for nic in nics
        for way in ("accessConfigs", "ipv6AccessConfigs")
        for access in nic.get(way, ())
    ]
