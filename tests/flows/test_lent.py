"""What the spec names is somebody else's: it is only looked at, and never made or changed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from flows.errors import Final, NeedsReplacement, NotOurs
from flows.reconcile import Change, reconcile
from flows.resources.disk import Disk
from flows.resources.firewall import firewalls
from flows.resources.instance import Instance
from rehearsal.config import HOST_PROJECT
from rehearsal.errors import Json
from tests.flows.test_compute_resources import NAT, VM, Lab, lab, spec
from tests.gcloud import linted
from tests.paper import REGIONAL

__all__ = ["lab"]

HOST = f"/compute/v1/projects/{HOST_PROJECT}"
LENT: Json = {"name": "net", "subnet": "net-sub", "cidr": "10.0.0.0/24"}
SHARED = LENT | {"project": HOST_PROJECT}


@pytest.fixture
def lender(lab: Lab) -> Lab:
    """A cloud with a network, and a subnet that reaches Google's APIs, of somebody else."""
    lab.caller.network()
    reaches(lab, f"{REGIONAL}/subnetworks/net-sub")
    lab.http.asked.clear()
    return lab


def reaches(lab: Lab, subnet: str) -> None:
    wanted = {"privateIpGoogleAccess": True}
    lab.caller.change("POST", f"{subnet}/setPrivateIpGoogleAccess", wanted)


def router(lab: Lab, **nat: Any) -> None:
    body: Json = {"name": "way-out", "network": "global/networks/net"}
    if nat:
        body["nats"] = [{"name": "nat", "natIpAllocateOption": "AUTO_ONLY", **nat}]
    lab.caller.change("POST", f"{REGIONAL}/routers", body)


def touched(lab: Lab) -> list[str]:
    """Writes to what is lent."""
    names = ("net", "net-sub", "way-out")
    return [w for w in lab.http.writes if w.rpartition("/")[2] in names or HOST_PROJECT in w]


ALL = "ALL_SUBNETWORKS_ALL_IP_RANGES"
LINK = f"projects/rehearsal/{REGIONAL}/subnetworks/"


def listed(name: str, ranges: str) -> Json:
    subnets = [{"name": f"{LINK}{name}", "sourceIpRangesToNat": [ranges]}]
    return {"sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS", "subnetworks": subnets}


NATS: list[tuple[Json, bool]] = [
    ({}, False),
    ({"sourceSubnetworkIpRangesToNat": ALL}, True),
    (listed("net-sub", "ALL_IP_RANGES"), True),
    (listed("net-sub", "PRIMARY_IP_RANGE"), True),
    (listed("net-sub", "LIST_OF_SECONDARY_IP_RANGES"), False),
]


@pytest.mark.parametrize(("nat", "serves"), NATS)
def test_a_router_of_another_has_to_serve_the_subnet(lender: Lab, nat: Json, serves: bool) -> None:
    router(lender, **nat)
    wanted = spec(network=LENT | {"router": "way-out"})
    if not serves:
        with pytest.raises(NeedsReplacement, match="Add Cloud NAT for net-sub to it, or name"):
            lender.run(wanted)
        assert lender.http.writes == []
        return
    assert "router prefect-1-router" not in lender.run(wanted)
    assert lender.run(wanted) == {}
    assert touched(lender) == []
    assert {each["name"] for each in lender.caller.cloud.store.every("routers")} == {"way-out"}


def test_a_router_in_another_network_does_not_help(lender: Lab) -> None:
    lender.caller.change("POST", "global/networks", {"name": "x", "autoCreateSubnetworks": False})
    elsewhere = {"name": "way-out", "network": "global/networks/x"}
    nats = [{**NAT, "name": "n", "sourceSubnetworkIpRangesToNat": ALL}]
    lender.caller.change("POST", f"{REGIONAL}/routers", {**elsewhere, "nats": nats})
    with pytest.raises(NeedsReplacement, match="network: x → net"):
        lender.run(spec(network=LENT | {"router": "way-out"}))


def test_a_subnet_of_ours_can_be_made_in_a_lent_network(lender: Lab) -> None:
    wanted = spec(network={"name": "net"})
    lender.run(wanted)
    assert lender.run(wanted) == {}
    assert lender.get(f"{REGIONAL}/subnetworks/prefect-1-subnet")["description"]
    assert touched(lender) == []


