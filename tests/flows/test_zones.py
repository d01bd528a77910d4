"""A zone without room: the machine is made in the next one of the spec, and is found there ever after."""

from __future__ import annotations

import uuid
from typing import Any, cast

import pytest

from blocks.compute import ApiError, Remedy, Run
from blocks.target import ServerTarget
from flows.errors import Final, NeedsReplacement, NotOurs
from flows.reach import Reach
from flows.reconcile import reconcile
from flows.resources.disk import IMAGE
from rehearsal.config import ZONE
from rehearsal.errors import Json
from rehearsal.instances import INSTANCES
from tests.flows.paper_world import SECRETS, World
from tests.flows.test_compute_resources import OURS, Lab, lab, spec
from tests.paper import vm

__all__ = ["lab"]

A, B, C = ZONE, "us-central1-b", "us-central1-c"
FULL = "ZONE_RESOURCE_POOL_EXHAUSTED"
INSERT = "compute.instances.insert"
SPREAD = spec(zones=[B, C])


def where(lab: Lab) -> dict[str, list[str]]:
    """The zones in which machines and disks are."""
    kinds = ("instances", "disks")
    store = lab.caller.cloud.store
    return {kind: [each["zone"].rpartition("/")[2] for each in store.every(kind)] for kind in kinds}


@pytest.fixture
def moved(lab: Lab) -> Lab:
    """A server that a run has made in the second zone, for the first had no room."""
    lab.order(INSERT, reason=FULL)
    lab.run(SPREAD)
    lab.http.asked.clear()
    return lab


@pytest.mark.parametrize("reason", [FULL, f"{FULL}_WITH_DETAILS"])
@pytest.mark.parametrize(("full", "zone"), [(1, B), (2, C)])
def test_the_next_zone_that_has_room_gets_machine_and_disk(
    lab: Lab, reason: str, full: int, zone: str
) -> None:
    lab.order(INSERT, reason=reason, operation=True, status=503, count=full)
    lab.run(SPREAD)
    assert where(lab) == {"instances": [zone], "disks": [zone]}
    lab.http.asked.clear()
    assert lab.run(SPREAD) == {}
    assert lab.http.writes == []


def test_where_no_zone_has_room_nothing_is_left_and_a_rerun_begins_with_the_first(lab: Lab) -> None:
    lab.order(INSERT, reason=FULL, count=3)
    with pytest.raises(ApiError, match="does not have enough resources") as error:
        lab.run(SPREAD)
    assert (error.value.remedy, where(lab)) == (Remedy.OTHER_ZONE, {"instances": [], "disks": []})
    lab.run(SPREAD)
    assert where(lab) == {"instances": [A], "disks": [A]}


def test_without_further_zones_the_error_says_what_to_write(lab: Lab) -> None:
    lab.order(INSERT, reason=FULL)
    with pytest.raises(ApiError, match="list further zones of the region as zones in the spec"):
        lab.run()


def test_another_failure_is_no_reason_to_move(lab: Lab) -> None:
    lab.order(INSERT, reason="QUOTA_EXCEEDED")
    with pytest.raises(ApiError, match="Ask for more quota"):
        lab.run(SPREAD)
    assert where(lab) == {"instances": [], "disks": []}


def test_the_machine_is_reached_where_it_is(moved: Lab) -> None:
    world = World(moved)
    reach = Reach(SPREAD, cast(ServerTarget, world), SECRETS, Run(uuid.uuid4()))
    assert (reach.zone, reach.status()) == (B, "RUNNING")
    assert reach._host_keys() == []
    assert any(f"/{B}/instances/prefect-1/getGuestAttributes" in a for a in moved.http.asked)
    moved.http.asked.clear()
    alone = Reach(spec(), cast(ServerTarget, world), SECRETS, Run(uuid.uuid4()))
    assert (alone.zone, moved.http.asked) == (A, [])


CHANGED: list[Json] = [
    {"type": "e2-small"},
    {"disk_gb": 20},
    {"labels": {"team": "ops"}},
    {"type": "e2-small", "disk_gb": 30, "labels": {}},
]


@pytest.mark.parametrize("members", CHANGED)
def test_it_is_changed_where_it_is(moved: Lab, members: Json) -> None:
    wanted = spec(zones=[B, C], machine=members)
    moved.run(wanted)
    assert moved.run(wanted) == {}
    assert all("zones" not in write or f"/zones/{B}/" in write for write in moved.http.writes)
    assert where(moved) == {"instances": [B], "disks": [B]}


