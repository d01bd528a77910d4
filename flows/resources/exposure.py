"""Who else is let in: rules of others that open a port of the server wider than the spec does.

Our own rules are compared with the spec by themselves; whatever else is in the network may let in
more. So all its rules are evaluated as Google does: by priority, a deny before an allow of the same
one, for the tags and the account that the machine really has. Not evaluated, for the project's rules
do not show them: firewall policies of the organisation, of a folder or of the network.
Source: https://cloud.google.com/firewall/docs/firewalls
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses, ip_network
from typing import Any

from blocks.compute import Compute, Json
from flows.errors import Final
from flows.reconcile import Change, State
from flows.resources.account import Account
from flows.resources.firewall import Firewall, firewalls
from flows.resources.instance import Instance
from flows.resources.kind import Kind
from flows.resources.network import Network

EVERYWHERE = "0.0.0.0/0"
TCP = ("tcp", "6", "all")


class Exposure(Kind):
    """For each port of the server, the sources that strangers' rules let in beyond the spec: ranges,
    tags and accounts, each with its rule. Nothing of it is ours to change."""

    noun = "exposure of"

    @property
    def id(self) -> str:
        return self.spec.name

    def desired(self) -> State:
        return {_open(own): () for own in firewalls(self.spec)}

    def request(self, compute: Compute) -> Any:
        """The first page of the network's rules; none while there is no network."""
        network = Network(self.spec)
        where = f'network eq ".*/networks/{network.id}"'
        return compute.service.firewalls().list(project=network.home, filter=where)

    def fetch(self, compute: Compute) -> Json:
        """The rules that are not ours; the machine, too, where one of them is for some only."""
        collection, request = compute.service.firewalls(), self.request(compute)
        own = [rule.id for rule in firewalls(self.spec)]
        rules: list[Json] = []
        while request is not None:
            answer = compute.ask(request)
            rules += [rule for rule in answer.get("items", ()) if rule["name"] not in own]
            request = collection.list_next(request, answer)
        machine = None
        if any(map(_targets, rules)):
            machine = Instance(self.spec).fetch(compute)
        return {"rules": rules, "machine": machine or {}}

    def parse(self, body: Json) -> State:
        machine: Json = body["machine"]
        tags = machine.get("tags", {}).get("items", ())
        accounts = (account["email"] for account in machine.get("serviceAccounts", ()))
        # With what the machine lacks, for it will get that.
        marks = {*tags, *accounts, self.spec.name, Account(self.spec).id}
        rules = [
            rule
            for rule in body["rules"]
            if rule["direction"] == "INGRESS" and not rule.get("disabled")
            if not _targets(rule) or marks & _targets(rule)
        ]
        return {_open(own): tuple(_let_in(own, rules)) for own in firewalls(self.spec)}

    def create(self, compute: Compute) -> None:
        """Never called: there always is an answer."""

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """A stranger's rule may serve others, too."""
        found = [source for c in changes if isinstance(c.actual, tuple) for source in c.actual]
        names = " ".join(sorted({source.rpartition("(")[2].rstrip(")") for source in found}))
        raise Final(
            f"{self.name} is not changed here: {'; '.join(map(str, changes))}.",
            repair="Narrow these rules to whom they are for, or delete them: gcloud compute "
            f"firewall-rules delete {names} --project={Network(self.spec).home}",
        )


def _open(own: Firewall) -> str:
    return f"port {own.port} open to"


def _let_in(own: Firewall, rules: Sequence[Json]) -> Iterable[str]:
    """``10.0.0.0/8 (rule)``, ``tag web (rule)`` for all that ``rules`` let in to the port of our own
    rule, but ours does not."""
    for rule in rules:
        if not _speaks_of(own.port, rule.get("allowed", ())):
            continue
        denied = [
            source
            for other in rules
            if other["priority"] <= rule["priority"]
            if _speaks_of(own.port, other.get("denied", ()))
            if not other.get("destinationRanges")  # it may leave our address out
            for source in _sources(other)
        ]
        for source in _sources(rule):
            if not _within(source, [*own.sources, *denied]):
                yield f"{source} ({rule['name']})"


def _sources(rule: Json) -> list[str]:
    """``10.0.0.0/8``, ``tag web``, ``account a@b``; a rule that names none is for all."""
    tags = [f"tag {tag}" for tag in rule.get("sourceTags", ())]
    accounts = [f"account {email}" for email in rule.get("sourceServiceAccounts", ())]
    return [*rule.get("sourceRanges", ()), *tags, *accounts] or [EVERYWHERE]


def _within(source: str, others: Sequence[str]) -> bool:
    """Whether the others have all of it, together. A machine with a tag may be anywhere."""
    if " " in source:
        return source in others or EVERYWHERE in others
    network: Any = ip_network(source)
    ranges: list[Any] = [ip_network(other) for other in others if " " not in other]
    alike = collapse_addresses(other for other in ranges if other.version == network.version)
    return any(network.subnet_of(other) for other in alike)


def _targets(rule: Json) -> set[str]:
    """Tags and accounts that it is for; empty when it is for all machines."""
    return {*rule.get("targetTags", ()), *rule.get("targetServiceAccounts", ())}


def _speaks_of(port: int, entries: Iterable[Json]) -> bool:
    """Whether TCP to the port is among ``tcp:22,80-90``, ``6`` or ``all``."""
    for entry in entries:
        bounds = [text.partition("-")[::2] for text in entry.get("ports", ())]
        there = any(int(first) <= port <= int(last or first) for first, last in bounds)
        if entry["IPProtocol"].lower() in TCP and (there or not bounds):
            return True
    return False
