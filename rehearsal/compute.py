"""Compute Engine collections: what is the same for all of them, and what each adds.

``Collection`` gives get, list, aggregatedList, insert, delete, patch and update. A subclass checks
and completes a body (``prepare``), refuses a delete (``deletable``), and makes the change real
(``changed``, ``deleted``). Instances have a module of their own.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, ClassVar

from rehearsal import errors, inventory
from rehearsal.config import PROJECT
from rehearsal.disk import Disk
from rehearsal.errors import Json
from rehearsal.gateway import Call, handles
from rehearsal.operations import Work, mutates
from rehearsal.store import fingerprint, link, normalize, page, path_of, select

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

Mutated = tuple[Json, Work | None, Any]

REFERS = {
    "network": "networks",
    "subnetwork": "subnetworks",
    "machineType": "machineTypes",
    "type": "diskTypes",
    "source": "disks",
    "sourceDisk": "disks",
    "sourceImage": "images",
    "sourceSnapshot": "snapshots",
    "name": "subnetworks",  # of a NAT
}
"""Field → the collection its link has to be of."""


def check_fingerprint(body: Json, current: str, what: str = "") -> None:
    """Refuse a change that was made from an older state (412)."""
    key = "labelFingerprint" if what == "labels" else "fingerprint"
    if body.get(key) != current:
        raise errors.stale(what)


def reference(cloud: Cloud, resource: Json, field: str) -> Json:
    """The resource a link in ``field`` points to; 400 without a link, 404 when it is not there."""
    url = resource.get(field)
    if not url:
        raise errors.required(field)
    if not url.startswith("https://"):
        raise errors.invalid(field, url, "The URL is malformed.")
    found = cloud.store.find(path_of(url))
    if found["selfLink"].split("/")[-2] != REFERS[field]:
        raise errors.invalid(field, url, "The URL is malformed.")
    if field == "network" and found["selfLink"] not in cloud.vpcs:
        raise errors.not_ready(path_of(found["selfLink"]))
    return found


def cidr(text: str, field: str) -> ipaddress.IPv4Network:
    try:
        if not re.fullmatch(r"[0-9.]+(/[0-9]+)?", text):  # no netmask in place of a length
            raise ValueError
        return ipaddress.IPv4Network(text)
    except ValueError:
        why = "Must be a CIDR address range that is contained in RFC 1918 or another valid range."
        raise errors.invalid(field, text, why) from None


def check_scope(cloud: Cloud, call: Call) -> None:
    """Refuse an unknown project, region or zone."""
    project = call.params["project"]
    if project != PROJECT and (project, call.method.verb) != ("debian-cloud", "GET"):
        raise errors.not_found(f"projects/{project}")
    for scope in ("zone", "region"):
        name = call.params.get(scope)
        if name and call.method.collection not in ("compute.zones", "compute.regions"):
            path = f"projects/{PROJECT}/{scope}s/{name}"
            if cloud.store.get(link(path)) is None:
                raise errors.invalid(scope, name, f"Unknown {scope}.")


class Collection:
    """One kind of resource. Subclasses register themselves by being made once."""

    name: ClassVar[str]
    kind: ClassVar[str]
    immutable: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(self) -> None:
        prefix = f"compute.{self.name}"
        handles(f"{prefix}.get")(self.get)
        handles(f"{prefix}.list")(self.list)
        handles(f"{prefix}.aggregatedList")(self.aggregated)
        mutates(f"{prefix}.insert")(self.insert)
        mutates(f"{prefix}.delete")(self.delete)
        mutates(f"{prefix}.patch", f"{prefix}.update")(self.update)
        mutates(f"{prefix}.setLabels")(self.set_labels)

    # What a kind of resource adds

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        """Check a body and fill in what the service sets."""

    def deletable(self, cloud: Cloud, resource: Json) -> None:
        """Raise what the request for a delete answers at once."""

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        """Make a new or changed resource real."""

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        """Undo what it made. An OperationError keeps the resource."""

    # What every kind does

    async def get(self, cloud: Cloud, call: Call) -> Json:
        check_scope(cloud, call)
        return self.stamp(cloud.store.find(call.path))

    async def list(self, cloud: Cloud, call: Call) -> Json:
        check_scope(cloud, call)
        items = [self.stamp(r) for r in cloud.store.children(call.path)]
        return {
            "kind": f"{self.kind}List",
            "id": call.path,
            "selfLink": link(call.path),
            **page(items, call.query),
        }

    async def aggregated(self, cloud: Cloud, call: Call) -> Json:
        check_scope(cloud, call)
        places = [*cloud.store.every("regions"), *cloud.store.every("zones")]
        items: Json = {}
        for place in places:
            scope = path_of(place["selfLink"])
            children = [self.stamp(r) for r in cloud.store.children(f"{scope}/{self.name}")]
            chosen = select(children, call.query.get("filter", ""))
            key = scope.removeprefix(f"projects/{PROJECT}/")
            warning = {
                "code": "NO_RESULTS_ON_PAGE",
                "message": f"There are no results for scope '{key}' on this page.",
                "data": [{"key": "scope", "value": key}],
            }
            items[key] = {self.name: chosen} if chosen else {"warning": warning}
        kind = f"{self.kind}AggregatedList"
        return {"kind": kind, "id": call.path, "selfLink": link(call.path), "items": items}

    async def insert(self, cloud: Cloud, call: Call) -> Mutated:
        check_scope(cloud, call)
        resource = normalize(call.body, PROJECT)
        if not resource.get("name"):
            raise errors.required("name")
        path = f"{call.path}/{resource['name']}"
        if cloud.store.get(link(path)):
            raise errors.exists(path)
        self.prepare(cloud, call, resource)
        cloud.store.add(path, self.kind, resource)

        def undo() -> None:
            cloud.store.remove(path)

        return resource, lambda: self.changed(cloud, resource), undo

    async def delete(self, cloud: Cloud, call: Call) -> Mutated:
        check_scope(cloud, call)
        resource = cloud.store.find(call.path)
        self.deletable(cloud, resource)

        async def work() -> None:
            await self.deleted(cloud, resource)
            cloud.store.remove(path_of(resource["selfLink"]))
            await self.gone(cloud, resource)

        return resource, work, None

    async def gone(self, cloud: Cloud, resource: Json) -> None:
        """After a resource has left the store."""

    async def update(self, cloud: Cloud, call: Call) -> Mutated:
        check_scope(cloud, call)
        resource = cloud.store.find(call.path)
        body = normalize(call.body, PROJECT)
        if "fingerprint" in self.stamp(resource):
            check_fingerprint(body, resource["fingerprint"])
        for field in self.immutable:
            if field in body and body[field] != resource.get(field):
                raise errors.invalid(field, body[field], "It cannot be changed.")
        kept = resource if call.method.action == "patch" else self.fixed(resource)
        merged = {k: v for k, v in {**kept, **body}.items() if v is not None}
        self.prepare(cloud, call, merged)
        resource.clear()
        resource.update(merged)
        return resource, lambda: self.changed(cloud, resource), None

    def fixed(self, resource: Json) -> Json:
        """The members that an update, which replaces the rest, leaves alone."""
        service = ("id", "kind", "selfLink", "creationTimestamp", "region", "zone")
        return {k: resource[k] for k in (*service, *self.immutable) if k in resource}

    async def set_labels(self, cloud: Cloud, call: Call) -> Mutated:
        resource = self.stamp(cloud.store.find(call.path.removesuffix("/setLabels")))
        check_fingerprint(call.body, resource["labelFingerprint"], "labels")
        labels = call.body.get("labels", {})
        check_labels(labels)
        resource["labels"] = labels
        self.stamp(resource)
        return resource, None, None

    def stamp(self, resource: Json) -> Json:
        """Bring the fingerprints up to date."""
        if self.kind in ("compute#disk", "compute#address", "compute#snapshot", "compute#instance"):
            resource["labelFingerprint"] = fingerprint(resource.get("labels", {}))
        if self.kind == "compute#subnetwork":
            content = {k: v for k, v in resource.items() if k != "fingerprint"}
            resource["fingerprint"] = fingerprint(content)
        return resource


def check_labels(labels: Json) -> None:
    for key, value in labels.items():
        fine = key[:1].isalpha() and all(
            part == part.lower()
            and len(part) <= 63
            and part.replace("-", "").replace("_", "").isalnum()
            for part in (key, value or "x")
        )
        if not fine:
            why = "Label keys and values are lower case letters, digits, '-' and '_', 63 at most."
            raise errors.invalid("labels", f"{key}={value}", why)


class Networks(Collection):
    name, kind = "networks", "compute#network"
    immutable = ("name", "IPv4Range")

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        used = inventory.global_usage(cloud.store, PROJECT)["NETWORKS"]
        if call.method.action == "insert" and used >= inventory.GLOBAL_QUOTAS["NETWORKS"]:
            raise errors.ApiError(403, "quotaExceeded", "Quota 'NETWORKS' exceeded.  Limit: "
                                  f"{inventory.GLOBAL_QUOTAS['NETWORKS']} globally.")  # fmt: skip
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


class Disks(Collection):
    name, kind = "disks", "compute#disk"

    def __init__(self) -> None:
        super().__init__()
        mutates("compute.disks.resize")(self.resize)
        mutates("compute.disks.createSnapshot")(self.snapshot)

    def prepare(self, cloud: Cloud, call: Call, resource: Json) -> None:
        zone = "/".join(call.path.split("/")[:4])
        resource.setdefault("type", link(f"{zone}/diskTypes/pd-standard"))
        reference(cloud, resource, "type")
        smallest = 10
        for field in ("sourceImage", "sourceSnapshot"):
            if field in resource:
                source = reference(cloud, {field: image_link(resource[field])}, field)
                resource[field] = source["selfLink"]
                resource[f"{field}Id"] = source["id"]
                smallest = int(source["diskSizeGb"])
        size = int(resource.setdefault("sizeGb", str(smallest)))
        if not smallest <= size <= 65536:
            why = f"Must be at least the source's size, {smallest} GB, and at most 65536 GB."
            raise errors.invalid("sizeGb", size, why)
        resource.update(status="READY", sizeGb=str(size), physicalBlockSizeBytes="4096")
        resource.setdefault("users", [])

    async def changed(self, cloud: Cloud, resource: Json) -> None:
        disk = Disk(resource["id"])
        if not disk.file.exists():
            snapshot = resource.get("sourceSnapshotId")
            source = Disk(snapshot) if snapshot else None
            await disk.create(int(resource["sizeGb"]), source)

    def deletable(self, cloud: Cloud, resource: Json) -> None:
        if resource["users"]:
            path = path_of(resource["selfLink"])
            raise errors.in_use("disk", path, path_of(resource["users"][0]))

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        await Disk(resource["id"]).delete()

    async def resize(self, cloud: Cloud, call: Call) -> Mutated:
        resource = cloud.store.find(call.path.rpartition("/")[0])
        size = int(call.body.get("sizeGb", 0))
        if not int(resource["sizeGb"]) < size <= 65536:
            why = f"New disk size '{size}' GiB must be larger than existing size."
            raise errors.invalid("sizeGb", size, why)

        async def work() -> None:
            await Disk(resource["id"]).resize(size)
            resource["sizeGb"] = str(size)

        return resource, work, None

    async def snapshot(self, cloud: Cloud, call: Call) -> Mutated:
        disk = cloud.store.find(call.path.rpartition("/")[0])
        path = f"projects/{PROJECT}/global/snapshots/{call.body.get('name') or 'snapshot'}"
        _, work, undo = SNAPSHOTS.take(cloud, path, disk, dict(call.body))
        return disk, work, undo


def image_link(url: str) -> str:
    """An image's link; a family's link becomes its newest image's."""
    return link(inventory.IMAGE) if path_of(url) in inventory.FAMILIES else url


