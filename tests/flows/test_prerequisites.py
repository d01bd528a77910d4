"""Every row of preflight's table: granted, missing, and could not check; from answers as data."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from blocks.compute import ApiError, Json
from flows.errors import BootstrapError, CommandFailed, Final, Unreachable
from flows.permissions import ACT_AS, NARROW, TUNNEL, needed, permissions, shared
from flows.prerequisites.asked import GRANTED, MISSING, UNCHECKED, Asked, Row
from flows.prerequisites.table import CHECKS, rows, summary, word
from flows.reconcile import Change, Outcome
from flows.spec import ServerSpec
from tests.flows.test_compute_resources import spec
from tests.gcloud import linted

KINDS = ("network", "subnet", "router", "disk", "instance")
ABSENT = (
    *(f"{kind} prefect-1" for kind in KINDS),
    "firewall rule prefect-1-ssh-iap",
    "firewall rule prefect-1-clients",
)
APIS = ("compute", "iam", "iap", "cloudresourcemanager", "secretmanager")
DEFAULT_ROUTE = {"name": "default-1", "destRange": "0.0.0.0/0", "nextHopGateway": "internet"}
OLD_SUBNET: Json = {"name": "old", "ipCidrRange": "10.9.0.0/24", "region": "regions/us-central1"}
REFUSED = ApiError(403, "forbidden", "Required 'x'", "compute.zones.get")
REGIONAL = {"CPUS": (6, 8), "INSTANCES": (0, 24), "SSD_TOTAL_GB": (90, 100), "IN_USE_ADDRESSES": (1, 8)}  # fmt: skip
WORLDWIDE = {"CPUS_ALL_REGIONS": (0, 12), "NETWORKS": (4, 5), "SUBNETWORKS": (0, 9), "ROUTERS": (0, 9), "FIREWALLS": (3, 5)}  # fmt: skip


def quotas(numbers: dict[str, tuple[int, int]]) -> Json:
    """As Google has them: used, and the limit."""
    named = [{"metric": m, "usage": float(u), "limit": float(n)} for m, (u, n) in numbers.items()]
    return {"quotas": named}


UP: Json = {"status": "UP"}
MEDIUM: Json = {"guestCpus": 2, "memoryMb": 4096, "architecture": "X86_64"}
FINE: Json = {
    "services": [{"config": {"name": f"{api}.googleapis.com"}} for api in APIS],
    "permissions": [*permissions(), *NARROW],
    "account": {"permissions": [ACT_AS]},
    "project": quotas(WORLDWIDE),
    "region": quotas(REGIONAL),
    "zones": {"us-central1-a": UP},
    "types": {"us-central1-a": MEDIUM},
    "image": {"name": "debian-12-x", "status": "READY", "diskSizeGb": "10"},
    "network": {"autoCreateSubnetworks": False, "peerings": [{"name": "servicenetworking-googleapis-com"}]},
    "subnets": [OLD_SUBNET],
    "reserved": [{"name": "sql", "address": "10.8.0.0", "prefixLength": 16}],
    "routers": [{"name": "r", "nats": [{"name": "n", "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS", "subnetworks": [{"name": "x/old"}]}]}],
    "routes": [DEFAULT_ROUTE],
}  # fmt: skip


def table(
    changed: dict[str, Any] | None = None, *, wanted: ServerSpec | None = None, **members: Any
) -> dict[str, Row]:
    """By what it is about, the rows of a project in which all is well but for what is changed. The
    network is there, and all else is to be made."""
    given: dict[str, Any] = {
        "spec": wanted or spec(),
        "member": "serviceAccount:b@p.iam.gserviceaccount.com",
        "absent": ABSENT[1:],
        "prefect": "3.8.8",
        "answers": {**copy.deepcopy(FINE), **(changed or {})},
        "secrets": {"prefect-auth": None, "prefect-db": None},
        "database": Outcome("database"),
        "inside": True,
    }
    return {row.what: row for row in rows(Asked(**{**given, **members}))}


def test_where_all_is_well_every_row_is_granted_and_names_no_repair() -> None:
    found = table().values()
    assert [row for row in found if row.verdict != GRANTED or row.repair] == []
    assert word(found) == "Ready"
    assert summary(list(found)) == f"All {len(found)} prerequisites are granted."


CPUS, PROJECT = "quota CPUS in us-central1", "--project=rehearsal"
MEMBER = "--member=serviceAccount:b@p.iam.gserviceaccount.com"
VM_EMAIL = "prefect-vm@rehearsal.iam.gserviceaccount.com"
MACHINE, OUT = "machine type e2-medium in us-central1-a", "way out without an external address"
RANGE, IMAGE = "range 10.10.0.0/24", "image family debian-12"
RUNS_AS, POSTGRES = "running the machine as its account", "PostgreSQL, from the machine"
MAKE, CHANGE = "permissions to make the server", "permissions for changes and this check"
QUOTA = "gcloud beta quotas preferences create --service=compute.googleapis.com"
ARM = {"guestCpus": 2, "memoryMb": 4096, "architecture": "ARM64"}
SMALL = {"guestCpus": 2, "memoryMb": 1024}
ALL_SUBNETS = [{"name": "r", "nats": [{"name": "n", "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES"}]}]  # fmt: skip
OURS = [{"name": "r", "nats": [{"name": "n", "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS", "subnetworks": [{"name": "x/prefect-1-subnet"}]}]}]  # fmt: skip


def without(*names: str) -> dict[str, Any]:
    return {"permissions": [n for n in FINE["permissions"] if n not in names]}


def subnet(**members: Any) -> dict[str, Any]:
    return {"subnets": [{**OLD_SUBNET, **members}]}


LACKS: list[tuple[dict[str, Any], str, str]] = [
        ({"services": FINE["services"][1:]}, "API compute",
         f"gcloud services enable compute.googleapis.com {PROJECT}"),
        (without("compute.networks.updatePolicy", "compute.instances.create"), MAKE,
         f"gcloud iam roles update prefectBootstrap --add-permissions=compute.instances.create,compute.networks.updatePolicy {PROJECT}"),
        ({"permissions": [*NARROW]}, MAKE,
         f"gcloud projects add-iam-policy-binding rehearsal {MEMBER} --role=projects/rehearsal/roles/prefectBootstrap --condition=None"),
        ({"account": {}, **without(ACT_AS)}, RUNS_AS,
         f"gcloud iam service-accounts add-iam-policy-binding {VM_EMAIL} {MEMBER} --role=roles/iam.serviceAccountUser {PROJECT}"),
        ({"account": None, **without(ACT_AS)}, RUNS_AS,
         f"gcloud iam service-accounts create prefect-vm {PROJECT} && gcloud iam"),
        ({"zones": {"us-central1-a": None}}, "zone us-central1-a", f"gcloud compute zones list {PROJECT}"),
        ({"zones": {"us-central1-a": {"status": "DOWN"}}}, "zone us-central1-a", "gcloud compute zones list"),
        ({"types": {"us-central1-a": None}}, MACHINE, "gcloud compute machine-types list --zones=us-central1-a"),
        ({"types": {"us-central1-a": ARM}}, MACHINE, "gcloud compute machine-types list"),
        ({"types": {"us-central1-a": SMALL}}, MACHINE, "gcloud compute machine-types list"),
        ({"image": None}, IMAGE, "gcloud compute images list --filter=family=debian-12"),
        ({"image": {**FINE["image"], "status": "PENDING"}}, IMAGE, "gcloud compute images list"),
        ({"image": {**FINE["image"], "diskSizeGb": "20"}}, IMAGE, "gcloud compute images list"),
        ({"region": quotas({**REGIONAL, "CPUS": (7, 8)})}, CPUS,
         f"{QUOTA} --quota-id=CPUS-per-project-region --preferred-value=9 --dimensions=region=us-central1 {PROJECT}"),
        ({"region": quotas({**REGIONAL, "SSD_TOTAL_GB": (91, 100)})},
         "quota SSD_TOTAL_GB in us-central1", "--quota-id=SSD-TOTAL-GB-per-project-region --preferred-value=101"),
        ({"project": quotas({**WORLDWIDE, "CPUS_ALL_REGIONS": (11, 12)})},
         "quota CPUS_ALL_REGIONS", f"{QUOTA} --quota-id=CPUS-ALL-REGIONS-per-project --preferred-value=13 {PROJECT}"),
        ({"project": quotas({**WORLDWIDE, "FIREWALLS": (4, 5)})}, "quota FIREWALLS", "--preferred-value=6"),
        (subnet(ipCidrRange="10.10.0.0/20"), RANGE, "gcloud compute networks subnets list --network=prefect-1-net"),
        (subnet(secondaryIpRanges=[{"ipCidrRange": "10.10.0.128/25"}]), RANGE, "cidr under network"),
        ({"reserved": [{"name": "sql", "address": "10.10.0.0", "prefixLength": 16}]}, RANGE, "cidr under network"),
        ({"routes": []}, OUT,
         f"gcloud compute routes create prefect-1-out --network=prefect-1-net --destination-range=0.0.0.0/0 --next-hop-gateway=default-internet-gateway {PROJECT}"),
        ({"routes": [{"name": "peering", "destRange": "10.0.0.0/8"}]}, OUT, "gcloud compute routes create"),
        ({"routers": ALL_SUBNETS}, OUT,
         f"gcloud compute routers nats update n --router=r --region=us-central1 --nat-custom-subnet-ip-ranges=old {PROJECT}"),
        ({"routers": OURS}, OUT, "gcloud compute routers nats update n"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "what", "repair"), LACKS)
def test_what_is_missing_stops_a_run_and_comes_with_the_line_that_repairs_it(
    changed: dict[str, Any], what: str, repair: str
) -> None:
    found = table(changed)
    row = found[what]
    assert (row.verdict, row.stops) == (MISSING, True)
    assert repair in row.repair
    assert [each.what for each in found.values() if each.needed and each.verdict != GRANTED] == [
        what
    ]
    assert word(found.values()) == "Missing"
    assert row.repair in summary([*found.values()])


@pytest.mark.gcloud
def test_gcloud_knows_every_line_that_repairs(tmp_path: Path) -> None:
    """Names, options and values, by Google's own linter; nothing is called."""
    tables = [table(changed) for changed, _, _ in LACKS]
    tables.append(table(without(TUNNEL), inside=False))
    tables.append(table({"region": quotas({}), "project": quotas({})}))
    tables.append(table({"network": {"peerings": [{"name": "vpn"}]}}))
    tables.append(table({"host": [], "routers": []}, wanted=spec(network=SHARED)))
    said = " && ".join(row.repair for found in tables for row in found.values())
    lines = sorted(
        {part for part in re.split(" && |; see | Or: ", said) if part.startswith("gcloud ")}
    )
    assert len(lines) > 15
    assert linted(lines, tmp_path) == []


