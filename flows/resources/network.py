"""The way to the server and out of it: network, subnet, router with Cloud NAT, firewall rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, ClassVar

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
ELSEWHERE = {"network": "it stays in the network it was made in"}


class Network(ComputeKind):
    """The VPC network: in custom mode, so that no subnets come by themselves.

    One that the spec names may be anybody's, and is used as it is.
    """

    noun, collection, parameter = "network", "networks", "network"
    fixed: ClassVar[Mapping[str, str]] = {
        "autoCreateSubnetworks": "its mode is chosen when it is made"
    }

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
        self.keep(changes)
        if changes:
            self.call(compute, "patch", body={"routingConfig": {"routingMode": "REGIONAL"}})


class _Regional(ComputeKind):
    @property
    def place(self) -> dict[str, Any]:
        return {"region": self.spec.region}


class Subnet(_Regional):
    """The subnet, from which Google's APIs are reached without an external address."""

    noun, collection, parameter = "subnet", "subnetworks", "subnetwork"
    fixed = ELSEWHERE

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

    def replaced(self, change: Change) -> str:
        """A range grows, when the wanted one contains what there is; it never shrinks."""
        if change.attribute == "ipCidrRange" and not change.missing:
            wanted, there = (IPv4Network(str(r)) for r in (change.desired, change.actual))
            return "" if there.subnet_of(wanted) else "a range can only grow"
        return super().replaced(change)

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        if not changes:
            return
        self.untouched(self.present(compute), changes)
        self.keep(changes)
        for change in changes:
            if change.attribute == "ipCidrRange":
                wider = {"ipCidrRange": self.spec.network.cidr}
                self.call(compute, "expandIpCidrRange", body=wider)
            else:
                wanted = {"privateIpGoogleAccess": True}
                self.call(compute, "setPrivateIpGoogleAccess", body=wanted)


class Router(_Regional):
    """The router, and the Cloud NAT on it: the server's only way out."""

    noun, collection, parameter = "router", "routers", "router"
    fixed = ELSEWHERE

    @property
    def id(self) -> str:
        return self.spec.named("router")

    @property
    def nat(self) -> Json:
        ours = {"name": Subnet(self.spec).link, "sourceIpRangesToNat": ["ALL_IP_RANGES"]}
        return {"name": self.spec.named("nat"), **NAT, "subnetworks": [ours]}

    def desired(self) -> State:
        return {"network": Network(self.spec).id, **self._nat(self.nat)}

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
        return {"network": short(body["network"]), **self._nat(ours)}

    def _nat(self, nat: Json) -> State:
        """Of one that is not there, only this is said: the rest would repeat it."""
        name, nat = nat.get("name", ""), nat or self.nat
        log = nat.get("logConfig", {})
        subnets: list[Json] = nat.get("subnetworks", [])
        return {
            "nat": name,
            "nat.addresses": nat.get("natIpAllocateOption"),
            "nat.sources": nat.get("sourceSubnetworkIpRangesToNat"),
            "nat.subnets": tuple(
                sorted(
                    f"{short(s['name'])}: {', '.join(s['sourceIpRangesToNat'])}" for s in subnets
                )
            ),
            "nat.log": log.get("filter", "ALL") if log.get("enable") else "off",
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Other NATs on the router stay as they are."""
        self.keep(changes)
        if changes:
            nats = {nat["name"]: nat for nat in self.present(compute).get("nats", ())}
            ours, name = self.nat, self.nat["name"]
            if not {"nat", "nat.log"} & {change.attribute for change in changes}:
                ours["logConfig"] = nats.get(name, {}).get("logConfig", {"enable": False})
            self.call(compute, "patch", body={"nats": list({**nats, name: ours}.values())})


@dataclass(frozen=True)
class Firewall(ComputeKind):
    """A rule that lets ``sources`` reach one TCP ``port`` of the server, told by its tag."""

    part: str
    port: int
    sources: tuple[str, ...]
    noun, collection, parameter = "firewall rule", "firewalls", "firewall"
    fixed: ClassVar[Mapping[str, str]] = {
        **ELSEWHERE,
        "direction": "it is chosen when a rule is made",
    }

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
        self.keep(changes)
        if changes:
            kept = {"logConfig", *self.desired()} - {change.attribute for change in changes}
            ours = {k: v for k, v in self.body().items() if k not in kept}
            theirs = {k: v for k, v in self.present(compute).items() if k in kept}
            self.call(compute, "update", body={**ours, **theirs})


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
