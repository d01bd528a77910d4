"""The network: room for the subnet, the way out of it, and the database as the machine reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network

from blocks.compute import Json
from flows.cost import has_nat
from flows.errors import BootstrapError, CommandFailed
from flows.prerequisites.asked import GRANTED, MISSING, UNCHECKED, Asked, Row, row, told
from flows.reconcile import Outcome
from flows.resources.kind import short
from flows.resources.network import Network, Subnet

AUTO_MODE = IPv4Network("10.128.0.0/9")
"""What an auto mode network keeps for the subnets that it makes by itself."""
LAPTOP = "Write install_from: laptop under prefect in the spec."
GOOGLES = "servicenetworking-googleapis-com"
"""Its ranges are the reserved ones, which are looked at."""


def address_range(asked: Asked) -> Iterator[Row]:
    """Room for a subnet that is to be made in a network that is there."""
    spec = asked.spec
    wanted, what = IPv4Network(spec.network.cidr), f"range {spec.network.cidr}"
    if "subnet" not in asked.kinds:
        yield Row(what, GRANTED, f"the subnet {Subnet(spec).id} is not to be made")
        return
    there = asked["network"]
    if there is None:
        yield Row(what, GRANTED, f"the network {Network(spec).id} will be new")
        return
    over = [f"{whose} ({taken})" for whose, taken in _taken(asked) if wanted.overlaps(taken)]
    strange = [peer["name"] for peer in there.get("peerings", ()) if peer["name"] != GOOGLES]
    if strange and not over:
        routes = (
            f"compute networks peerings list-routes {strange[0]} --network={Network(spec).id} "
            f"--region={spec.region} --direction=incoming"
        )
        detail = f"what lies behind {', '.join(strange)} is not looked at"
        yield Row(what, UNCHECKED, detail, asked.gcloud(routes))
        return
    detail = f"overlaps with {', '.join(over)}" if over else "overlaps with nothing"
    see = asked.gcloud(f"compute networks subnets list --network={Network(spec).id}")
    yield row(what, not over, detail, f"Write another cidr under network in the spec; see {see}")


def _taken(asked: Asked) -> Iterator[tuple[str, IPv4Network]]:
    """Whose it is, and the range."""
    if asked["network"].get("autoCreateSubnetworks"):
        yield "subnets of an auto mode network", AUTO_MODE
    for subnet in asked["subnets"]:
        for part in (subnet, *subnet.get("secondaryIpRanges", ())):
            yield f"subnet {subnet['name']}", IPv4Network(part["ipCidrRange"])
    for each in asked["reserved"]:
        length = each["prefixLength"]
        yield f"reserved {each['name']}", IPv4Network(f"{each['address']}/{length}")


def way_out(asked: Asked) -> Iterator[Row]:
    """A NAT of its own, one of another's, or none where nothing is downloaded."""
    spec, what = asked.spec, "way out without an external address"
    if not has_nat(spec) and spec.prefect.install_from == "laptop":
        yield Row(what, GRANTED, "none is needed: everything comes from the laptop")
        return
    if not has_nat(spec):
        yield _of_others(asked, what)
        return
    if "router" not in asked.kinds or asked["network"] is None:
        yield Row(what, GRANTED, "a Cloud NAT of the server's own")
        return
    defaults = _defaults(asked)
    if not defaults:
        create = (
            f"compute routes create {spec.name}-out --network={Network(spec).id} "
            "--destination-range=0.0.0.0/0 --next-hop-gateway=default-internet-gateway"
        )
        yield Row(what, MISSING, "the network has no default route", asked.gcloud(create))
        return
    other = next((nat for nat in _nats(asked) if _has(nat[1], Subnet(spec).id)), None)
    detail = f"a Cloud NAT of the server's own, by the route {defaults[0]['name']}"
    if other is None:
        yield Row(what, GRANTED, detail)
        return
    router, nat = other
    others = [s["name"] for s in asked["subnets"] if short(s["region"]) == spec.region]
    left = ",".join(name for name in others if name != Subnet(spec).id) or "SUBNET"
    update = (
        f"compute routers nats update {nat['name']} --router={router} --region={spec.region} "
        f"--nat-custom-subnet-ip-ranges={left}"
    )
    detail = f"the NAT {nat['name']} would serve this subnet, too, and Google refuses a second one"
    yield Row(what, MISSING, detail, asked.gcloud(update))


def _of_others(asked: Asked, what: str) -> Row:
    """A NAT that serves the subnet, or a route that needs none."""
    spec, network = asked.spec, Network(asked.spec)
    if asked["network"] is None:
        return Row(what, UNCHECKED, f"the network {network.id} is not there", LAPTOP)
    for route in _defaults(asked):
        if not route.get("nextHopGateway"):
            return Row(what, GRANTED, f"the route {route['name']}")
    name, region = spec.named("router"), f"--region={spec.region} --project={network.home}"
    served = [nat["name"] for _, nat in _nats(asked) if _has(nat, Subnet(spec).id)]
    repair = (
        f"{LAPTOP} Or: gcloud compute routers create {name} --network={network.id} {region} && "
        f"gcloud compute routers nats create {spec.named('nat')} --router={name} {region} "
        f"--auto-allocate-nat-external-ips --nat-custom-subnet-ip-ranges={Subnet(spec).id}"
    )
    detail = f"the Cloud NAT {served[0]}" if served else "no Cloud NAT serves the subnet"
    return row(what, served and _defaults(asked), detail, repair)


def _defaults(asked: Asked) -> list[Json]:
    """Routes to the internet."""
    return [route for route in asked["routes"] if route["destRange"] == "0.0.0.0/0"]


def _nats(asked: Asked) -> Iterator[tuple[str, Json]]:
    """Router and NAT."""
    for router in asked["routers"]:
        for nat in router.get("nats", ()):
            yield router["name"], nat


def _has(nat: Json, subnet: str) -> bool:
    """Whether a subnet of that name is, or would be, the NAT's."""
    everything: bool = nat["sourceSubnetworkIpRangesToNat"].startswith("ALL_SUBNETWORKS")
    return everything or subnet in [short(each["name"]) for each in nat.get("subnetworks", ())]


def database(asked: Asked) -> Iterator[Row]:
    """As the database stage sees it; no row while there is no machine to look from."""
    what, seen = "PostgreSQL, from the machine", asked.database
    if seen is None:
        return
    if isinstance(seen, Outcome):
        differs = "; ".join(map(str, seen.changes))
        yield row(what, not differs, differs or "fit for Prefect", "Ask its administrator.")
    elif isinstance(seen, BootstrapError) and asked.inside and not isinstance(seen, CommandFailed):
        yield Row(what, MISSING, told(seen), seen.repair)
    else:
        raise seen