@pytest.mark.parametrize("network", ["10.128.0.0/20", "10.200.4.0/24"])
def test_an_auto_mode_network_keeps_its_range(network: str) -> None:
    wanted = spec(network={"cidr": network})
    auto = {"network": {"autoCreateSubnetworks": True}}
    assert table(auto, wanted=wanted)[f"range {network}"].verdict == MISSING
    assert table(wanted=wanted)[f"range {network}"].verdict == GRANTED
    assert table(auto)[RANGE].verdict == GRANTED


def test_what_lies_behind_a_strangers_peering_is_not_known() -> None:
    peered = {"network": {"peerings": [{"name": "vpn"}]}}
    found = table(peered)
    assert found[RANGE].verdict == UNCHECKED
    assert "peerings list-routes vpn --network=prefect-1-net" in found[RANGE].repair
    assert table({**peered, **subnet(ipCidrRange="10.10.0.0/20")})[RANGE].stops


@pytest.mark.parametrize("name", needed({row.rpartition(" ")[0] for row in ABSENT}))
def test_no_permission_that_a_first_run_calls_on_may_be_missing(name: str) -> None:
    row = table(without(name), absent=ABSENT)[MAKE]
    assert row.stops
    assert row.detail == f"without {name}"


def test_a_permission_is_needed_only_for_what_is_to_be_made() -> None:
    lacking = without("compute.networks.create", "compute.disks.resize", "compute.zones.get")
    found = table(lacking)
    assert found[MAKE].verdict == GRANTED
    assert found[CHANGE].verdict == MISSING
    assert word(found.values()) == "Ready"
    assert table(lacking, absent=ABSENT)[MAKE].stops


