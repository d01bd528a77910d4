"""The virtual machine: what it is, and in which of the spec's zones it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from blocks.compute import ApiError, Compute, Json, Remedy
from flows.errors import Final
from flows.reconcile import State, Value
from flows.resources.account import Account
from flows.resources.disk import Disk
from flows.resources.edits import SCOPES, Edits, items, values, ways_out
from flows.resources.kind import Kind, flat, placed, short
from flows.resources.network import Network, Subnet

SCHEDULING: dict[str, Value] = {"automaticRestart": True, "onHostMaintenance": "MIGRATE"}
SHIELDED = {"enableSecureBoot": True, "enableVtpm": True, "enableIntegrityMonitoring": True}
DOORS = (
    "sshKeys",
    *(f"{when}-script{url}" for when in ("startup", "shutdown") for url in ("", "-url")),
)
"""Metadata that nobody sets on our machine: more SSH keys, and code that runs as root."""
NOT_YET_USABLE = (5.0, 10.0, 20.0, 20.0)
"""Seconds between tries while an account that this run has made is not known everywhere."""


@dataclass(frozen=True)
class Instance(Edits):
    """The machine: no external address, and one SSH key of ours instead of Google's logins. Without
    its ``public_key`` it is good for a look only."""

    public_key: str = ""
    noun, collection, parameter = "instance", "instances", "instance"
    fixed: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("zone", "network", "subnetwork"), "it stays where it was made"),
        "bootDisk": "its disk holds what is installed",
    }

    @property
    def brings(self) -> Sequence[Kind]:
        return (Disk(self.spec),)

    def desired(self) -> State:
        return {
            "zone": self.spec.zone,
            "network": placed(Network(self.spec).link, self.spec.project),
            "subnetwork": placed(Subnet(self.spec).link, self.spec.project),
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

    def zone(self, compute: Compute) -> str:
        """Where it is; the first of the spec's zones while it is nowhere. Asks only if it must."""
        body = self.fetch(compute) if self.spec.zones else None
        return short(body["zone"]) if body else self.spec.zone

    def body(self) -> Json:
        """What is the same in every zone."""
        return {
            "name": self.id,
            "networkInterfaces": [{"subnetwork": Subnet(self.spec).link}],
            "labels": self.labels,
            "metadata": {"items": items(self._metadata)},
            "tags": {"items": [self.spec.name]},
            "scheduling": SCHEDULING,
            "deletionProtection": True,
            "serviceAccounts": [self.account],
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
            "zone": self.zone_of(body),
            "network": placed(nic["network"], self.spec.project),
            "subnetwork": placed(nic["subnetwork"], self.spec.project),
            "bootDisk": short(boot.get("source", "")),
            **flat("labels", body.get("labels", {})),
            **flat("metadata", dict.fromkeys(DOORS, "") | values(body)),
            f"tags.{self.spec.name}": self.spec.name in body.get("tags", {}).get("items", ()),
            "accessConfigs": tuple(f"{nic}: {access}" for nic, access in ways_out(body)),
            **flat("scheduling", {key: scheduling.get(key) for key in SCHEDULING}),
            "deletionProtection": body.get("deletionProtection", False),
            "machineType": short(body["machineType"]),
            "serviceAccount.email": account.get("email"),
            "serviceAccount.scopes": tuple(sorted(account.get("scopes", ()))),
            **flat("shieldedInstanceConfig", {key: shielded.get(key) for key in SHIELDED}),
            "status": body["status"],
        }

    def create(self, compute: Compute) -> None:
        """Make and start it in the first of the spec's zones that has room; where a disk of its own
        is left, it can only be there."""
        disk = Disk(self.spec)
        there = disk.there(compute)
        zones = self.spec.all_zones if there is None else (short(there["zone"]),)
        for zone in zones:
            try:
                self._create(compute, zone, disk.attached(zone, there))
                return
            except ApiError as error:
                if error.remedy is Remedy.ADOPT:
                    self._refuse_strangers(compute, zone)
                if error.remedy is not Remedy.OTHER_ZONE:
                    raise
                full = error
        if there is None or not self.spec.zones:
            raise full
        where = f"--zone={zone} --project={self.spec.project}"
        raise Final(
            f"{self.name} cannot be made elsewhere than in {zone}, where its disk is: {full}",
            repair="Or give that disk up, which holds only what is installed: "
            f"gcloud compute disks delete {disk.id} {where}",
        ) from full

    def _create(self, compute: Compute, zone: str, disk: Json) -> None:
        """Make it in one zone. A new account, which Google does not know everywhere yet, is waited
        for."""
        body = {**self.body(), "machineType": self.machine_type(zone), "disks": [disk]}
        for pause in (*NOT_YET_USABLE, None):
            try:
                step = f"create {self.name} in {zone}"
                compute.change(self.api(compute).insert, step, zone=zone, body=body)
                break
            except ApiError as error:
                unknown = error.remedy is Remedy.ABSENT
                denied = error.reason == "SERVICE_ACCOUNT_ACCESS_DENIED"
                is_new = Account(self.spec).id in compute.run.made
                if pause is None or not (is_new and (unknown or denied)):
                    raise
            compute.sleep(pause)

    def _refuse_strangers(self, compute: Compute, zone: str) -> None:
        """Raises NotOurs when what has our name in that zone is another's."""
        for kind in (self, Disk(self.spec)):
            if body := kind.inside(compute, zone):
                kind.owned(body)

    @property
    def _metadata(self) -> dict[str, str]:
        return {
            "enable-oslogin": "FALSE",
            "enable-guest-attributes": "TRUE",
            "block-project-ssh-keys": "TRUE",
            "serial-port-enable": "FALSE",
            "ssh-keys": f"{self.spec.machine.ssh_user}:{self.public_key}",
        }
