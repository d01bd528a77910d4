"""The network and the subnet that the server is in.

What the spec names is somebody else's, and so is everything in a shared VPC: it is only looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Any, ClassVar

from blocks.compute import Compute, Json
from flows.reconcile import Change, State
from flows.resources.kind import ComputeKind, placed

ELSEWHERE = {"network": "it stays in the network it was made in"}


class InVpc(ComputeKind):
    """A kind that lies in the network's project."""

    @property
    def home(self) -> str:
        return self.spec.network.project or self.spec.project

    @property
    def lent(self) -> bool:
        return bool(self.spec.network.project)


class Network(InVpc):
    """The VPC network: in custom mode, so that no subnets come by themselves."""

    noun, collection, parameter = "network", "networks", "network"
    fixed: ClassVar[Mapping[str, str]] = {
        "autoCreateSubnetworks": "its mode is chosen when it is made"
    }

    @property
    def id(self) -> str:
        return self.spec.network.name or self.spec.named("net")

    @property
    def lent(self) -> bool:
        return bool(self.spec.network.name)

    @property
    def adopt(self) -> str:
        return f"use it as it is: write name: {self.id} under network in the spec."

    @property
    def link(self) -> str:
        return f"projects/{self.home}/global/networks/{self.id}"

    def desired(self) -> State:
        if self.lent:
            return {}
        return {"autoCreateSubnetworks": False, "routingMode": "REGIONAL"}

    def body(self) -> Json:
        return {
            "name": self.id,
            "description": self.marker,
            "autoCreateSubnetworks": False,
            "routingConfig": {"routingMode": "REGIONAL"},
        }

    def parse(self, body: Json) -> State:
        self.owned(body)
        return {
            "autoCreateSubnetworks": body.get("autoCreateSubnetworks"),
            "routingMode": body.get("routingConfig", {}).get("routingMode"),
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        self.keep(changes)
        if changes:
            self.call(compute, "patch", body={"routingConfig": {"routingMode": "REGIONAL"}})


class Regional(InVpc):
    """A kind that lies in the region."""

    @property
    def place(self) -> dict[str, Any]:
        return {"region": self.spec.region}


class Subnet(Regional):
    """The subnet, from which Google's APIs are reached without an external address."""

    noun, collection, parameter = "subnet", "subnetworks", "subnetwork"
    fixed = ELSEWHERE

    @property
    def id(self) -> str:
        return self.spec.network.subnet or self.spec.named("subnet")

    @property
    def lent(self) -> bool:
        return bool(self.spec.network.subnet)

    @property
    def adopt(self) -> str:
        return "use it as it is: write name and subnet under network in the spec."

    @property
    def link(self) -> str:
        return f"projects/{self.home}/regions/{self.spec.region}/subnetworks/{self.id}"

    def desired(self) -> State:
        return {
            "network": placed(Network(self.spec).link, self.spec.project),
            "ipCidrRange": self.spec.network.cidr,
            "privateIpGoogleAccess": True,
        }

    def body(self) -> Json:
        network = Network(self.spec).link
        return {"name": self.id, "description": self.marker, **self.desired(), "network": network}

    def parse(self, body: Json) -> State:
        self.owned(body)
        return {
            "network": placed(body["network"], self.spec.project),
            "ipCidrRange": body["ipCidrRange"],
            "privateIpGoogleAccess": body.get("privateIpGoogleAccess", False),
        }

    def why_not(self, change: Change) -> str:
        """A range grows, when the wanted one contains what there is; it never shrinks."""
        if change.attribute == "ipCidrRange":
            wanted, there = (IPv4Network(str(r)) for r in (change.desired, change.actual))
            return "" if there.subnet_of(wanted) else "a range can only grow"
        return super().why_not(change)

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        if not changes:
            return
        self.keep(changes)
        for change in changes:
            if change.attribute == "ipCidrRange":
                wider = {"ipCidrRange": self.spec.network.cidr}
                self.call(compute, "expandIpCidrRange", body=wider)
            else:
                wanted = {"privateIpGoogleAccess": True}
                self.call(compute, "setPrivateIpGoogleAccess", body=wanted)