def test_what_is_there_needs_no_quota_no_room_and_no_way_out() -> None:
    full = {
        "region": quotas({**REGIONAL, "CPUS": (8, 8)}),
        "project": quotas({**WORLDWIDE, "NETWORKS": (5, 5)}),
        **subnet(ipCidrRange="10.10.0.0/24"),
        "routers": OURS,
        "routes": [],
    }
    found = table(full, absent=())
    assert word(found.values()) == "Ready"
    assert [what for what in found if what.startswith("quota")] == []


def test_in_a_network_that_is_new_there_is_room_and_a_way_out() -> None:
    fresh = {k: v for k, v in FINE.items() if k not in ("subnets", "reserved", "routers", "routes")}
    found = table(absent=ABSENT, answers={**fresh, "network": None})
    assert word(found.values()) == "Ready"
    assert table(absent=ABSENT)["quota NETWORKS"].verdict == GRANTED
    full = {"project": quotas({**WORLDWIDE, "NETWORKS": (5, 5)})}
    assert table(full, absent=ABSENT)["quota NETWORKS"].stops


@pytest.mark.parametrize(
    ("machine", "metric"),
    [("n1-standard-1", "CPUS"), ("n2-standard-2", "N2_CPUS"), ("c2d-standard-2", "C2D_CPUS")],
)
def test_cpus_count_by_family(machine: str, metric: str) -> None:
    what = f"quota {metric} in us-central1"
    wanted = spec(machine={"type": machine})
    full = {"region": quotas({**REGIONAL, metric: (1, 2)})}
    assert table(full, wanted=wanted)[what].verdict == MISSING
    assert table(wanted=wanted)[what].verdict == (GRANTED if metric == "CPUS" else UNCHECKED)


