"""The way to the server and out of it: network, subnet, router with Cloud NAT, firewall rules."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from blocks.compute import Compute, Json
from flows.reconcile import Change, State
from flows.resources.kind import ComputeKind, short
from flows.spec import IAP_RANGE, ServerSpec

NAT = {
    "natIpAllocateOption": "AUTO_ONLY",
    "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS",
    "logConfig": {"enable": True, "filter": "ERRORS_ONLY"},
}
"""Addresses that Google chooses, for one subnet; translations that failed are logged."""
ELSEWHERE = "it stays in the network it was made in"


class Network(ComputeKind):
    """The VPC network: in custom mode, so that no subnets come by themselves.

    One that the spec names may be anybody's, and is used as it is.
    """

    noun, collection, parameter = "network", "networks", "network"

    @property
    def id(self) -> str:
        return self.spec.network.name or self.spec.named("net")

    @property
    def link(self) -> str:
        return f"projects/{self.spec.project}/global/networks/{self.id}"

    def desired(self) -> State:
        if self.spec.network.name:
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
        self.owned(body, lent=bool(self.spec.network.name))
        return {
            "autoCreateSubnetworks": body.get("autoCreateSubnetworks"),
            "routingMode": body.get("routingConfig", {}).get("routingMode"),
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        self.keep(changes, {"autoCreateSubnetworks": "its mode is chosen when it is made"})
        if changes:
            self.call(compute, "patch", body={"routingConfig": {"routingMode": "REGIONAL"}})


class _Regional(ComputeKind):
    @property
    def place(self) -> dict[str, Any]:
        return {"region": self.spec.region}


class Subnet(_Regional):
    """The subnet, from which Google's APIs are reached without an external address."""

    noun, collection, parameter = "subnet", "subnetworks", "subnetwork"

    @property
    def id(self) -> str:
        return self.spec.network.subnet or self.spec.named("subnet")

    @property
    def link(self) -> str:
        return f"projects/{self.spec.project}/regions/{self.spec.region}/subnetworks/{self.id}"

    def desired(self) -> State:
        return {
            "network": Network(self.spec).id,
            "ipCidrRange": self.spec.network.cidr,
            "privateIpGoogleAccess": True,
        }

    def body(self) -> Json:
        network = Network(self.spec).link
        return {"name": self.id, "description": self.marker, **self.desired(), "network": network}

    def parse(self, body: Json) -> State:
        self.owned(body, lent=bool(self.spec.network.subnet))
        return {
            "network": short(body["network"]),
            "ipCidrRange": body["ipCidrRange"],
            "privateIpGoogleAccess": body.get("privateIpGoogleAccess", False),
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """A range grows, when the wanted one contains what there is; it never shrinks."""
        if not changes:
            return
        body = self.present(compute)
        self.untouched(body, changes)
        cidr, is_cidr = self.spec.network.cidr, IPv4Network(body["ipCidrRange"])
        why = {"network": ELSEWHERE}
        if not is_cidr.subnet_of(IPv4Network(cidr)):
            why["ipCidrRange"] = "a range can only grow"
        self.keep(changes, why)
        for change in changes:
            if change.attribute == "ipCidrRange":
                self.call(compute, "expandIpCidrRange", body={"ipCidrRange": cidr})
            else:
                wanted = {"privateIpGoogleAccess": True}
                self.call(compute, "setPrivateIpGoogleAccess", body=wanted)


class Router(_Regional):
    """The router, and the Cloud NAT on it: the server's only way out."""

    noun, collection, parameter = "router", "routers", "router"

    @property
    def id(self) -> str:
        return self.spec.named("router")

    @property
    def nat(self) -> Json:
        ours = {"name": Subnet(self.spec).link, "sourceIpRangesToNat": ["ALL_IP_RANGES"]}
        return {"name": self.spec.named("nat"), **NAT, "subnetworks": [ours]}

    def desired(self) -> State:
        return {"network": Network(self.spec).id, **_nat(self.nat)}

    def body(self) -> Json:
        network = Network(self.spec).link
        return {
            "name": self.id,
            "description": self.marker,
            "network": network,
            "nats": [self.nat],
        }

    def parse(self, body: Json) -> State:
        self.owned(body)
        nats: list[Json] = body.get("nats", [])
        ours = next((nat for nat in nats if nat["name"] == self.nat["name"]), {})
        return {"network": short(body["network"]), **_nat(ours)}

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Other NATs on the router stay as they are."""
        self.keep(changes, {"network": ELSEWHERE})
        if changes:
            nats: list[Json] = self.present(compute).get("nats", [])
            others = [nat for nat in nats if nat["name"] != self.nat["name"]]
            self.call(compute, "patch", body={"nats": [*others, self.nat]})


def _nat(nat: Json) -> State:
    log = nat.get("logConfig", {})
    subnets: list[Json] = nat.get("subnetworks", [])
    return {
        "nat.addresses": nat.get("natIpAllocateOption"),
        "nat.sources": nat.get("sourceSubnetworkIpRangesToNat"),
        "nat.subnets": tuple(
            sorted(f"{short(s['name'])}: {', '.join(s['sourceIpRangesToNat'])}" for s in subnets)
        ),
        "nat.log": log.get("filter") if log.get("enable") else None,
    }


@dataclass(frozen=True)
class Firewall(ComputeKind):
    """A rule that lets ``sources`` reach one TCP ``port`` of the server, told by its tag."""

    part: str
    port: int
    sources: tuple[str, ...]
    noun, collection, parameter = "firewall rule", "firewalls", "firewall"

    @property
    def id(self) -> str:
        return self.spec.named(self.part)

    def desired(self) -> State:
        return self._state(self.body())

    def body(self) -> Json:
        return {
            "name": self.id,
            "description": self.marker,
            "network": Network(self.spec).link,
            "direction": "INGRESS",
            "priority": 1000,
            "disabled": False,
            "allowed": [{"IPProtocol": "tcp", "ports": [str(self.port)]}],
            "sourceRanges": list(self.sources),
            "targetTags": [self.spec.name],
        }

    def parse(self, body: Json) -> State:
        self.owned(body)
        return self._state(body)

    def _state(self, body: Json) -> State:
        """Everything that decides whom the rule lets in."""
        others = ("sourceTags", "sourceServiceAccounts", "destinationRanges")
        return {
            "network": short(body["network"]),
            **{key: body.get(key) for key in ("direction", "priority", "disabled")},
            "allowed": tuple(map(_traffic, body.get("allowed", ()))),
            "denied": tuple(map(_traffic, body.get("denied", ()))),
            **{
                key: tuple(sorted(body.get(key, ())))
                for key in ("sourceRanges", *others, "targetTags", "targetServiceAccounts")
            },
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Replace the rule: a patch could not take away what another has added to it."""
        self.keep(changes, {"network": ELSEWHERE, "direction": "it is chosen when a rule is made"})
        if changes:
            kept = {k: v for k, v in self.present(compute).items() if k == "logConfig"}
            self.call(compute, "update", body={**self.body(), **kept})


def _traffic(entry: Json) -> str:
    """``tcp:22,80-90``."""
    ports: Any = entry.get("ports", ())
    return f"{entry['IPProtocol']}:{','.join(ports)}"


def firewalls(spec: ServerSpec) -> list[Firewall]:
    """SSH through IAP, and the server's port for its clients."""
    clients = tuple(sorted(set(spec.network.clients or (spec.network.cidr,))))
    return [
        Firewall(spec, "ssh-iap", 22, (IAP_RANGE,)),
        Firewall(spec, "clients", spec.server.port, clients),
    ]
