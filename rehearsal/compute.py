"""Compute Engine: every collection it has here. What only is there to be read is made here; the
others register themselves when their module is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehearsal import errors, instance_changes, inventory, networks  # noqa: F401 - these register themselves
from rehearsal.collection import Collection, check_scope
from rehearsal.errors import Json
from rehearsal.gateway import Call, handles
from rehearsal.store import link, page

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud


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


class Routes(ReadOnly):
    """Every network has come with a route to the internet."""

    async def list(self, cloud: Cloud, call: Call) -> Json:
        check_scope(cloud, call)
        project = call.params["project"]
        found = cloud.store.children(f"projects/{project}/global/networks")
        routes = [_default_route(project, network) for network in found]
        return {"kind": "compute#routeList", "id": call.path, **page(routes, call.query)}


def _default_route(project: str, network: Json) -> Json:
    name = f"default-route-{network['name']}"
    return {
        "kind": "compute#route",
        "id": network["id"],
        "name": name,
        "selfLink": link(f"projects/{project}/global/routes/{name}"),
        "network": network["selfLink"],
        "destRange": "0.0.0.0/0",
        "nextHopGateway": link(f"projects/{project}/global/gateways/default-internet-gateway"),
        "priority": 1000,
    }


@handles("compute.images.getFromFamily")
async def _from_family(cloud: Cloud, call: Call) -> Json:
    if call.path not in inventory.FAMILIES:
        raise errors.not_found(call.path)
    return cloud.store.find(inventory.IMAGE)


REGIONS = Regions("regions", "compute#region")
ROUTES = Routes("routes", "compute#route")
INVENTORY = [
    ReadOnly("zones", "compute#zone"),
    ReadOnly("machineTypes", "compute#machineType"),
    ReadOnly("diskTypes", "compute#diskType"),
    ReadOnly("images", "compute#image"),
    ReadOnly("globalAddresses", "compute#address"),
]
