"""The cloud's state, and the one place where resources become real networks and machines.

``network_changed`` brings a network's namespace to what the store says of it, whole, after any
change to anything in it: level, not edge.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools

from aiohttp import web

from rehearsal import firewall, inventory, projects
from rehearsal.cgroups import DAEMON
from rehearsal.config import EXTERNAL_RANGE, METADATA, PROJECT
from rehearsal.errors import ApiError, Json
from rehearsal.faults import Faults
from rehearsal.iam import Identities
from rehearsal.machine import Machine
from rehearsal.network import Vpc
from rehearsal.operations import Operations
from rehearsal.secret_manager import SecretStore
from rehearsal.store import Store, path_of


class Cloud:
    """One project's resources and what stands behind them."""

    def __init__(self) -> None:
        self.store = Store()
        self.faults = Faults()
        self.operations = Operations(self.store, self.faults)
        self.identities = Identities(PROJECT)
        self.services = projects.Services()
        self.secrets = SecretStore()
        self.quotas = {**inventory.QUOTAS, **inventory.GLOBAL_QUOTAS}
        self.vpcs: dict[str, Vpc] = {}
        self.machines: dict[str, Machine] = {}
        self.planned_disks: dict[str, Json] = {}
        self.guest_attributes: dict[str, dict[str, str]] = {}
        self.metadata_changed = asyncio.Condition()
        self._numbers = itertools.count(1)
        self._listeners: dict[str, web.ServerRunner] = {}
        self.common_metadata: Json = {"kind": "compute#metadata"}
        inventory.stock(self.store, PROJECT)

    # Networks

    async def open_network(self, network: str) -> None:
        """Make the namespace of a network, with its metadata server."""
        from rehearsal import metadata

        vpc = Vpc(next(self._numbers), DAEMON)
        await vpc.open()
        self.vpcs[network] = vpc
        server = web.Server(metadata.handler(self, network), access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, vpc.listen(METADATA, 80)).start()
        self._listeners[network] = runner
        await self.network_changed(network)

    async def close_network(self, network: str) -> None:
        if runner := self._listeners.pop(network, None):
            await runner.cleanup()
        if vpc := self.vpcs.pop(network, None):
            await vpc.close()

    async def network_changed(self, network: str) -> None:
        """Make routers' addresses and the ruleset of a network follow the store."""
        if vpc := self.vpcs.get(network):
            subnets = self.subnets(network)
            gateways = {f"{s['gatewayAddress']}/{s['ipCidrRange'].split('/')[1]}" for s in subnets}
            await vpc.apply(gateways, firewall.ruleset(self._view(network, subnets)))

    def subnets(self, network: str) -> list[Json]:
        return [s for s in self.store.every("subnetworks") if s["network"] == network]

    def members(self, network: str) -> list[Json]:
        """Instances with an interface in the network."""
        return [
            i
            for i in self.store.every("instances")
            if i["networkInterfaces"][0]["network"] == network
        ]

    def instance_at(self, network: str, address: str) -> Json | None:
        """The instance that has an address, as the metadata server tells callers apart."""
        return next(
            (i for i in self.members(network) if i["networkInterfaces"][0]["networkIP"] == address),
            None,
        )

    def _view(self, network: str, subnets: list[Json]) -> firewall.Vpc:
        hosts, ways_out = [], []
        for instance in self.members(network):
            nic = instance["networkInterfaces"][0]
            accounts = [a["email"] for a in instance.get("serviceAccounts", ())]
            tags = frozenset(instance["tags"].get("items", ()))
            hosts.append(firewall.Host(nic["networkIP"], tags, next(iter(accounts), None)))
            if nic.get("accessConfigs"):
                ways_out.append(nic["networkIP"])
        for router in self.store.every("routers"):
            if router["network"] == network:
                for nat in router.get("nats", ()):
                    ways_out += _translated(nat, router["region"], subnets)
        rules = [f for f in self.store.every("firewalls") if f["network"] == network]
        return firewall.Vpc(hosts, rules, ways_out)

    # Addresses

    def free_address(self, subnet: Json) -> str:
        """The next internal address of a subnet; the first two and the last two are reserved."""
        taken = {
            nic["networkIP"]
            for i in self.store.every("instances")
            for nic in i["networkInterfaces"]
        } | {a["address"] for a in self.store.every("addresses")}
        hosts = list(itertools.islice(ipaddress.ip_network(subnet["ipCidrRange"]), 2, 4096))
        for host in hosts[:-2]:
            if str(host) not in taken:
                return str(host)
        message = f"IP space of '{path_of(subnet['selfLink'])}' is exhausted."
        raise ApiError(400, "ipSpaceExhausted", message)

    def free_external(self) -> str:
        taken = {a["address"] for a in self.store.every("addresses")} | {
            access.get("natIP")
            for i in self.store.every("instances")
            for nic in i["networkInterfaces"]
            for access in nic.get("accessConfigs", ())
        }
        hosts = ipaddress.ip_network(EXTERNAL_RANGE).hosts()
        for host in hosts:
            if str(host) not in taken:
                return str(host)
        raise ApiError(403, "quotaExceeded", "There are no more external addresses.")

    # Machines

    def machine(self, instance: Json) -> Machine:
        return self.machines[instance["id"]]

    async def changed_metadata(self) -> None:
        """Wake the machines' agents that wait for a change."""
        async with self.metadata_changed:
            self.metadata_changed.notify_all()

    async def close(self) -> None:
        """Power everything off and remove it, machines first."""
        await asyncio.gather(*(m.delete() for m in self.machines.values()), return_exceptions=True)
        for network in list(self.vpcs):
            await self.close_network(network)


def _translated(nat: Json, region: str, subnets: list[Json]) -> list[str]:
    """CIDRs that a NAT of a router in ``region`` lets out."""
    if nat["sourceSubnetworkIpRangesToNat"].startswith("ALL_SUBNETWORKS"):
        return [s["ipCidrRange"] for s in subnets if s["region"] == region]
    named = {s["name"] for s in nat.get("subnetworks", ())}
    return [s["ipCidrRange"] for s in subnets if s["selfLink"] in named]
