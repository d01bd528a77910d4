"""The cloud stage on paper: from nothing to a server, back to it from every drift, and no further."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from httplib2 import Response

from blocks.compute import ApiError, Compute, DeadlinePassed, Run, described
from flows.errors import Final, NeedsReplacement, NotOurs
from flows.reconcile import Change, Outcome, Resource, reconcile
from flows.resources.compute import bound, cloud_resources
from flows.spec import OWNER_LABEL, ServerSpec
from rehearsal.cloud import Cloud
from rehearsal.collection import Mutated
from rehearsal.errors import Json
from rehearsal.faults import Fault
from rehearsal.gateway import HANDLERS, Call
from rehearsal.instances import target
from rehearsal.operations import mutates
from tests.blocks.test_compute import PaperHttp
from tests.paper import REGIONAL, ZONAL, Caller, paper, vm

KEY = "ssh-ed25519 AAAAC3Nz"
MINIMAL: Json = {
    "name": "prefect-1",
    "project": "rehearsal",
    "zone": "us-central1-a",
    "auth_secret": {"block": "prefect-auth"},
    "database_url_secret": {"block": "prefect-db"},
    "machine": {"labels": {"team": "data"}},
}
OURS = {OWNER_LABEL: "prefect-1"}
NETWORK, SUBNET = "global/networks/prefect-1-net", f"{REGIONAL}/subnetworks/prefect-1-subnet"
ROUTER, SSH = f"{REGIONAL}/routers/prefect-1-router", "global/firewalls/prefect-1-ssh-iap"
DISK, VM = f"{ZONAL}/disks/prefect-1", f"{ZONAL}/instances/prefect-1"
VM_ACCOUNT = "projects/rehearsal/serviceAccounts/prefect-vm@rehearsal.iam.gserviceaccount.com"


def spec(**members: Any) -> ServerSpec:
    return ServerSpec.model_validate(MINIMAL | members)


class Died(Exception):
    """The process was killed."""


@dataclass
class Http(PaperHttp):
    """Requests of many threads, one at a time. With ``lives`` the process dies at the write after
    so many, before it is sent or before it is answered."""

    lives: int | None = None
    answered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def writes(self) -> list[str]:
        return [a for a in self.asked if not a.startswith("GET") and not a.endswith("/wait")]

    def request(
        self, uri: str, method: str, body: str | None = None, **_: Any
    ) -> tuple[Response, bytes]:
        with self.lock:
            write = method != "GET" and "/wait?" not in uri
            if not write or self.lives is None:
                return super().request(uri, method, body)
            self.lives -= 1
            if self.lives < 0 and not self.answered:
                raise Died
            answer = super().request(uri, method, body)
            if self.lives < 0:
                raise Died
            return answer


@dataclass
class Lab:
    caller: Caller
    http: Http
    slept: list[float] = field(default_factory=list)
    asleep: Callable[[], object] = field(default=lambda: None)

    def connect(self, run: Run | None = None) -> Compute:
        one = run or Run(uuid.uuid4())
        return Compute(
            "rehearsal", described("compute", "v1"), one, self.connection, self.sleep, self.clock
        )

    def connection(self) -> Http:
        return self.http

    def clock(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.asleep()

    def resources(self, wanted: ServerSpec) -> list[Resource]:
        return bound(cloud_resources(wanted, KEY), partial(self.connect, Run(uuid.uuid4())))

    def run(self, wanted: ServerSpec | None = None, *, apply: bool = True) -> dict[str, Outcome]:
        """A run in a process of its own: nothing is known but the spec."""
        outcomes = [reconcile(r, apply=apply) for r in self.resources(wanted or spec())]
        return {outcome.resource: outcome for outcome in outcomes if outcome.changes}

    def changed(self, *, apply: bool) -> list[str]:
        """The attributes that a run found different."""
        return [c.attribute for outcome in self.run(apply=apply).values() for c in outcome.changes]

    def resource(self, noun: str, wanted: ServerSpec | None = None) -> Resource:
        return next(r for r in self.resources(wanted or spec()) if r.name.startswith(noun))

    def order(self, method: str, **fault: Any) -> None:
        self.caller.cloud.faults.order(Fault(method, **fault))

    def stored(self, path: str) -> Json:
        """What the cloud remembers, to be changed behind its back."""
        return self.caller.cloud.store.find(f"projects/rehearsal/{path}")

    def get(self, path: str) -> Json:
        return self.caller.ok("GET", path)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with paper() as caller:
        http = Http(caller)
        yield Lab(caller, http)


@pytest.fixture
def server(lab: Lab) -> Lab:
    """A cloud in which a run has made a server."""
    lab.run()
    lab.http.asked.clear()
    return lab


# From nothing to a server


def test_what_is_missing_is_made_and_a_rerun_changes_nothing(lab: Lab) -> None:
    assert [f"{o.resource}: {o.word}" for o in lab.run().values()] == [
        "network prefect-1-net: changed",
        "subnet prefect-1-subnet: changed",
        "router prefect-1-router: changed",
        "firewall rule prefect-1-ssh-iap: changed",
        "firewall rule prefect-1-clients: changed",
        "service account prefect-vm@rehearsal.iam.gserviceaccount.com: changed",
        "instance prefect-1: changed",
    ]
    assert lab.get(VM)["status"] == "RUNNING"
    assert lab.run() == {}


def test_a_rerun_asks_once_for_each_and_writes_nothing(server: Lab) -> None:
    server.run()
    assert len(server.http.asked) == len(set(server.http.asked)) == 9
    assert server.http.writes == []


def test_after_a_change_only_what_changed_is_read_again(server: Lab) -> None:
    server.caller.change("PATCH", SSH, {"priority": 1})
    server.http.asked.clear()
    server.run()
    again = {asked for asked in server.http.asked if server.http.asked.count(asked) > 1}
    assert again == {f"GET /compute/v1/projects/rehearsal/{SSH}"}


def test_the_machine_is_closed_to_the_internet(server: Lab) -> None:
    body = server.get(VM)
    assert "accessConfigs" not in body["networkInterfaces"][0]
    assert server.get(SSH)["sourceRanges"] == ["35.235.240.0/20"]
    clients = server.get("global/firewalls/prefect-1-clients")
    assert (clients["sourceRanges"], clients["allowed"][0]["ports"]) == (["10.10.0.0/24"], ["4200"])


def test_clients_are_sorted_and_named_once(lab: Lab) -> None:
    ranges = ["10.30.0.0/16", "10.20.0.0/16", "10.30.0.0/16"]
    wanted = spec(network={"clients": ranges})
    lab.run(wanted)
    rule = lab.get("global/firewalls/prefect-1-clients")
    assert rule["sourceRanges"] == ["10.20.0.0/16", "10.30.0.0/16"]
    assert lab.run(wanted) == {}


# Back from every drift

STRANGER: Json = {"email": "x@rehearsal.iam.gserviceaccount.com", "scopes": ["y"]}
ACCOUNT, INSECURE = "setServiceAccount", "updateShieldedInstanceConfig"
INSTANCE_SPOILED: list[tuple[str, Json, dict[str, str], list[str]]] = [
    ("setScheduling", {"automaticRestart": False}, {}, ["scheduling.automaticRestart"]),
    ("setScheduling", {"onHostMaintenance": "TERMINATE"}, {}, ["scheduling.onHostMaintenance"]),
    ("setDeletionProtection", {}, {"deletionProtection": "false"}, ["deletionProtection"]),
    (
        "addAccessConfig",
        {"name": "External NAT"},
        {"networkInterface": "nic0"},
        ["accessConfigs"],
    ),
    ("stop", {}, {}, ["status"]),
    ("setMachineType", {"machineType": f"{ZONAL}/machineTypes/e2-small"}, {}, ["machineType"]),
    (ACCOUNT, STRANGER, {}, ["serviceAccount.email", "serviceAccount.scopes"]),
    (ACCOUNT, {}, {}, ["serviceAccount.email"]),
    (INSECURE, {"enableSecureBoot": False}, {}, ["shieldedInstanceConfig.enableSecureBoot"]),
    (
        INSECURE,
        {"enableIntegrityMonitoring": False},
        {},
        ["shieldedInstanceConfig.enableIntegrityMonitoring", "status"],
    ),
]
NEED_A_STOP = ("setMachineType", ACCOUNT, INSECURE)
NAT = {"natIpAllocateOption": "AUTO_ONLY", "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS"}
TCP_80 = [{"IPProtocol": "tcp", "ports": ["80"]}]
SPOILED: list[tuple[str, str, Json, list[str]]] = [
    ("PATCH", NETWORK, {"routingConfig": {"routingMode": "GLOBAL"}}, ["routingMode"]),
    (
        "POST",
        f"{SUBNET}/setPrivateIpGoogleAccess",
        {"privateIpGoogleAccess": False},
        ["privateIpGoogleAccess"],
    ),
    ("PATCH", ROUTER, {"nats": []}, ["nat"]),
    ("PATCH", ROUTER, {"nats": [{**NAT, "name": "prefect-1-nat"}]}, ["nat.subnets", "nat.log"]),
    ("PATCH", SSH, {"priority": 1}, ["priority"]),
    ("PATCH", SSH, {"disabled": True}, ["disabled"]),
    ("PATCH", SSH, {"allowed": TCP_80}, ["allowed"]),
    ("PATCH", SSH, {"allowed": [], "denied": TCP_80}, ["allowed", "denied"]),
    ("PATCH", SSH, {"sourceRanges": ["0.0.0.0/0"]}, ["sourceRanges"]),
    ("PATCH", SSH, {"sourceTags": ["anybody"]}, ["sourceTags"]),
    ("PATCH", SSH, {"targetTags": ["others"]}, ["targetTags"]),
]


def check_and_heal(lab: Lab, attributes: list[str]) -> None:
    lab.http.asked.clear()
    assert lab.changed(apply=False) == attributes
    assert lab.http.writes == []
    assert lab.changed(apply=True) == attributes
    assert lab.changed(apply=True) == []
    assert lab.get(VM)["status"] == "RUNNING"


@pytest.mark.parametrize(("verb", "path", "body", "attributes"), SPOILED)
def test_drift_of_the_network_is_named_and_healed(
    server: Lab, verb: str, path: str, body: Json, attributes: list[str]
) -> None:
    server.caller.change(verb, path, body)
    check_and_heal(server, attributes)


@pytest.mark.parametrize(("method", "body", "query", "attributes"), INSTANCE_SPOILED)
def test_drift_of_the_machine_is_named_and_healed(
    server: Lab, method: str, body: Json, query: dict[str, str], attributes: list[str]
) -> None:
    if method in NEED_A_STOP:
        server.caller.change("POST", f"{VM}/stop")
    verb = "PATCH" if method.startswith("update") else "POST"
    server.caller.change(verb, f"{VM}/{method}", body, **query)
    if method in NEED_A_STOP and "status" not in attributes:
        server.caller.change("POST", f"{VM}/start")
    check_and_heal(server, attributes)


def test_a_resource_that_was_deleted_is_missing_as_a_whole_and_made_again(server: Lab) -> None:
    server.caller.change("DELETE", SSH)
    for apply, word in ((False, "missing"), (True, "changed")):
        found = server.run(apply=apply)
        assert [(o.resource, o.word) for o in found.values()] == [
            ("firewall rule prefect-1-ssh-iap", word)
        ]
    assert server.run() == {}


def test_what_is_left_as_it_is_survives_the_healing_of_what_lies_beside_it(server: Lab) -> None:
    spoiled: list[tuple[str, str, Json, str, set[str]]] = [
        (
            "PATCH",
            SSH,
            {"priority": 1, "sourceRanges": ["10.0.0.0/8"]},
            "firewall",
            {"sourceRanges"},
        ),
        ("PATCH", ROUTER, {"nats": [{**NAT, "name": "prefect-1-nat"}]}, "router", {"nat.log"}),
        ("POST", f"{VM}/stop", {}, "instance", {"status", "labels.team"}),
        (
            "PATCH",
            f"{VM}/{INSECURE}",
            {"enableSecureBoot": False, "enableVtpm": False},
            "instance",
            {"status", "labels.team", "shieldedInstanceConfig.enableVtpm"},
        ),
    ]
    labels = {"labels": OURS, "labelFingerprint": server.get(VM)["labelFingerprint"]}
    server.caller.change("POST", f"{VM}/setLabels", labels)
    for verb, path, body, noun, left in spoiled:
        server.caller.change(verb, path, body)
        reconcile(server.resource(noun), apply=True, leave=lambda c: c.attribute in left)  # noqa: B023
        still = reconcile(server.resource(noun), apply=False).changes
        assert {change.attribute for change in still} == left


@pytest.mark.parametrize("attribute", ["machineType", "serviceAccount", "secureBoot"])
def test_what_needs_a_stopped_machine_costs_a_restart(server: Lab, attribute: str) -> None:
    machine: Json = dict(MINIMAL["machine"])
    if attribute == "machineType":
        machine["type"] = "e2-standard-4"
    elif attribute == "serviceAccount":
        machine["service_account"] = "bootstrap@rehearsal.iam.gserviceaccount.com"
        server.caller.cloud.services.add_first_account("1")
    else:
        server.caller.change("POST", f"{VM}/stop")
        insecure = {"enableSecureBoot": False}
        server.caller.change("PATCH", f"{VM}/updateShieldedInstanceConfig", insecure)
        server.caller.change("POST", f"{VM}/start")
    past = server.caller.cloud.past(server.get(VM))
    past.clear()
    wanted = spec(machine=machine)
    assert server.run(wanted)
    assert past == ["stop", "start"]
    assert server.run(wanted) == {}


NEVER: Json = {"labels": {"team": "data"}, "downtime": "never"}


@pytest.mark.parametrize("change", [{"type": "e2-small"}, {"service_account": STRANGER["email"]}])
def test_a_stop_that_the_spec_forbids_is_refused_with_the_reason(
    server: Lab, change: dict[str, str]
) -> None:
    path = "/v1/projects/rehearsal/serviceAccounts"
    server.caller.ok("POST", path, {"accountId": "x-account"}, host="iam.googleapis.com")
    change = {k: v.replace("x@", "x-account@") for k, v in change.items()}
    wanted = spec(machine=NEVER | change)
    with pytest.raises(NeedsReplacement, match=r"downtime in the spec is never.*downtime: allowed"):
        server.run(wanted)
    assert server.http.writes == []
    server.caller.change("POST", f"{VM}/stop")  # by a person, who has told everybody
    server.run(wanted)
    assert server.run(wanted) == {}
    assert server.get(VM)["status"] == "RUNNING"


def test_what_needs_no_stop_is_changed_while_the_machine_runs(server: Lab) -> None:
    insecure = {"enableIntegrityMonitoring": False}
    server.caller.change("PATCH", f"{VM}/{INSECURE}", insecure)
    server.caller.change("POST", f"{VM}/setScheduling", {"automaticRestart": False})
    past = server.caller.cloud.past(server.get(VM))
    past.clear()
    wanted = spec(machine=NEVER | {"labels": {"team": "ops"}, "disk_gb": 20})
    assert sorted(server.run(wanted)) == ["disk prefect-1", "instance prefect-1"]
    assert past == []
    assert server.run(wanted) == {}


def test_a_type_that_the_zone_has_no_room_for_gives_way_to_the_one_before(server: Lab) -> None:
    server.order("compute.instances.start", reason="ZONE_RESOURCE_POOL_EXHAUSTED")
    with pytest.raises(ApiError, match="does not have enough resources"):
        server.run(spec(machine={"type": "e2-standard-4"}))
    body = server.get(VM)
    assert (body["status"], body["machineType"].endswith("/e2-medium")) == ("RUNNING", True)


def test_an_account_that_was_there_already_is_not_waited_for(lab: Lab) -> None:
    lab.caller.ok(
        "POST",
        "/v1/projects/rehearsal/serviceAccounts",
        {"accountId": "prefect-vm"},
        host="iam.googleapis.com",
    )
    lab.order("compute.instances.insert", reason="SERVICE_ACCOUNT_ACCESS_DENIED", count=99)
    with pytest.raises(ApiError, match=r"Grant roles/iam\.serviceAccountUser"):
        lab.run()
    assert lab.slept == []


def test_a_type_that_google_refuses_does_not_leave_the_server_down(server: Lab) -> None:
    server.order("compute.instances.setMachineType", status=400, reason="invalid")
    with pytest.raises(ApiError, match="400 invalid"):
        server.run(spec(machine={"type": "e2-standard-4"}))
    assert server.get(VM)["status"] == "RUNNING"


@pytest.mark.parametrize(
    "keys",
    [
        {"enable-oslogin": "TRUE"},
        {"ssh-keys": f"bootstrap:{KEY}\neve:ssh-rsa AAAA"},
        {"ssh-keys": None},
        {"sshKeys": "eve:ssh-rsa AAAA"},
        {"startup-script": "id"},
        {"startup-script-url": "gs://eve/sh"},
        {"shutdown-script": "id", "shutdown-script-url": "gs://eve/sh"},
    ],
)
def test_metadata_is_healed_and_other_keys_survive(server: Lab, keys: dict[str, Any]) -> None:
    now = server.get(VM)["metadata"]
    values = {item["key"]: item["value"] for item in now["items"]} | {"startup": "x"} | keys
    items = [{"key": key, "value": value} for key, value in values.items() if value]
    body = {"items": items, "fingerprint": now["fingerprint"]}
    server.caller.change("POST", f"{VM}/setMetadata", body)
    check_and_heal(server, [f"metadata.{key}" for key in keys])
    kept = {item["key"]: item["value"] for item in server.get(VM)["metadata"]["items"]}
    assert (kept["startup"], kept["ssh-keys"]) == ("x", f"bootstrap:{KEY}")
    assert len(kept) == 6


def test_labels_and_tags_are_healed_and_others_survive(server: Lab) -> None:
    now = server.get(VM)
    body: Json = {"labels": {**OURS, "team": "ops", "cost": "1"}}
    body["labelFingerprint"] = now["labelFingerprint"]
    server.caller.change("POST", f"{VM}/setLabels", body)
    tags = {"items": ["web"], "fingerprint": now["tags"]["fingerprint"]}
    server.caller.change("POST", f"{VM}/setTags", tags)
    check_and_heal(server, ["labels.team", "tags.prefect-1"])
    assert server.get(VM)["labels"] == {**OURS, "team": "data", "cost": "1"}
    assert server.get(VM)["tags"]["items"] == ["prefect-1", "web"]


def test_labels_of_the_disk_are_healed_and_others_survive(server: Lab) -> None:
    body: Json = {"labels": {**OURS, "cost": "1"}}
    body["labelFingerprint"] = server.get(DISK)["labelFingerprint"]
    server.caller.change("POST", f"{DISK}/setLabels", body)
    check_and_heal(server, ["labels.team"])
    assert server.get(DISK)["labels"] == {**OURS, "team": "data", "cost": "1"}


def test_an_external_ipv6_address_is_one_too(server: Lab) -> None:
    nic = server.stored(VM)["networkInterfaces"][0]
    nic["ipv6AccessConfigs"] = [{"name": "external-ipv6", "type": "DIRECT_IPV6"}]
    assert server.changed(apply=False) == ["accessConfigs"]


def test_another_nat_on_the_router_survives(server: Lab) -> None:
    server.caller.change("PATCH", ROUTER, {"nats": [{**NAT, "name": "another"}]})
    check_and_heal(server, ["nat"])
    assert [nat["name"] for nat in server.get(ROUTER)["nats"]] == ["another", "prefect-1-nat"]


def test_the_log_of_a_rule_survives(server: Lab) -> None:
    server.caller.change("PATCH", SSH, {"priority": 1, "logConfig": {"enable": True}})
    check_and_heal(server, ["priority"])
    assert server.get(SSH)["logConfig"] == {"enable": True}


def test_a_disabled_account_is_enabled(server: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    account = server.caller.cloud.services.accounts[VM_ACCOUNT]

    async def enable(_cloud: Cloud, _call: Call) -> Json:
        del account["disabled"]
        return {}

    monkeypatch.setitem(HANDLERS, "iam.projects.serviceAccounts.enable", enable)
    account["disabled"] = True
    check_and_heal(server, ["disabled"])


@pytest.mark.parametrize("stops", [False, True])
def test_a_suspended_machine_goes_on(
    server: Lab, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    async def resume(cloud: Cloud, call: Call) -> Mutated:
        resource = target(cloud, call)
        resource["status"] = "RUNNING"
        return resource, None, None

    monkeypatch.setitem(HANDLERS, "compute.instances.resume", HANDLERS["compute.instances.get"])
    mutates("compute.instances.resume")(resume)
    instance = server.stored(VM)
    instance["status"] = "SUSPENDED"
    if stops:
        instance["shieldedInstanceConfig"]["enableVtpm"] = False
    drifted = ["shieldedInstanceConfig.enableVtpm"] * stops + ["status"]
    check_and_heal(server, drifted)
    assert ("stop" in server.caller.cloud.past(instance)) is stops


# What is not ours, and what cannot be changed

FOREIGN: list[tuple[str, str, Json]] = [
    ("network", "global/networks", {"name": "prefect-1-net", "autoCreateSubnetworks": False}),
    (
        "subnet",
        f"{REGIONAL}/subnetworks",
        {
            "name": "prefect-1-subnet",
            "network": "global/networks/net",
            "ipCidrRange": "10.1.0.0/24",
        },
    ),
    (
        "router",
        f"{REGIONAL}/routers",
        {"name": "prefect-1-router", "network": "global/networks/net"},
    ),
    (
        "firewall rule prefect-1-clients",
        "global/firewalls",
        {"name": "prefect-1-clients", "network": "global/networks/net", "allowed": TCP_80},
    ),
    ("disk", f"{ZONAL}/disks", {"name": "prefect-1", "sizeGb": "10"}),
    ("instance", f"{ZONAL}/instances", vm("prefect-1")),
    ("instance", f"{ZONAL}/instances", vm("prefect-1", labels={OWNER_LABEL: "prefect-2"})),
]


@pytest.mark.parametrize("raced", [False, True])
@pytest.mark.parametrize(("noun", "path", "body"), FOREIGN)
def test_a_strangers_resource_of_our_name_is_refused(
    lab: Lab, noun: str, path: str, body: Json, raced: bool
) -> None:
    lab.caller.network()
    resource = lab.resource(noun)
    if raced:  # it comes after we have seen that there is none
        assert resource.read() is None
        lab.run()
        mark = "labels" if noun in ("disk", "instance") else "description"
        del lab.stored(f"{path}/{body['name']}")[mark]
    else:
        lab.caller.change("POST", path, body)
    with pytest.raises(NotOurs, match=rf"{noun}.* does not carry the label prefect-bootstrap"):
        reconcile(resource, apply=True)


def test_what_the_spec_names_is_used_as_it_is(lab: Lab) -> None:
    lab.caller.network()
    wanted = spec(network={"name": "net", "subnet": "net-sub", "cidr": "10.0.0.0/24"})
    with pytest.raises(NeedsReplacement, match=r"net-sub: .*: False → True .* Change it by hand"):
        lab.run(wanted)
    path = f"{REGIONAL}/subnetworks/net-sub"
    lab.caller.change("POST", f"{path}/setPrivateIpGoogleAccess", {"privateIpGoogleAccess": True})
    assert next(iter(lab.run(wanted))) == "router prefect-1-router"
    assert lab.run(wanted) == {}
    other = spec(network={"name": "net", "subnet": "net-sub", "cidr": "10.0.0.0/20"})
    with pytest.raises(NeedsReplacement, match=r"ipCidrRange: 10.0.0.0/24 → 10.0.0.0/20"):
        lab.run(other)


@pytest.mark.parametrize("part", ["name", "subnet", "router"])
def test_what_the_spec_names_and_nobody_made_is_not_made(lab: Lab, part: str) -> None:
    lab.caller.network()
    lent = {"name": "net", part: "nobodys"}
    with pytest.raises(Final, match=r"nobodys does not exist\. Create it, or take its name out"):
        lab.run(spec(network=lent))
    assert not [write for write in lab.http.writes if "nobodys" in write]


def test_an_account_that_the_spec_names_is_only_looked_at(lab: Lab) -> None:
    name = "mine-vm@rehearsal.iam.gserviceaccount.com"
    account = lab.resource("service account", spec(machine={"service_account": name}))
    with pytest.raises(Final, match=r"does not exist\. Create it"):
        reconcile(account, apply=True)
    path = "/v1/projects/rehearsal/serviceAccounts"
    lab.caller.ok("POST", path, {"accountId": "mine-vm"}, host="iam.googleapis.com")
    assert reconcile(account, apply=True).word == "unchanged"
    lab.caller.cloud.services.accounts[f"{path[4:]}/{name}"]["disabled"] = True
    account = lab.resource("service account", spec(machine={"service_account": name}))
    with pytest.raises(NeedsReplacement, match=r"Enable it: gcloud iam"):
        reconcile(account, apply=True)


REPLACED: list[tuple[str, Json, str]] = [
    ("disk", {"zone": "us-central1-b"}, "zone"),
    ("instance", {"zone": "us-central1-b"}, "zone"),
    ("subnet", {"network": {"cidr": "10.10.0.0/25"}}, "ipCidrRange"),
    ("subnet", {"network": {"cidr": "10.11.0.0/24"}}, "ipCidrRange"),
    ("subnet", {"network": {"name": "other"}}, "network"),
    ("router", {"network": {"name": "other"}}, "network"),
    ("firewall", {"network": {"name": "other"}}, "network"),
    ("instance", {"network": {"name": "other"}}, "network"),
    ("instance", {"network": {"name": "prefect-1-net", "subnet": "other"}}, "subnetwork"),
]


@pytest.mark.parametrize(("noun", "members", "attribute"), REPLACED)
def test_what_cannot_be_changed_in_place_is_refused(
    server: Lab, noun: str, members: Json, attribute: str
) -> None:
    resource = server.resource(noun, spec(**members))
    changes = reconcile(resource, apply=False).changes
    assert attribute in [change.attribute for change in changes if replaced(resource, change)]
    with pytest.raises(NeedsReplacement) as error:
        reconcile(resource, apply=True)
    assert error.value.attribute == attribute
    assert server.http.writes == []


def replaced(resource: Resource, change: Change) -> NeedsReplacement | None:
    """As the drift report asks."""
    needed: NeedsReplacement | None = resource.replaced(change)  # type: ignore[attr-defined]
    return needed


@pytest.mark.parametrize("missing", [False, True])
def test_what_can_be_changed_or_made_needs_no_replacement(lab: Lab, missing: bool) -> None:
    if not missing:
        lab.run()
    grown = spec(machine={"disk_gb": 20, "type": "e2-small"}, network={"cidr": "10.10.0.0/20"})
    found = [
        (resource, change)
        for resource in lab.resources(grown)
        for change in reconcile(resource, apply=False).changes
    ]
    attributes = ["ipCidrRange", "sourceRanges", "machineType", "sizeGb"]
    assert missing or [change.attribute for _, change in found] == attributes
    assert {change.missing for _, change in found} == {missing}
    assert {replaced(resource, change) for resource, change in found} == {None}


def test_disk_and_range_grow_and_the_disk_never_shrinks(server: Lab) -> None:
    grown = spec(machine={"disk_gb": 20}, network={"cidr": "10.10.0.0/20"})
    assert sorted(server.run(grown)) == [
        "disk prefect-1",
        "firewall rule prefect-1-clients",
        "subnet prefect-1-subnet",
    ]
    assert server.run(grown) == {}
    with pytest.raises(
        NeedsReplacement, match=r"20 → 10 \(disks never shrink\)\. Write disk_gb: 20"
    ):
        reconcile(server.resource("disk"), apply=True)


# Accidents


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("lives", range(7))
def test_a_run_killed_at_any_write_costs_nothing_but_a_rerun(
    lab: Lab, lives: int, answered: bool
) -> None:
    lab.http.lives, lab.http.answered = lives, answered
    with pytest.raises(Died):
        lab.run()
    lab.http.lives = None
    lab.run()
    assert lab.run() == {}
    assert lab.get(VM)["status"] == "RUNNING"


@pytest.mark.parametrize("answered", [False, True])
def test_a_change_killed_at_any_write_costs_nothing_but_a_rerun(
    server: Lab, answered: bool
) -> None:
    types = ["e2-standard-4", "e2-medium"] * 10
    for lives, kind in enumerate(types):
        labels = {"team": kind}
        wanted = spec(machine={"type": kind, "labels": labels, "disk_gb": 20 + lives})
        server.http.lives, server.http.answered = lives, answered
        try:
            server.run(wanted)
            break
        except Died:
            server.http.lives = None
            server.run(wanted)
            assert server.run(wanted) == {}
    assert lives == 6  # resize, setLabels twice, stop, setMachineType, start


def test_two_runs_at_once_make_one_server(lab: Lab) -> None:
    late = lab.resources(spec())
    assert late[0].read() is None  # it has read everything, and there was nothing
    lab.run()
    words = {resource.name: reconcile(resource, apply=True).word for resource in late}
    for looked_at in ("exposure of prefect-1", "disk prefect-1"):
        assert words.pop(looked_at) == "unchanged"
    assert set(words.values()) == {"changed"}
    assert lab.run() == {}


def test_servers_side_by_side_share_a_network_and_an_account_and_nothing_else(lab: Lab) -> None:
    first = spec(network={"name": "fleet"})
    second = spec(name="prefect-2", network={"name": "fleet", "cidr": "10.10.2.0/24"})
    lab.caller.network("fleet", "10.20.0.0/24")
    late = lab.resources(second)
    account = next(each for each in late if each.name.startswith("service account"))
    assert account.read() is None  # it has read everything, and there was none
    lab.run(first)
    for resource in late:
        reconcile(resource, apply=True)
    assert lab.run(first) == lab.run(second) == {}
    lab.caller.ok("DELETE", "global/firewalls/prefect-2-clients")
    assert lab.run(first, apply=False) == {}
    assert list(lab.run(second)) == ["firewall rule prefect-2-clients"]


def test_a_change_by_somebody_else_meanwhile_is_read_again(server: Lab) -> None:
    wanted = spec(machine={"labels": {"team": "ops"}})
    server.order("compute.instances.setLabels", reason="conditionNotMet", count=2)
    assert list(server.run(wanted)) == ["instance prefect-1", "disk prefect-1"]
    server.order("compute.instances.setLabels", reason="conditionNotMet", count=99)
    with pytest.raises(ApiError, match="412 conditionNotMet"):
        server.run()


def test_a_network_that_is_not_ready_yet_is_waited_for(lab: Lab) -> None:
    for method in ("subnetworks", "routers", "firewalls"):
        lab.order(f"compute.{method}.insert", reason="resourceNotReady", count=2)
    lab.run()
    assert len(lab.slept) >= 6


def test_a_new_account_is_waited_for(lab: Lab) -> None:
    missing: Json = {"status": 404, "reason": "notFound"}
    lab.order("iam.projects.serviceAccounts.get", count=4, **missing)
    lab.order("compute.instances.insert", reason="SERVICE_ACCOUNT_ACCESS_DENIED", count=2)
    lab.order("compute.instances.insert", count=1, **missing)
    lab.run()
    assert lab.slept == [0.5] * 5 + [5.0, 10.0, 20.0]
    assert lab.run() == {}


def test_a_new_account_whose_answer_was_lost_is_waited_for(lab: Lab) -> None:
    """IAM knows no request ids: the second try is told that there is one."""
    account = lab.resource("service account")
    assert account.read() is None
    path = "/v1/projects/rehearsal/serviceAccounts"
    lab.caller.ok("POST", path, {"accountId": "prefect-vm"}, host="iam.googleapis.com")
    lab.order("iam.projects.serviceAccounts.get", status=404, reason="notFound", count=3)
    assert reconcile(account, apply=True).word == "changed"
    assert lab.slept == [0.5] * 5


def test_an_account_that_may_not_be_used_is_an_error_with_the_repair(lab: Lab) -> None:
    lab.order("compute.instances.insert", reason="SERVICE_ACCOUNT_ACCESS_DENIED", count=99)
    with pytest.raises(ApiError, match=r"Grant roles/iam.serviceAccountUser on that account"):
        lab.run()


@pytest.mark.parametrize("status", ["PROVISIONING", "STAGING", "STOPPING", "REPAIRING"])
def test_a_machine_on_its_way_is_waited_for(server: Lab, status: str) -> None:
    instance = server.stored(VM)
    instance["status"] = status
    server.asleep = lambda: instance.update(status="RUNNING")
    assert server.changed(apply=True) == ["status"]
    assert server.run() == {}


def test_a_machine_that_gets_nowhere_is_an_error_in_five_minutes(server: Lab) -> None:
    server.stored(VM)["status"] = "STAGING"
    server.slept.clear()
    with pytest.raises(DeadlinePassed, match=r"STAGING for 300 s\. Look at its serial console"):
        server.run()
    assert sum(server.slept) == 300
