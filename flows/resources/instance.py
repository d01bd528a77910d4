"""The virtual machine. Most of it changes while it runs; another type, another account and other
Shielded VM options cost a restart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from blocks.compute import ApiError, Compute, DeadlinePassed, Json, Remedy
from flows.reconcile import Change, State, Value
from flows.resources.account import Account
from flows.resources.disk import Disk
from flows.resources.kind import ZonalKind, flat, labelled, of_part, short
from flows.resources.network import Network, Subnet

SCOPES = tuple(
    f"https://www.googleapis.com/auth/{s}" for s in ("logging.write", "monitoring.write")
)
"""Logs and metrics: the machine asks Google for nothing else."""
SCHEDULING: dict[str, Value] = {"automaticRestart": True, "onHostMaintenance": "MIGRATE"}
SHIELDED = {"enableSecureBoot": True, "enableVtpm": True, "enableIntegrityMonitoring": True}
DOORS = (
    "sshKeys",
    *(f"{when}-script{url}" for when in ("startup", "shutdown") for url in ("", "-url")),
)
"""Metadata that nobody sets on our machine: more SSH keys, and code that runs as root."""
AT_REST = ("RUNNING", "TERMINATED", "STOPPED", "SUSPENDED")
"""What an instance stays in; everything else is on the way to one of these."""
DOWN = ("TERMINATED", "STOPPED")
LOOK_PAUSE, LOOKS = 2.0, 150
NOT_YET_USABLE = (5.0, 10.0, 20.0, 20.0)
"""Seconds between tries while an account made, or a role granted, a moment ago is not known."""

Edit = Callable[[Compute, Json, Json], None]


@dataclass(frozen=True)
class Instance(ZonalKind):
    """The machine: no external address, and one SSH key of ours instead of Google's logins."""

    public_key: str
    noun, collection, parameter = "instance", "instances", "instance"
    fixed: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("zone", "network", "subnetwork"), "it stays where it was made"),
        "bootDisk": "its disk holds what is installed",
    }

    def desired(self) -> State:
        return {
            "zone": self.spec.zone,
            "network": Network(self.spec).id,
            "subnetwork": Subnet(self.spec).id,
            "bootDisk": Disk(self.spec).id,
            **flat("labels", self.labels),
            **flat("metadata", self._metadata | dict.fromkeys(DOORS, "")),
            f"tags.{self.spec.name}": True,
            "accessConfigs": (),
            **flat("scheduling", SCHEDULING),
            "deletionProtection": True,
            "machineType": self.spec.machine.type,
            "serviceAccount.email": Account(self.spec).id,
            "serviceAccount.scopes": SCOPES,
            **flat("shieldedInstanceConfig", SHIELDED),
            "status": "RUNNING",
        }

    def body(self) -> Json:
        return {
            "name": self.id,
            "machineType": self._machine_type,
            "disks": [{"boot": True, "autoDelete": True, "source": Disk(self.spec).link}],
            "networkInterfaces": [{"subnetwork": Subnet(self.spec).link}],
            "labels": self.labels,
            "metadata": {"items": _items(self._metadata)},
            "tags": {"items": [self.spec.name]},
            "scheduling": SCHEDULING,
            "deletionProtection": True,
            "serviceAccounts": [self._account],
            "shieldedInstanceConfig": SHIELDED,
        }

    def parse(self, body: Json) -> State:
        self.owned(body)
        nic: Json = body["networkInterfaces"][0]
        boot: Json = next((disk for disk in body["disks"] if disk.get("boot")), {})
        # Without an account there are no scopes to speak of.
        account: Json = next(iter(body.get("serviceAccounts", ())), {"scopes": SCOPES})
        shielded, scheduling = (
            body.get(part, {}) for part in ("shieldedInstanceConfig", "scheduling")
        )
        return {
            "zone": short(body["zone"]),
            "network": short(nic["network"]),
            "subnetwork": short(nic["subnetwork"]),
            "bootDisk": short(boot.get("source", "")),
            **flat("labels", body.get("labels", {})),
            **flat("metadata", dict.fromkeys(DOORS, "") | _values(body)),
            f"tags.{self.spec.name}": self.spec.name in body.get("tags", {}).get("items", ()),
            "accessConfigs": tuple(f"{nic}: {access}" for nic, access in _ways_out(body)),
            **flat("scheduling", {key: scheduling.get(key) for key in SCHEDULING}),
            "deletionProtection": body.get("deletionProtection", False),
            "machineType": short(body["machineType"]),
            "serviceAccount.email": account.get("email"),
            "serviceAccount.scopes": tuple(sorted(account.get("scopes", ()))),
            **flat("shieldedInstanceConfig", {key: shielded.get(key) for key in SHIELDED}),
            "status": body["status"],
        }

    def create(self, compute: Compute) -> None:
        """Make and start it. What is not known yet, such as a new account, is waited for."""
        for pause in (*NOT_YET_USABLE, None):
            try:
                super().create(compute)
                break
            except ApiError as error:
                unknown = error.remedy is Remedy.ABSENT
                denied = error.reason == "SERVICE_ACCOUNT_ACCESS_DENIED"
                if pause is None or not (unknown or denied):
                    raise
            compute.sleep(pause)

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Change it where it runs, or costing a restart where Google wants it stopped."""
        self.keep(changes)
        parts = {change.attribute.partition(".")[0] for change in changes}
        for part, change_it in self._live.items():
            if part in parts:
                self.edit(compute, partial(change_it, compute, of_part(part, changes)))
        restart = [part for part in self._stopped if part in parts]
        up = "status" in parts or (restart and self._at_rest(compute) not in DOWN)
        try:
            if restart:
                self._stop(compute)
            for part in restart:
                change_it = self._stopped[part]
                self.edit(compute, partial(change_it, compute, of_part(part, changes)))
        finally:  # a type that Google refuses must not leave the server down
            if up:
                self._start(compute)

    # Changes: each is told what is wanted of its part and what is there now, and keeps the rest

    @property
    def _live(self) -> Mapping[str, Edit]:
        return {
            "labels": self._set_labels,
            "metadata": self._set_metadata,
            "tags": self._set_tags,
            "accessConfigs": self._cut_off,
            "scheduling": self._set_scheduling,
            "deletionProtection": self._protect,
        }

    @property
    def _stopped(self) -> Mapping[str, Edit]:
        return {
            "machineType": self._set_machine_type,
            "serviceAccount": self._set_account,
            "shieldedInstanceConfig": self._set_shielded,
        }

    def _set_labels(self, compute: Compute, wanted: Json, now: Json) -> None:
        self.call(compute, "setLabels", body=labelled(now, wanted))

    def _set_metadata(self, compute: Compute, wanted: Json, now: Json) -> None:
        values = {**_values(now), **wanted}
        items = _items({k: v for k, v in values.items() if v or k not in wanted})
        body = {"items": items, "fingerprint": now["metadata"]["fingerprint"]}
        self.call(compute, "setMetadata", body=body)

    def _set_tags(self, compute: Compute, wanted: Json, now: Json) -> None:
        tags = sorted({*now["tags"].get("items", ()), *wanted})
        body = {"items": tags, "fingerprint": now["tags"]["fingerprint"]}
        self.call(compute, "setTags", body=body)

    def _cut_off(self, compute: Compute, _: Json, now: Json) -> None:
        for nic, access in _ways_out(now):
            self.call(compute, "deleteAccessConfig", networkInterface=nic, accessConfig=access)

    def _set_scheduling(self, compute: Compute, wanted: Json, now: Json) -> None:
        self.call(compute, "setScheduling", body={**now.get("scheduling", {}), **wanted})

    def _protect(self, compute: Compute, _: Json, _now: Json) -> None:
        where = {"resource": self.id, **self.place}
        method = self.api(compute).setDeletionProtection
        compute.change(method, f"protect {self.name}", deletionProtection=True, **where)

    def _set_machine_type(self, compute: Compute, _: Json, _now: Json) -> None:
        self.call(compute, "setMachineType", body={"machineType": self._machine_type})

    def _set_account(self, compute: Compute, wanted: Json, now: Json) -> None:
        account: Json = next(iter(now.get("serviceAccounts", ())), self._account)
        known = {"email": account["email"], "scopes": account.get("scopes", [])}
        self.call(compute, "setServiceAccount", body={**known, **wanted})

    def _set_shielded(self, compute: Compute, wanted: Json, _: Json) -> None:
        self.call(compute, "updateShieldedInstanceConfig", body=wanted)

    # Power

    def _start(self, compute: Compute) -> None:
        status = self._at_rest(compute)
        if status == "SUSPENDED":
            self.call(compute, "resume")
        elif status != "RUNNING":
            self.call(compute, "start")

    def _stop(self, compute: Compute) -> None:
        """Shut it down; a suspended one goes on first, so that nothing in its memory is lost."""
        status = self._at_rest(compute)
        if status == "SUSPENDED":
            self.call(compute, "resume")
        if status in ("RUNNING", "SUSPENDED"):
            self.call(compute, "stop")

    def _at_rest(self, compute: Compute) -> str:
        """Its status, once it is neither starting nor stopping: another run may be at it."""
        for _ in range(LOOKS):
            status: str = self.present(compute)["status"]
            if status in AT_REST:
                return status
            compute.sleep(LOOK_PAUSE)
        raise DeadlinePassed(
            f"{self.name} has been {status} for {LOOKS * LOOK_PAUSE:.0f} s.",
            repair="Look at its serial console, then run again.",
        )

    @property
    def _metadata(self) -> dict[str, str]:
        return {
            "enable-oslogin": "FALSE",
            "enable-guest-attributes": "TRUE",
            "block-project-ssh-keys": "TRUE",
            "serial-port-enable": "FALSE",
            "ssh-keys": f"{self.spec.machine.ssh_user}:{self.public_key}",
        }

    @property
    def _machine_type(self) -> str:
        zone = f"projects/{self.spec.project}/zones/{self.spec.zone}"
        return f"{zone}/machineTypes/{self.spec.machine.type}"

    @property
    def _account(self) -> Json:
        return {"email": Account(self.spec).id, "scopes": list(SCOPES)}


def _items(values: Mapping[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _values(body: Json) -> dict[str, str]:
    items: list[Json] = body.get("metadata", {}).get("items", [])
    return {item["key"]: item.get("value", "") for item in items}


def _ways_out(body: Json) -> list[tuple[str, str]]:
    """Interface and name of each external address."""
    nics: list[Json] = body["networkInterfaces"]
    return [
        (nic["name"], access["name"])
        for nic in nics
        for way in ("accessConfigs", "ipv6AccessConfigs")
        for access in nic.get(way, ())
    ]