# What the spec says of zones, and of what is another's

LENT: Json = {"name": "prefect-1-net"}
SHARED: Json = {**LENT, "subnet": "lent", "project": "host-123"}
LENT_NAT = [{"name": "r", "nats": [{"name": "n", "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS", "subnetworks": [{"name": "x/lent"}]}]}]  # fmt: skip
APPLIANCE = [{"name": "vpn", "destRange": "0.0.0.0/0", "nextHopIp": "10.0.0.1"}]
LAPTOP: Json = {"install_from": "laptop"}


@pytest.mark.parametrize(
    ("question", "lacks", "what"),
    [
        ("zones", {"us-central1-b": None}, "zone us-central1-b"),
        ("types", {"us-central1-b": None}, "machine type e2-medium in us-central1-b"),
        ("types", {"us-central1-b": ARM}, "machine type e2-medium in us-central1-b"),
    ],
)
def test_every_zone_of_the_spec_has_to_be_there_and_to_have_the_type(
    question: str, lacks: Json, what: str
) -> None:
    wanted = spec(zones=["us-central1-b"])
    two = {question: {**FINE[question], **lacks}}
    found = table(two, wanted=wanted)
    assert [row.what for row in found.values() if row.stops] == [what]
    assert found["monthly cost"].verdict == GRANTED


def test_what_would_be_refused_later_is_refused_now() -> None:
    error = Final("network lent does not exist.", repair="Create it.")
    found = table(absent=("network lent",), refused={"network lent": error})
    row = found["network lent"]
    assert (row.verdict, row.detail, row.repair) == (
        MISSING,
        "network lent does not exist.",
        "Create it.",
    )
    assert [each.what for each in found.values() if each.stops] == ["network lent"]
    assert not [what for what in found if what.startswith("quota NETWORKS")]


