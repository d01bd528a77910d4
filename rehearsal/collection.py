"""What is the same for every Compute Engine collection.

``Collection`` gives get, list, aggregatedList, insert, delete, patch and update. A subclass checks
and completes a body (``prepare``), refuses a delete (``deletable``), and makes the change real
(``changed``, ``deleted``).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, ClassVar

from rehearsal import errors
from rehearsal.config import HOST_PROJECT, PROJECT
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


def given(body: Json) -> Json:
    """The members that say something: for Google, null and an empty list are as good as absent."""
    return {k: v for k, v in body.items() if v is not None and v != []}


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
    ours = project in (PROJECT, HOST_PROJECT)
    if not ours and (project, call.method.verb) != ("debian-cloud", "GET"):
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
        resource = given(normalize(call.body, call.params["project"]))
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
        body = normalize(call.body, call.params["project"])
        if "fingerprint" in self.stamp(resource):
            check_fingerprint(body, resource["fingerprint"])
        for field in self.immutable:
            if field in body and body[field] != resource.get(field):
                raise errors.invalid(field, body[field], "It cannot be changed.")
        kept = resource if call.method.action == "patch" else self.fixed(resource)
        merged = given({**kept, **body})
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
