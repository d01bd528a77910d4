"""The way out: a router with Cloud NAT, ours or one that the spec names."""

from __future__ import annotations

from blocks.compute import Compute, Json
from flows.reconcile import Change, State
from flows.resources.kind import placed, short
from flows.resources.network import ELSEWHERE, Network, Regional, Subnet
from flows.spec import ServerSpec

NAT = {
    "natIpAllocateOption": "AUTO_ONLY",
    "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS",
    "logConfig": {"enable": True, "filter": "ERRORS_ONLY"},
}
"""Addresses that Google chooses, for one subnet; translations that failed are logged."""


class Router(Regional):
    """The router, and the Cloud NAT on it: the server's only way out."""

    noun, collection, parameter = "router", "routers", "router"
    fixed = ELSEWHERE

    @property
    def id(self) -> str:
        return self.spec.named("router")

    @property
    def adopt(self) -> str:
        return "use it as it is: write name and router under network in the spec."

    @property
    def nat(self) -> Json:
        ours = {"name": Subnet(self.spec).link, "sourceIpRangesToNat": ["ALL_IP_RANGES"]}
        return {"name": self.spec.named("nat"), **NAT, "subnetworks": [ours]}

    def desired(self) -> State:
        return {
            "network": placed(Network(self.spec).link, self.spec.project),
            **self._nat(self.nat),
        }

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
        return {"network": placed(body["network"], self.spec.project), **self._nat(ours)}

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


class LentRouter(Regional):
    """A router that the spec names: one of its NATs has to serve the subnet."""

    noun, collection, parameter = "router", "routers", "router"

    @property
    def id(self) -> str:
        return self.spec.network.router

    @property
    def lent(self) -> bool:
        return True

    def by_hand(self, change: Change) -> str:
        if change.missing:
            return super().by_hand(change)
        subnet = Subnet(self.spec).id
        return f"Add Cloud NAT for {subnet} to it, or name another router in the spec."

    def desired(self) -> State:
        network = placed(Network(self.spec).link, self.spec.project)
        return {"network": network, "nat.serves": True}

    def parse(self, body: Json) -> State:
        network = placed(body["network"], self.spec.project)
        return {"network": network, "nat.serves": any(map(self._serves, body.get("nats", ())))}

    def _serves(self, nat: Json) -> bool:
        if nat.get("sourceSubnetworkIpRangesToNat", "").startswith("ALL_SUBNETWORKS"):
            return True
        return any(
            subnet["name"].endswith(Subnet(self.spec).link)
            and {"ALL_IP_RANGES", "PRIMARY_IP_RANGE"} & {*subnet["sourceIpRangesToNat"]}
            for subnet in nat.get("subnetworks", ())
        )

    def body(self) -> Json:
        """Never sent."""
        return {}

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Never called."""


def routers(spec: ServerSpec) -> list[Router | LentRouter]:
    """The way out: ours, the one that the spec names, or none to look at: in a shared VPC, and where
    none is wanted."""
    if spec.network.router:
        return [LentRouter(spec)]
    return [Router(spec)] if spec.network.nat and not spec.network.project else []