@pytest.mark.parametrize(
    ("network", "prefect", "changed", "verdict"),
    [
        ({"nat": False}, LAPTOP, {"routes": [], "routers": []}, GRANTED),
        (LENT | {"nat": False}, LAPTOP, {"routes": [], "routers": []}, GRANTED),
        (SHARED, LAPTOP, {"routes": REFUSED, "routers": REFUSED}, GRANTED),
        (LENT | {"nat": False, "subnet": "lent"}, {}, {"routers": LENT_NAT}, GRANTED),
        (LENT | {"nat": False, "subnet": "lent"}, {}, {"routers": ALL_SUBNETS}, GRANTED),
        (LENT | {"router": "r", "subnet": "lent"}, {}, {"routers": LENT_NAT}, GRANTED),
        (LENT | {"nat": False}, {}, {"routers": LENT_NAT}, MISSING),
        (LENT | {"nat": False}, {}, {"routers": []}, MISSING),
        (LENT | {"nat": False}, {}, {"routers": [], "routes": APPLIANCE}, GRANTED),
        (SHARED, {}, {"routers": LENT_NAT}, GRANTED),
        (SHARED, {}, {"routers": LENT_NAT, "routes": []}, MISSING),
        (SHARED, {}, {"routers": REFUSED}, UNCHECKED),
        (SHARED, {}, {"network": None}, UNCHECKED),
    ],
)
def test_where_no_nat_is_made_another_way_out_has_to_be_there_unless_none_is_needed(
    network: Json, prefect: Json, changed: Json, verdict: str
) -> None:
    wanted = spec(network=network, prefect=prefect)
    absent = tuple(name for name in ABSENT[1:] if not name.startswith("router"))
    row = table({"host": [], **changed}, wanted=wanted, absent=absent)[OUT]
    assert row.verdict == verdict
    assert verdict != MISSING or "install_from: laptop" in row.repair


def test_in_a_shared_vpc_its_project_has_to_let_us_look_and_use_the_subnet() -> None:
    wanted = spec(network=SHARED)
    row = table({"host": shared("")}, wanted=wanted)["permissions in host-123"]
    assert row.verdict == GRANTED
    for name in shared(""):
        lacking = [other for other in shared("") if other != name]
        row = table({"host": lacking}, wanted=wanted)["permissions in host-123"]
        assert (row.stops, row.detail) == (True, f"without {name}")
        assert "add-iam-policy-binding host-123 --member=serviceAccount:b@p" in row.repair
    through = spec(network=SHARED | {"router": "r"})
    assert table({"host": shared("")}, wanted=through)["permissions in host-123"].stops
    assert "permissions in host-123" not in table()


def test_who_gcloud_is_logged_in_as_is_seen_only_from_within() -> None:
    assert table(tunnel="gcloud", inside=False)["IAP access"].verdict == UNCHECKED
    assert table(tunnel="gcloud")["IAP access"].verdict == GRANTED


def test_the_nat_costs_only_where_one_is_made() -> None:
    [dear, cheap] = [
        table(wanted=spec(network=network, prefect=LAPTOP))["monthly cost"].detail
        for network in ({}, {"nat": False})
    ]
    assert "machine, disk and NAT" in dear
    assert cheap.startswith("about 25 US dollars for machine and disk;")


# What depends on more than an answer of Google's


def test_iap_access_under_a_condition_is_seen_only_from_within() -> None:
    lacking = without(TUNNEL)
    outside = table(lacking, database=None, inside=False)
    assert outside["IAP access"].verdict == UNCHECKED
    assert "--condition=expression=destination.port==22" in outside["IAP access"].repair
    assert word(outside.values()) == "Unknown"
    assert table(lacking)["IAP access"].verdict == GRANTED
    assert table(inside=False)["IAP access"].verdict == GRANTED


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Final("no secret", repair="add it for MEMBER."), MISSING),
        (Unreachable("no answer"), UNCHECKED),
    ],
)
def test_each_secret_is_a_row(error: BootstrapError, verdict: str) -> None:
    found = table(secrets={"prefect-auth": None, "prefect-db": error})
    assert found["secret of the block prefect-auth"].verdict == GRANTED
    row = found["secret of the block prefect-db"]
    assert row.verdict == verdict
    assert row.repair in ("", "add it for serviceAccount:b@p.iam.gserviceaccount.com.")
    assert word(found.values()) != "Ready"


