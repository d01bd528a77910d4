"""What the rehearsal cloud answers to one who asks before he makes anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rehearsal.config import ACCOUNT, PROJECT
from rehearsal.errors import Json
from rehearsal.iam import ACT_AS, TUNNEL
from rehearsal.store import link
from tests.paper import FULL, REGIONAL, ZONAL, Caller, paper, vm

IAM = "iam.googleapis.com"
ACCOUNT_PATH = f"/v1/{FULL}/serviceAccounts"
FAMILY = "/compute/v1/projects/debian-cloud/global/images/family/debian-12"


@pytest.fixture
def google() -> Iterator[Caller]:
    with paper() as caller:
        yield caller


def usage(google: Caller, path: str) -> dict[str, float]:
    return {quota["metric"]: quota["usage"] for quota in google.ok("GET", path)["quotas"]}


def test_googles_images_are_everybodys(google: Caller) -> None:
    google.cloud.identities.grant(ACCOUNT, [])
    assert google.ok("GET", FAMILY)["family"] == "debian-12"
    own = "global/images/family/debian-12"
    assert google.refused("GET", own)[:2] == (403, "forbidden")


def test_permissions_on_an_account_that_is_absent_are_not_answered(google: Caller) -> None:
    path, body = f"{ACCOUNT_PATH}/vm@{PROJECT}.iam.gserviceaccount.com", {"permissions": [ACT_AS]}
    assert google.refused("POST", f"{path}:testIamPermissions", body, host=IAM)[0] == 404
    google.ok("POST", ACCOUNT_PATH, {"accountId": "vm-account"}, host=IAM)
    path = path.replace("vm@", "vm-account@")
    assert google.ok("POST", f"{path}:testIamPermissions", body, host=IAM) == body
    google.cloud.identities.grant(ACCOUNT, [TUNNEL])
    assert google.ok("POST", f"{path}:testIamPermissions", body, host=IAM) == {}


@pytest.mark.parametrize(
    ("machine", "regional"), [("e2-medium", "CPUS"), ("n2-standard-2", "N2_CPUS")]
)
def test_cpus_count_for_their_family_and_for_all_regions(
    google: Caller, machine: str, regional: str
) -> None:
    google.network()
    google.change("POST", f"{ZONAL}/instances", vm(machineType=f"{ZONAL}/machineTypes/{machine}"))
    here = usage(google, REGIONAL)
    assert {m: n for m, n in here.items() if m.endswith("CPUS") and n} == {regional: 2.0}
    assert usage(google, "")["CPUS_ALL_REGIONS"] == 2.0


def test_balanced_disks_count_as_ssd(google: Caller) -> None:
    for name, kind in {"a": "pd-balanced", "b": "pd-ssd", "c": "pd-standard"}.items():
        disk = {"name": name, "sizeGb": "20", "type": f"{ZONAL}/diskTypes/{kind}"}
        google.change("POST", f"{ZONAL}/disks", disk)
    here = usage(google, REGIONAL)
    assert (here["SSD_TOTAL_GB"], here["DISKS_TOTAL_GB"]) == (40.0, 20.0)


def test_a_quota_that_is_set_is_shown_and_kept(google: Caller) -> None:
    google.cloud.quotas["NETWORKS"] = 0
    limits = {quota["metric"]: quota["limit"] for quota in google.ok("GET", "")["quotas"]}
    assert limits["NETWORKS"] == 0
    network: Json = {"name": "n", "autoCreateSubnetworks": False}
    assert google.refused("POST", "global/networks", network)[:2] == (403, "quotaExceeded")


def test_every_network_has_a_route_to_the_internet(google: Caller) -> None:
    assert "items" not in google.ok("GET", "global/routes")
    for name in ("net", "other"):
        google.network(name)
    network = 'network eq ".*/networks/net"'
    [route] = google.ok("GET", "global/routes", filter=network)["items"]
    assert route["network"] == link(f"{FULL}/global/networks/net")
    assert route["destRange"] == "0.0.0.0/0"
    assert route["nextHopGateway"].endswith("/default-internet-gateway")


def test_ranges_that_are_reserved_are_listed(google: Caller) -> None:
    assert "items" not in google.ok("GET", "global/addresses")
    google.cloud.store.put(f"{FULL}/global/addresses/sql", {"name": "sql", "prefixLength": 16})
    assert google.ok("GET", "global/addresses")["items"][0]["prefixLength"] == 16