@pytest.mark.parametrize("part", ["subnet", "network"])
def test_what_is_lent_heals_nobody(lender: Lab, part: str) -> None:
    """Not even a run that nobody watches tries to."""
    resource = lender.resource(part, spec(network=LENT))
    needed = resource.replaced(Change("ipCidrRange", "a", "b"))  # type: ignore[attr-defined]
    assert "delete" not in needed.repair
    assert needed.repair.startswith("Change it by hand")


# A shared VPC


@pytest.fixture
def shared(lab: Lab) -> Lab:
    net = {"name": "net", "autoCreateSubnetworks": False}
    lab.caller.change("POST", f"{HOST}/global/networks", net)
    subnet = {"name": "net-sub", "network": "global/networks/net", "ipCidrRange": LENT["cidr"]}
    lab.caller.change("POST", f"{HOST}/{REGIONAL}/subnetworks", subnet)
    reaches(lab, f"{HOST}/{REGIONAL}/subnetworks/net-sub")
    return lab


def follow(lab: Lab, line: str) -> None:
    """Make the firewall rule that a gcloud line makes."""
    words = shlex.split(line)
    flags = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    protocol, port = flags["allow"].split(":")
    assert flags["project"] == HOST_PROJECT
    body = {
        "name": words[words.index("create") + 1],
        "network": f"global/networks/{flags['network']}",
        "direction": flags["direction"],
        "priority": int(flags["priority"]),
        "allowed": [{"IPProtocol": protocol, "ports": [port]}],
        "sourceRanges": flags["source-ranges"].split(","),
        "targetTags": flags["target-tags"].split(","),
    }
    lab.caller.change("POST", f"{HOST}/global/firewalls", body)


def test_in_a_shared_vpc_rules_are_asked_for_by_the_line_that_makes_them(shared: Lab) -> None:
    wanted = spec(network=SHARED)
    for _ in firewalls(wanted):
        with pytest.raises(Final, match=r"does not exist\. Make it: gcloud") as error:
            shared.run(wanted)
        follow(shared, error.value.repair.partition(": ")[2])
    assert [*shared.run(wanted)][-1] == "instance prefect-1"
    assert shared.run(wanted) == {}
    assert touched(shared) == []
    nic = shared.get(VM)["networkInterfaces"][0]
    assert f"projects/{HOST_PROJECT}/" in nic["subnetwork"]
    assert {each["name"] for each in shared.caller.cloud.store.every("routers")} == set()


def test_a_rule_in_a_shared_vpc_that_differs_is_not_changed(shared: Lab) -> None:
    wanted = spec(network=SHARED)
    for rule in firewalls(wanted):
        follow(shared, rule.by_hand(Change("", None, None, missing=True)))
    shared.caller.change("PATCH", f"{HOST}/global/firewalls/prefect-1-ssh-iap", {"priority": 1})
    with pytest.raises(NeedsReplacement, match="Delete it and make it again: gcloud compute"):
        shared.run(wanted)
    assert touched(shared) == []


def test_a_network_of_the_same_name_in_the_servers_project_is_another(shared: Lab) -> None:
    shared.caller.network()
    reaches(shared, f"{REGIONAL}/subnetworks/net-sub")
    shared.run(spec(network=LENT))
    instance = shared.resource("instance", spec(network=SHARED))
    changes = reconcile(instance, apply=False).changes
    assert [change.attribute for change in changes] == ["network", "subnetwork"]


def test_strangers_rules_of_a_shared_vpc_are_looked_at(shared: Lab) -> None:
    eve = {"name": "eve", "network": "global/networks/net", "sourceRanges": ["0.0.0.0/0"]}
    allowed = [{"IPProtocol": "tcp", "ports": ["22"]}]
    shared.caller.change("POST", f"{HOST}/global/firewalls", {**eve, "allowed": allowed})
    exposure = shared.resource("exposure", spec(network=SHARED))
    with pytest.raises(Final, match=f"delete eve --project={HOST_PROJECT}"):
        reconcile(exposure, apply=True)


# The lines that errors tell


@pytest.mark.gcloud
def test_gcloud_knows_the_lines_that_errors_tell(tmp_path: Path) -> None:
    said = [rule.by_hand(Change("", None, None)) for rule in firewalls(spec(network=SHARED))]
    said += [rule.adopt for rule in firewalls(spec())]
    for kind in (Instance(spec()), Disk(spec())):
        with pytest.raises(NotOurs) as error:
            kind.owned({"zone": "us-central1-a"})
        said.append(error.value.repair)
    lines = [each[each.index("gcloud ") :] for each in said]
    assert linted(lines, tmp_path) == []