@pytest.mark.parametrize(
    ("seen", "inside", "verdict"),
    [
        (Outcome("database"), True, GRANTED),
        (Outcome("database", (Change("PostgreSQL", "14", "13"),)), True, MISSING),
        (Unreachable("refused", repair="let it in"), True, MISSING),
        (CommandFailed(["python"], 127, ""), True, UNCHECKED),
        (Unreachable("no way to the machine"), False, UNCHECKED),
        (ValueError("half an answer"), True, UNCHECKED),
    ],
)
def test_the_database_is_looked_at_from_the_machine(
    seen: Outcome | Exception, inside: bool, verdict: str
) -> None:
    assert table(database=seen, inside=inside)[POSTGRES].verdict == verdict


def test_without_a_machine_nothing_is_said_of_the_database() -> None:
    assert POSTGRES not in table(database=None, inside=False)


@pytest.mark.parametrize(
    ("here", "verdict"), [("3.8.8", GRANTED), ("3.8.7", GRANTED), ("3.8.10", MISSING)]
)
def test_a_newer_prefect_on_the_laptop_is_said_and_stops_nothing(here: str, verdict: str) -> None:
    found = table(prefect=here)
    assert found["the laptop's Prefect"].verdict == verdict
    assert word(found.values()) == "Ready"


@pytest.mark.parametrize(
    ("machine", "zone", "dollars"),
    [
        ({"type": "e2-medium"}, "us-central1-a", "30"),
        ({"type": "e2-medium", "disk_gb": 100}, "us-central1-a", "39"),
        ({"type": "e2-medium"}, "europe-west4-a", "33"),
        ({"type": "n2-standard-2"}, "us-east1-b", "64"),  # with the 4 GB of FINE
        ({"type": "c3-standard-4"}, "us-central1-a", None),
        ({"type": "e2-custom-2-4096"}, "us-central1-a", None),
        ({"type": "e2-medium"}, "asia-east1-a", None),
    ],
)
def test_the_cost_is_said_with_its_source_and_day(
    machine: Json, zone: str, dollars: str | None
) -> None:
    found = table(wanted=spec(machine=machine, zone=zone))
    row = found["monthly cost"]
    if dollars:
        assert row.detail.startswith(f"about {dollars} US dollars")
        assert "2025-03-06, cloud.google.com" in row.detail
    else:
        assert (row.verdict, row.needed) == (UNCHECKED, False)
        assert "no price" in row.detail


# Answers that are none

DEPENDS = {
    "services": "APIs",
    "permissions": "permissions",
    "account": RUNS_AS,
    "project": "quotas",
    "region": "quotas",
    "zones": "zone",
    "types": "machine type",
    "image": IMAGE,
    "network": "range",
    "subnets": "range",
    "reserved": "range",
    "routers": OUT,
    "routes": OUT,
}
BAD = [REFUSED, Unreachable("away"), RuntimeError("?"), 7]
LISTS = ("services", "subnets", "reserved", "routers", "routes")


@pytest.mark.parametrize(
    ("question", "answer"),
    [*itertools.product(DEPENDS, BAD), *((question, [7]) for question in LISTS)],
)
def test_what_is_not_answered_is_never_green(question: str, answer: Any) -> None:
    found = table({question: answer})
    row = found[DEPENDS[question]]
    assert row.verdict == UNCHECKED
    assert not row.stops
    assert word(found.values()) == "Unknown"
    if isinstance(answer, ApiError):
        assert row.repair == REFUSED.repair


def test_every_check_has_its_row_where_google_answers_nothing() -> None:
    found = table(answers=dict.fromkeys(FINE, REFUSED), database=REFUSED, inside=False)
    granted = [row.what for row in found.values() if row.verdict == GRANTED]
    secrets = [f"secret of the block {name}" for name in ("prefect-auth", "prefect-db")]
    assert granted == [*secrets, "the laptop's Prefect"]
    # There are two secrets, and nothing is shared or refused.
    assert len(found) == len(CHECKS) - 1