def test_its_tags_are_known_to_the_look_at_strangers_rules(moved: Lab) -> None:
    instance = next(iter(moved.caller.cloud.store.every("instances")))
    instance["tags"]["items"].append("web")
    INSTANCES.stamp(instance)
    rule = {"name": "eve", "network": "global/networks/prefect-1-net", "targetTags": ["web"]}
    allowed = [{"IPProtocol": "tcp", "ports": ["22"]}]
    moved.caller.change("POST", "global/firewalls", {**rule, "allowed": allowed})
    assert list(moved.run(SPREAD, apply=False)) == ["exposure of prefect-1"]


def test_a_zone_that_is_no_longer_in_the_spec_needs_a_replacement(moved: Lab) -> None:
    with pytest.raises(NeedsReplacement, match="zone cannot be changed in place"):
        moved.run()
    assert moved.http.writes == []


def given(lab: Lab, kind: str, zone: str, **members: Any) -> None:
    """Something with our name."""
    lab.caller.network()
    body: Json = vm("prefect-1") if kind == "instances" else {"name": "prefect-1"}
    if kind == "instances":
        body["machineType"] = f"zones/{zone}/machineTypes/e2-medium"
    lab.caller.change("POST", f"zones/{zone}/{kind}", {**body, **members})


@pytest.mark.parametrize("zone", [A, B])
@pytest.mark.parametrize("kind", ["instances", "disks"])
def test_a_stranger_in_the_zone_whose_turn_it_is_is_refused(lab: Lab, kind: str, zone: str) -> None:
    given(lab, kind, zone)
    if zone == B:
        lab.order(INSERT, reason=FULL)
    line = f"gcloud compute {kind} add-labels prefect-1 --labels=prefect-bootstrap=prefect-1"
    with pytest.raises(NotOurs, match=f"{line} --zone={zone} --project=rehearsal"):
        lab.run(SPREAD)
    assert where(lab)[kind] == [zone]


def test_a_stranger_in_a_zone_that_is_not_needed_is_left_alone(moved: Lab) -> None:
    given(moved, "instances", A)
    assert moved.run(SPREAD) == {}


@pytest.mark.parametrize("zone", [A, B])
def test_a_disk_that_was_kept_is_used_where_it_is(lab: Lab, zone: str) -> None:
    given(lab, "disks", zone, labels=OURS, type=f"zones/{zone}/diskTypes/pd-balanced")
    [disk] = lab.caller.cloud.store.every("disks")
    lab.run(SPREAD)
    assert where(lab) == {"instances": [zone], "disks": [zone]}
    assert [each["id"] for each in lab.caller.cloud.store.every("disks")] == [disk["id"]]
    assert lab.run(SPREAD) == {}


def test_a_disk_that_was_kept_keeps_the_machine_in_its_zone(lab: Lab) -> None:
    given(lab, "disks", A, labels=OURS, type=f"zones/{A}/diskTypes/pd-balanced")
    lab.order(INSERT, reason=FULL)
    with pytest.raises(Final, match=f"gcloud compute disks delete prefect-1 --zone={A}"):
        lab.run(SPREAD)
    assert where(lab) == {"instances": [], "disks": [A]}


@pytest.mark.parametrize("zone", [C, "us-central1-f"])
def test_a_disk_that_cannot_become_the_machines_is_refused_before_there_is_one(
    lab: Lab, zone: str
) -> None:
    kind = "pd-ssd" if zone == C else "pd-balanced"
    given(lab, "disks", zone, labels=OURS, type=f"zones/{zone}/diskTypes/{kind}")
    with pytest.raises(NeedsReplacement, match=r"disk prefect-1: (zone|type) cannot"):
        reconcile(lab.resource("instance", SPREAD), apply=True)
    assert where(lab)["instances"] == []


def test_a_new_disk_is_the_image_that_the_spec_says(lab: Lab) -> None:
    lab.run(spec(machine={"disk_gb": 25, "labels": {"team": "data"}}))
    [disk] = lab.caller.cloud.store.every("disks")
    assert (disk["sizeGb"], disk["type"].rpartition("/")[2]) == ("25", "pd-balanced")
    assert disk["labels"] == {**OURS, "team": "data"}
    assert "debian-12" in disk["sourceImage"]
    assert IMAGE.endswith("debian-12")
