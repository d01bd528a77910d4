"""The virtual machine. Most of it changes while it runs; another type, another account and other
Shielded VM options cost a restart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from blocks.compute import ApiError, Compute, DeadlinePassed, Json, Remedy
from flows.reconcile import Change, State, Value
from flows.resources.account import Account
from flows.resources.disk import Disk
from flows.resources.kind import ZonalKind, short
from flows.resources.network import Network, Subnet

SCOPES = tuple(
    f"https://www.googleapis.com/auth/{s}" for s in ("logging.write", "monitoring.write")
)
"""Logs and metrics: the machine asks Google for nothing else."""
SCHEDULING: dict[str, Value] = {"automaticRestart": True, "onHostMaintenance": "MIGRATE"}
SHIELDED = {"enableSecureBoot": True, "enableVtpm": True, "enableIntegrityMonitoring": True}
AT_REST = ("RUNNING", "TERMINATED", "STOPPED", "SUSPENDED")
"""What an instance stays in; everything else is on the way to one of these."""
LOOK_PAUSE, LOOKS = 2.0, 150
NOT_YET_USABLE = (5.0, 10.0, 20.0, 20.0)
"""Seconds between tries while an account made, or a role granted, a moment ago is not known."""


@dataclass(frozen=True)
class Instance(ZonalKind):
    """The machine: no external address, and one SSH key of ours instead of Google's logins."""

    public_key: str
    noun, collection, parameter = "instance", "instances", "instance"

    def desired(self) -> State:
        return {
            "zone": self.spec.zone,
            "network": Network(self.spec).id,
            "subnetwork": Subnet(self.spec).id,
            "bootDisk": Disk(self.spec).id,
            **_flat("labels", self.labels),
            **_flat("metadata", self._metadata),
            f"tags.{self.spec.name}": True,
            "accessConfigs": (),
            **_flat("scheduling", SCHEDULING),
            "deletionProtection": True,
            "machineType": self.spec.machine.type,
            "serviceAccount.email": Account(self.spec).id,
            "serviceAccount.scopes": SCOPES,
            **_flat("shieldedInstanceConfig", SHIELDED),
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
        account: Json = next(iter(body.get("serviceAccounts", ())), {})
        shielded, scheduling = (
            body.get(part, {}) for part in ("shieldedInstanceConfig", "scheduling")
        )
        return {
            "zone": short(body["zone"]),
            "network": short(nic["network"]),
            "subnetwork": short(nic["subnetwork"]),
            "bootDisk": short(boot.get("source", "")),
            **_flat("labels", body.get("labels", {})),
            **_flat("metadata", _values(body)),
            **{f"tags.{tag}": True for tag in body.get("tags", {}).get("items", ())},
            "accessConfigs": tuple(f"{nic}: {access}" for nic, access in _ways_out(body)),
            **_flat("scheduling", {key: scheduling.get(key) for key in SCHEDULING}),
            "deletionProtection": body.get("deletionProtection", False),
            "machineType": short(body["machineType"]),
            "serviceAccount.email": account.get("email"),
            "serviceAccount.scopes": tuple(sorted(account.get("scopes", ()))),
            **_flat("shieldedInstanceConfig", {key: shielded.get(key) for key in SHIELDED}),
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
        places = dict.fromkeys(("zone", "network", "subnetwork"), "it stays where it was made")
        self.keep(changes, {**places, "bootDisk": "its disk holds what is installed"})
        parts = {change.attribute.partition(".")[0] for change in changes}
        for part, change_it in self._live.items():
            if part in parts:
                self.edit(compute, partial(change_it, compute))
        restart = [edit for part, edit in self._stopped.items() if part in parts]
        try:
            if restart:
                self._stop(compute)
            for change_it in restart:
                self.edit(compute, partial(change_it, compute))
        finally:  # a type that Google refuses must not leave the server down
            if restart or "status" in parts:
                self._start(compute)

    # Changes: each is told what is there now, and keeps what is not ours

    @property
    def _live(self) -> Mapping[str, Callable[[Compute, Json], None]]:
        return {
            "labels": self._set_labels,
            "metadata": self._set_metadata,
            "tags": self._set_tags,
            "accessConfigs": self._cut_off,
            "scheduling": self._set_scheduling,
            "deletionProtection": self._protect,
        }

    @property
    def _stopped(self) -> Mapping[str, Callable[[Compute, Json], None]]:
        return {
            "machineType": self._set_machine_type,
            "serviceAccount": self._set_account,
            "shieldedInstanceConfig": self._set_shielded,
        }

    def _set_labels(self, compute: Compute, now: Json) -> None:
        labels = {**now.get("labels", {}), **self.labels}
        body = {"labels": labels, "labelFingerprint": now["labelFingerprint"]}
        self.call(compute, "setLabels", body=body)

    def _set_metadata(self, compute: Compute, now: Json) -> None:
        items = _items({**_values(now), **self._metadata})
        body = {"items": items, "fingerprint": now["metadata"]["fingerprint"]}
        self.call(compute, "setMetadata", body=body)

    def _set_tags(self, compute: Compute, now: Json) -> None:
        tags = sorted({*now["tags"].get("items", ()), self.spec.name})
        body = {"items": tags, "fingerprint": now["tags"]["fingerprint"]}
        self.call(compute, "setTags", body=body)

    def _cut_off(self, compute: Compute, now: Json) -> None:
        for nic, access in _ways_out(now):
            self.call(compute, "deleteAccessConfig", networkInterface=nic, accessConfig=access)

    def _set_scheduling(self, compute: Compute, now: Json) -> None:
        self.call(compute, "setScheduling", body={**now.get("scheduling", {}), **SCHEDULING})

    def _protect(self, compute: Compute, now: Json) -> None:
        where = {"resource": self.id, **self.place}
        method = self.api(compute).setDeletionProtection
        compute.change(method, f"protect {self.name}", deletionProtection=True, **where)

    def _set_machine_type(self, compute: Compute, now: Json) -> None:
        self.call(compute, "setMachineType", body={"machineType": self._machine_type})

    def _set_account(self, compute: Compute, now: Json) -> None:
        self.call(compute, "setServiceAccount", body=self._account)

    def _set_shielded(self, compute: Compute, now: Json) -> None:
        self.call(compute, "updateShieldedInstanceConfig", body=SHIELDED)

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


def _flat(part: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {f"{part}.{key}": value for key, value in values.items()}


def _items(values: Mapping[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _values(body: Json) -> dict[str, str]:
    items: list[Json] = body.get("metadata", {}).get("items", [])
    return {item["key"]: item.get("value", "") for item in items}


def _ways_out(body: Json) -> list[tuple[str, str]]:
    """Interface and name of each external address."""
    nics: list[Json] = body["networkInterfaces"]
    return [
        (nic["name"], access["name"]) for nic in nics for access in nic.get("accessConfigs", ())
    ]
