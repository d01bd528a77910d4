"""What strangers' firewall rules let in: every clause of Google's evaluation, and the reading of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blocks.compute import ApiError
from flows.errors import Final
from flows.reconcile import diff, reconcile
from flows.resources.exposure import Exposure
from rehearsal import collection
from rehearsal.errors import Json
from rehearsal.store import page
from tests.flows.paper_world import empty
from tests.flows.test_compute_resources import NETWORK, SSH, VM, VM_ACCOUNT, Lab, spec

LIST = "GET /compute/v1/projects/rehearsal/global/firewalls"
GET = f"GET /compute/v1/projects/rehearsal/{VM}"
SSH_OPEN, PORT_OPEN = "port 22 open to", "port 4200 open to"
TCP_22: list[Json] = [{"IPProtocol": "tcp", "ports": ["22"]}]
ANYWHERE = ["0.0.0.0/0"]
VM_EMAIL = VM_ACCOUNT.rpartition("/")[2]


def rule(name: str = "wide", **members: Any) -> Json:
    """One that lets anybody in to port 22, as the API shows it."""
    sources = (
        {} if {"sourceTags", "sourceServiceAccounts"} & set(members) else {"sourceRanges": ANYWHERE}
    )
    shown = {"name": name, "direction": "INGRESS", "priority": 1000, "disabled": False, **sources}
    return {**shown, **({} if "denied" in members else {"allowed": TCP_22}), **members}


def allows(**entry: Any) -> Json:
    return rule(allowed=[entry])


def denies(*ranges: str, **members: Any) -> Json:
    return rule("deny", **{"denied": TCP_22, "sourceRanges": list(ranges), **members})


WIDE = {SSH_OPEN: ["0.0.0.0/0 (wide)"]}
WIDE_4200 = {PORT_OPEN: ["0.0.0.0/0 (wide)"]}
CASES: dict[str, tuple[list[Json], dict[str, list[str]]]] = {
    "no rule": ([], {}),
    "anybody to port 22": ([rule()], WIDE),
    "disabled": ([rule(disabled=True)], {}),
    "outwards": ([rule(direction="EGRESS")], {}),
    "a deny opens nothing": ([denies("0.0.0.0/0")], {}),
    "the server's port": ([allows(IPProtocol="tcp", ports=["4200"])], WIDE_4200),
    "another port": ([allows(IPProtocol="tcp", ports=["443", "8080-8090"])], {}),
    "a range of ports": ([allows(IPProtocol="tcp", ports=["80", "4000-5000"])], WIDE_4200),
    "the ends of a range": ([allows(IPProtocol="tcp", ports=["22-4200"])], WIDE | WIDE_4200),
    "beside the ends": ([allows(IPProtocol="tcp", ports=["23-4199"])], {}),
    "all ports": ([allows(IPProtocol="tcp")], WIDE | WIDE_4200),
    "all protocols": ([allows(IPProtocol="all")], WIDE | WIDE_4200),
    "TCP by its number": ([allows(IPProtocol="6", ports=["22"])], WIDE),
    "another protocol": ([allows(IPProtocol="udp", ports=["22"]), allows(IPProtocol="icmp")], {}),
    "the second entry": ([rule(allowed=[{"IPProtocol": "icmp"}, *TCP_22])], WIDE),
    "within IAP's range": ([rule(sourceRanges=["35.235.240.0/24", "35.235.247.1/32"])], {}),
    "wider than IAP's range": (
        [rule(sourceRanges=["35.235.0.0/16", "35.235.240.0/20"])],
        {SSH_OPEN: ["35.235.0.0/16 (wide)"]},
    ),
    "the subnet to port 22": (
        [rule(sourceRanges=["10.10.0.0/24"])],
        {SSH_OPEN: ["10.10.0.0/24 (wide)"]},
    ),
    "the subnet to the server's port": (
        [rule(sourceRanges=["10.10.0.0/25"], allowed=[{"IPProtocol": "tcp", "ports": ["4200"]}])],
        {},
    ),
    "IPv6": ([rule(sourceRanges=["::/0"])], {SSH_OPEN: ["::/0 (wide)"]}),
    "a tag": ([rule(sourceTags=["web"])], {SSH_OPEN: ["tag web (wide)"]}),
    "an account": ([rule(sourceServiceAccounts=["a@b"])], {SSH_OPEN: ["account a@b (wide)"]}),
    "for our tag": ([rule(targetTags=["db", "prefect-1"])], WIDE),
    "for a tag that another gave it": ([rule(targetTags=["web"])], WIDE),
    "for other tags": ([rule(targetTags=["db"])], {}),
    "for our account": ([rule(targetServiceAccounts=[VM_EMAIL])], WIDE),
    "for the account it really has": ([rule(targetServiceAccounts=["own@b"])], WIDE),
    "for another account": ([rule(targetServiceAccounts=["c@b"])], {}),
    "two rules": (
        [rule(), rule("more", sourceRanges=["1.2.3.4/32"])],
        {SSH_OPEN: ["0.0.0.0/0 (wide)", "1.2.3.4/32 (more)"]},
    ),
    "denied first": ([denies("0.0.0.0/0", priority=999), rule()], {}),
    "denied at the same priority": ([rule(), denies("0.0.0.0/0")], {}),
    "denied too late": ([denies("0.0.0.0/0", priority=1001), rule()], WIDE),
    "denied in part": ([denies("0.0.0.0/1"), rule()], WIDE),
    "denied in two halves": ([denies("0.0.0.0/1", "128.0.0.0/1"), rule()], {}),
    "denied all but whom the spec lets in": (
        [denies("10.10.1.0/24"), rule(sourceRanges=["10.10.0.0/23"], allowed=[{"IPProtocol": "all"}])],
        {SSH_OPEN: ["10.10.0.0/23 (wide)"], PORT_OPEN: ["10.10.0.0/23 (wide)"]},
    ),
    "denied on all ports all but whom the spec lets in": (
        [
            denies("10.10.1.0/24", denied=[{"IPProtocol": "all"}]),
            rule(sourceRanges=["10.10.0.0/23"], allowed=[{"IPProtocol": "all"}]),
        ],
        {SSH_OPEN: ["10.10.0.0/23 (wide)"]},
    ),
    "denied on another port": ([denies("0.0.0.0/0", denied=[{"IPProtocol": "udp"}]), rule()], WIDE),
    "denied for others": ([denies("0.0.0.0/0", targetTags=["db"]), rule()], WIDE),
    "denied for ours": ([denies("0.0.0.0/0", targetTags=["web"]), rule()], {}),
    "denied, but disabled": ([denies("0.0.0.0/0", disabled=True), rule()], WIDE),
    "denied on some addresses": ([denies("0.0.0.0/0", destinationRanges=["10.9.0.0/16"]), rule()], WIDE),
    "IPv4 denied, IPv6 open": (
        [denies("0.0.0.0/0"), rule(sourceRanges=["0.0.0.0/0", "::/0"])],
        {SSH_OPEN: ["::/0 (wide)"]},
    ),
    "a tag denied": ([denies(sourceTags=["web"]), rule(sourceTags=["web"])], {}),
    "everybody denied, a tag too": ([denies("0.0.0.0/0"), rule(sourceTags=["web"])], {}),
    "a tag denied, everybody open": ([denies(sourceTags=["web"]), rule()], WIDE),
}  # fmt: skip
MACHINE: Json = {"tags": {"items": ["prefect-1", "web"]}, "serviceAccounts": [{"email": "own@b"}]}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_counts_as_google_evaluates_it(case: str) -> None:
    rules, opened = CASES[case]
    exposure = Exposure(spec())
    changes = diff(exposure.desired(), exposure.parse({"rules": rules, "machine": MACHINE}))
    assert {change.attribute: [*(change.actual or ())] for change in changes} == opened  # type: ignore[misc]


@pytest.mark.parametrize("ranges", [["10.0.0.0/9", "10.128.0.0/9"], ["10.0.0.0/8"]])
def test_clients_together_are_what_the_spec_allows(ranges: list[str]) -> None:
    exposure = Exposure(spec(network={"clients": ranges}, server={"port": 4300}))
    allowed = [{"IPProtocol": "tcp", "ports": ["4300"]}]
    body = {"rules": [rule(sourceRanges=["10.0.0.0/8"], allowed=allowed)], "machine": {}}
    assert exposure.parse(body) == exposure.desired() == {SSH_OPEN: (), "port 4300 open to": ()}


# Read


@pytest.fixture
def server() -> Iterator[Lab]:
    with empty() as world:
        world.cloud.run()
        world.cloud.http.asked.clear()
        yield world.cloud


def add(lab: Lab, name: str, **members: Any) -> None:
    body: Json = {"name": name, "network": NETWORK, "allowed": TCP_22, **members}
    lab.caller.change("POST", "global/firewalls", body)


def opened(lab: Lab) -> dict[str, object]:
    """What a drift check finds, of all resources."""
    found = lab.run(apply=False)
    return {f"{o.resource}: {c.attribute}": c.actual for o in found.values() for c in o.changes}


def test_a_stranger_s_rule_is_found_and_its_repair_told_but_it_is_never_changed(
    server: Lab,
) -> None:
    add(server, "wide")
    add(server, "everything", allowed=[{"IPProtocol": "all"}], priority=7)
    assert opened(server) == {
        "exposure of prefect-1: port 22 open to": ("0.0.0.0/0 (everything)", "0.0.0.0/0 (wide)"),
        "exposure of prefect-1: port 4200 open to": ("0.0.0.0/0 (everything)",),
    }
    repair = "gcloud compute firewall-rules delete everything wide --project=rehearsal$"
    with pytest.raises(Final, match=repair):
        reconcile(server.resource("exposure"), apply=True)
    assert server.http.writes == []


def test_our_own_rule_that_is_opened_is_one_difference(server: Lab) -> None:
    server.caller.change("PATCH", SSH, {"sourceRanges": ANYWHERE})
    assert [*opened(server)] == ["firewall rule prefect-1-ssh-iap: sourceRanges"]


def test_a_tag_that_another_gave_the_machine_opens_it(server: Lab) -> None:
    add(server, "web", targetTags=["web"])
    assert opened(server) == {}
    body = {"items": ["prefect-1", "web"], "fingerprint": server.get(VM)["tags"]["fingerprint"]}
    server.caller.change("POST", f"{VM}/setTags", body)
    assert [*opened(server).values()] == [("0.0.0.0/0 (web)",)]


def test_the_machine_is_asked_for_only_where_a_rule_is_for_some(server: Lab) -> None:
    add(server, "wide")
    server.resource("exposure").read()
    assert server.http.asked.count(GET) == 1  # the instance itself, in the same batch
    add(server, "web", targetTags=["web"])
    server.http.asked.clear()
    server.resource("exposure").read()
    assert (server.http.asked.count(GET), server.http.asked.count(LIST)) == (2, 1)


def test_every_page_is_read(server: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(items: list[Json], query: Json) -> Json:
        return page(items, {**query, "maxResults": "2"})

    monkeypatch.setattr(collection, "page", small)
    names = [f"wide-{n}" for n in range(5)]
    for name in names:
        add(server, name)
    assert [*opened(server).values()] == [tuple(f"0.0.0.0/0 ({name})" for name in names)]
    assert server.http.asked.count(LIST) == 4


def test_rules_of_other_networks_do_not_count(server: Lab) -> None:
    for name in ("net", "other-prefect-1-net", "prefect-1-net-2"):
        body = {"name": name, "autoCreateSubnetworks": False}
        server.caller.change("POST", "global/networks", body)
        add(server, f"of-{name}", network=f"global/networks/{name}")
    assert opened(server) == {}


def test_where_there_is_no_network_nothing_is_open_and_one_question_says_so() -> None:
    with empty() as world:
        exposure = world.cloud.resource("exposure")
        assert exposure.read() == exposure.desired()
        assert world.cloud.http.asked.count(LIST) == 1
        assert world.cloud.slept == []


def test_an_account_that_may_not_list_rules_has_not_checked(server: Lab) -> None:
    server.order("compute.firewalls.list", status=403, reason="forbidden", count=9)
    with pytest.raises(ApiError, match=r"403 forbidden.*role.yaml has all that are needed"):
        server.resource("exposure").read()
