"""Networks, subnetworks, firewall rules, routers and addresses."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from rehearsal import errors, inventory
from rehearsal.collection import Collection, Mutated, cidr, reference
from rehearsal.config import PROJECT
from rehearsal.errors import Json
from rehearsal.gateway import Call
from rehearsal.operations import mutates
from rehearsal.store import link, path_of

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud


class Networks(Collection):
    name, kind = "networks", "compute#network"
    immutable = ("name", "IPv4Range")

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        used = inventory.global_usage(cloud.store, PROJECT)["NETWORKS"]
        if call.method.action == "insert" and used >= cloud.quotas["NETWORKS"]:
            raise errors.ApiError(403, "quotaExceeded", "Quota 'NETWORKS' exceeded.  Limit: "
                                  f"{cloud.quotas['NETWORKS']} globally.")  # fmt: skip
        resource.setdefault("autoCreateSubnetworks", True)
        resource.setdefault("mtu", 1460)
        resource.setdefault("routingConfig", {}).setdefault("routingMode", "REGIONAL")
        resource.setdefault("networkFirewallPolicyEnforcementOrder", "AFTER_CLASSIC_FIREWALL")

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        network = resource["selfLink"]
        resource["selfLinkWithId"] = link(f"projects/{PROJECT}/global/networks/{resource['id']}")
        if network not in cloud.vpcs:
            await cloud.open_network(network)
            if resource["autoCreateSubnetworks"]:
                for region, (ranges, _) in inventory.REGIONS.items():
                    SUBNETWORKS.create(cloud, resource, region, ranges)
        resource["subnetworks"] = [s["selfLink"] for s in cloud.subnets(network)]
        await cloud.network_changed(network)

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        network = resource["selfLink"]
        for collection in ("firewalls", "routers", "instances", "subnetworks"):
            for user in cloud.store.every(collection):
                own = collection == "subnetworks" and resource["autoCreateSubnetworks"]
                nics = user.get("networkInterfaces", [user])
                if any(nic.get("network") == network for nic in nics) and not own:
                    path, by = path_of(network), path_of(user["selfLink"])
                    raise errors.used_by("network", path, by)
        for subnet in cloud.subnets(network):
            cloud.store.remove(path_of(subnet["selfLink"]))
        await cloud.close_network(network)


class InNetwork(Collection):
    """A resource that belongs to a network and shows in its namespace."""

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        await cloud.network_changed(resource["network"])

    async def gone(self, cloud: Cloud, resource: Json) -> None:
        await cloud.network_changed(resource["network"])


class Subnetworks(InNetwork):
    name, kind = "subnetworks", "compute#subnetwork"
    immutable = ("name", "network")

    def __init__(self) -> None:
        super().__init__()
        mutates("compute.subnetworks.setPrivateIpGoogleAccess")(self.set_google_access)
        mutates("compute.subnetworks.expandIpCidrRange")(self.expand)

    def create(self, cloud: Cloud, network: Json, region: str, ranges: str) -> None:
        """A subnet of an auto mode network."""
        path = f"projects/{PROJECT}/regions/{region}/subnetworks/{network['name']}"
        resource: Json = {"network": network["selfLink"], "ipCidrRange": ranges}
        self._complete(resource)
        cloud.store.add(path, self.kind, resource)

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        network = reference(cloud, resource, "network")
        if network["autoCreateSubnetworks"] and call.method.action == "insert":
            why = "Cannot create subnetworks in an auto subnet mode network."
            raise errors.invalid("network", network["selfLink"], why)
        if "ipCidrRange" not in resource:
            raise errors.required("ipCidrRange")
        ranges = cidr(resource["ipCidrRange"], "ipCidrRange")
        if not 8 <= ranges.prefixlen <= 29:
            raise errors.invalid("ipCidrRange", ranges, "The prefix length must be 8 to 29.")
        for other in cloud.subnets(network["selfLink"]):
            same = other.get("id") == resource.get("id")
            if not same and ranges.overlaps(ipaddress.IPv4Network(other["ipCidrRange"])):
                why = f"IP range overlaps with the subnetwork '{path_of(other['selfLink'])}'."
                raise errors.invalid("ipCidrRange", ranges, why)
        self._complete(resource)

    def _complete(self, resource: Json) -> None:
        first = ipaddress.IPv4Network(resource["ipCidrRange"])[1]
        resource["gatewayAddress"] = str(first)
        resource.setdefault("privateIpGoogleAccess", False)
        resource.setdefault("purpose", "PRIVATE")
        resource.setdefault("stackType", "IPV4_ONLY")
        resource.setdefault("enableFlowLogs", False)

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        await NETWORKS.changed(cloud, cloud.store.find(path_of(resource["network"])))

    async def gone(self, cloud: Cloud, resource: Json) -> None:
        await self.changed(cloud, resource)

    def deletable(self, cloud: Cloud, resource: Json) -> None:
        for instance in cloud.members(resource["network"]):
            if instance["networkInterfaces"][0]["subnetwork"] == resource["selfLink"]:
                path = path_of(resource["selfLink"])
                raise errors.in_use("subnetwork", path, path_of(instance["selfLink"]))

    async def set_google_access(self, cloud: Cloud, call: Call) -> Mutated:
        resource = cloud.store.find(call.path.rpartition("/")[0])
        resource["privateIpGoogleAccess"] = call.body.get("privateIpGoogleAccess", False)
        return resource, None, None

    async def expand(self, cloud: Cloud, call: Call) -> Mutated:
        resource = cloud.store.find(call.path.rpartition("/")[0])
        wanted = cidr(call.body.get("ipCidrRange", ""), "ipCidrRange")
        if not wanted.supernet_of(ipaddress.IPv4Network(resource["ipCidrRange"])):
            raise errors.invalid("ipCidrRange", wanted, "It does not contain the present range.")
        self.prepare(cloud, call, {**resource, "ipCidrRange": str(wanted)})
        resource["ipCidrRange"] = str(wanted)
        return resource, lambda: self.changed(cloud, resource), None


class Firewalls(InNetwork):
    name, kind = "firewalls", "compute#firewall"
    immutable = ("name", "network", "direction")

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        default = link(f"projects/{PROJECT}/global/networks/default")
        resource.setdefault("network", default)
        reference(cloud, resource, "network")
        if bool(resource.get("allowed")) == bool(resource.get("denied")):
            raise errors.invalid("allowed", "", "Give either 'allowed' or 'denied'.")
        resource.setdefault("direction", "INGRESS")
        resource.setdefault("priority", 1000)
        resource.setdefault("disabled", False)
        resource.setdefault("logConfig", {"enable": False})
        sources = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
        if resource["direction"] == "INGRESS" and not any(resource.get(s) for s in sources):
            resource["sourceRanges"] = ["0.0.0.0/0"]
        if resource["direction"] == "EGRESS":
            resource.setdefault("destinationRanges", ["0.0.0.0/0"])
        for field in ("sourceRanges", "destinationRanges"):
            for text in resource.get(field, ()):
                if ":" not in text:
                    cidr(text, field)
                elif not _is_v6(text):
                    raise errors.invalid(field, text, "It is not an IPv6 address range.")
        for entry in resource.get("allowed") or resource["denied"]:
            _check_protocol(entry)
        if not 0 <= resource["priority"] <= 65535:
            raise errors.invalid("priority", resource["priority"], "Must be 0 to 65535.")


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Network(text)
    except ValueError:
        return False
    return True


def _check_protocol(entry: Json) -> None:
    protocol = str(entry.get("IPProtocol", "")).lower()
    named = ("tcp", "udp", "icmp", "esp", "ah", "ipip", "sctp", "all")
    number = protocol.isdecimal() and int(protocol) < 256
    if protocol not in named and not number:
        raise errors.invalid("allowed[0].IPProtocol", protocol, "Unknown protocol.")
    entry["IPProtocol"] = protocol
    ports = entry.get("ports", [])
    if ports and protocol not in ("tcp", "udp", "sctp", "6", "17", "132"):
        raise errors.invalid("allowed[0].ports", ports, "Only TCP, UDP and SCTP have ports.")
    for port in ports:
        first, _, last = port.partition("-")
        bounds = [first, last or first]
        if not all(b.isascii() and b.isdecimal() and int(b) < 65536 for b in bounds) or int(
            bounds[0]
        ) > int(bounds[1]):
            raise errors.invalid("allowed[0].ports", port, "Use a port or a range such as 80-90.")


class Routers(InNetwork):
    name, kind = "routers", "compute#router"
    immutable = ("name", "network")

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        reference(cloud, resource, "network")
        for nat in resource.get("nats", ()):
            for field in ("name", "natIpAllocateOption", "sourceSubnetworkIpRangesToNat"):
                if field not in nat:
                    raise errors.required(f"nats[0].{field}")
            for subnet in nat.get("subnetworks", ()):
                reference(cloud, subnet, "name")
            nat.setdefault("enableEndpointIndependentMapping", False)
            nat.setdefault("type", "PUBLIC")


class Addresses(Collection):
    name, kind = "addresses", "compute#address"

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        resource.setdefault("addressType", "EXTERNAL")
        resource["status"] = "RESERVED"
        if resource["addressType"] == "EXTERNAL":
            resource["address"] = cloud.free_external()
            resource.setdefault("networkTier", "PREMIUM")
            return
        subnet = reference(cloud, resource, "subnetwork")
        ranges = ipaddress.IPv4Network(subnet["ipCidrRange"])
        wanted = resource.setdefault("address", cloud.free_address(subnet))
        try:
            inside = ipaddress.IPv4Address(wanted) in ranges
        except ValueError:
            inside = False
        if not inside:
            raise errors.invalid("address", wanted, "It is not within the subnetwork's range.")
        for other in cloud.store.every("addresses"):
            if (other["address"], other.get("subnetwork")) == (wanted, subnet["selfLink"]):
                raise errors.invalid("address", wanted, "Specified IP address is already reserved.")

    def deletable(self, cloud: Cloud, resource: Json) -> None:
        for instance in cloud.store.every("instances"):
            for nic in instance["networkInterfaces"]:
                used = [nic["networkIP"], *(a.get("natIP") for a in nic.get("accessConfigs", ()))]
                if resource["address"] in used:
                    path = path_of(resource["selfLink"])
                    raise errors.in_use("address", path, path_of(instance["selfLink"]))


NETWORKS, SUBNETWORKS, FIREWALLS, ROUTERS = Networks(), Subnetworks(), Firewalls(), Routers()
ADDRESSES = Addresses()