class Snapshots(Collection):
    name, kind = "snapshots", "compute#snapshot"

    async def insert(self, cloud: Cloud, call: Call) -> Mutated:
        check_scope(cloud, call)
        body = normalize(call.body, PROJECT)
        if not body.get("name"):
            raise errors.required("name")
        disk = reference(cloud, body, "sourceDisk")
        return self.take(cloud, f"{call.path}/{body['name']}", disk, body)

    def take(self, cloud: Cloud, path: str, disk: Json, body: Json) -> Mutated:
        body.update(
            status="CREATING",
            sourceDisk=disk["selfLink"],
            sourceDiskId=disk["id"],
            diskSizeGb=disk["sizeGb"],
        )
        snapshot = cloud.store.add(path, self.kind, body)

        async def work() -> None:
            await Disk(snapshot["id"]).create(int(disk["sizeGb"]), Disk(disk["id"]))
            snapshot["status"] = "READY"

        return snapshot, work, lambda: cloud.store.remove(path)

    async def deleted(self, cloud: Cloud, resource: Json) -> None:
        await Disk(resource["id"]).delete()


class ReadOnly(Collection):
    """Part of the inventory: there to be read."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind  # type: ignore[misc]  # one class for four kinds
        for action, handler in (
            ("get", self.get), ("list", self.list), ("aggregatedList", self.aggregated)
        ):  # fmt: skip
            handles(f"compute.{name}.{action}")(handler)


class Regions(ReadOnly):
    def stamp(self, resource: Json) -> Json:
        return resource

    async def get(self, cloud: Cloud, call: Call) -> Json:
        region = await super().get(cloud, call)
        usage = inventory.regional_usage(cloud.store, region["name"])
        return {**region, "quotas": inventory.quotas(cloud.quotas, usage)}


@handles("compute.images.getFromFamily")
async def _from_family(cloud: Cloud, call: Call) -> Json:
    if call.path not in inventory.FAMILIES:
        raise errors.not_found(call.path)
    return cloud.store.find(inventory.IMAGE)


NETWORKS, SUBNETWORKS, FIREWALLS, ROUTERS = Networks(), Subnetworks(), Firewalls(), Routers()
ADDRESSES, DISKS, SNAPSHOTS = Addresses(), Disks(), Snapshots()
REGIONS = Regions("regions", "compute#region")
INVENTORY = [
    ReadOnly("zones", "compute#zone"),
    ReadOnly("machineTypes", "compute#machineType"),
    ReadOnly("diskTypes", "compute#diskType"),
    ReadOnly("images", "compute#image"),
]
