"""Preflight against the API on paper: what it asks, what it says, and that it changes nothing; and
as the first stage of a bootstrap."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import yaml
from prefect import State

from blocks.compute import Compute, Run
from blocks.secrets import Secrets
from blocks.ssh import SshShell
from blocks.target import ServerTarget
from blocks.unreached import Tunnel
from flows import bootstrap, preflight, report
from flows.catalog import Server
from flows.errors import BootstrapError, CommandFailed, Final, Unreachable
from flows.permissions import ACT_AS, LATER, NARROW, USES, permissions
from flows.prerequisites.asked import GRANTED, MISSING, UNCHECKED, Row
from flows.prerequisites.questions import ALWAYS, OF_NETWORK
from flows.reach import Reach
from flows.reconcile import Outcome, reconcile
from flows.resources.compute import bound, cloud_resources
from flows.spec import ServerSpec
from flows.stages import Done, Step, look, steps
from rehearsal import inventory
from rehearsal.config import ACCOUNT, HOST_PROJECT, PROJECT
from rehearsal.errors import Json
from rehearsal.store import link
from tests.conftest import ROOT
from tests.flows.paper_machine import PaperMachine
from tests.flows.paper_world import SECRETS, World, empty, finished
from tests.flows.test_compute_resources import KEY, VM_ACCOUNT, spec
from tests.paper import REGIONAL, ZONAL
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]
RUNS_AS, OUT = "running the machine as its account", "way out without an external address"
RANGE = "range 10.10.0.0/24"


@dataclass
class Account:
    service_account_email: str = ACCOUNT


@dataclass
class Ways(World):
    """A world that also says who asks; ``tables`` are the artifacts that were made."""

    tables: list[dict[str, Any]] = field(default_factory=list)
    tunnel: Tunnel = "iap"

    def account(self) -> Account:
        return Account()

    def look(self, wanted: ServerSpec) -> list[Done]:
        """As a run's look at the cloud."""
        resources = bound(cloud_resources(wanted, KEY), self.cloud.connect)
        hosts = f"instance {wanted.name}"
        return list(look([Step("cloud", r, hosts=r.name == hosts) for r in resources]))

    def rows(self, unread: BootstrapError | None = None, **members: Any) -> dict[str, Row]:
        return self.inspected(spec(**members), unread)

    def inspected(self, wanted: ServerSpec, unread: BootstrapError | None = None) -> dict[str, Row]:
        reach = Reach(wanted, cast(ServerTarget, self), self.secrets, Run(uuid.uuid4()))
        looked = self.look(wanted)
        self.cloud.http.asked.clear()
        return {row.what: row for row in preflight.inspect(reach, looked, unread)}

    def made(self) -> None:
        """All of the cloud stage is made."""
        for resource in bound(cloud_resources(spec(), KEY), self.cloud.connect):
            reconcile(resource, apply=True)

    def grant(self, *without: str) -> None:
        names = {*permissions(), *NARROW, "secretmanager.versions.access"} - {*without}
        self.cloud.caller.cloud.identities.grant(ACCOUNT, names)

    def stored(self) -> str:
        """All that the cloud remembers."""
        return json.dumps(self.cloud.caller.cloud.store._resources, sort_keys=True)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ways]:
    """A project with the machine's account, in which a run may do what the role says."""
    with empty() as world:
        found = Ways(world.lab)
        found.cloud.caller.cloud.services.accounts[VM_ACCOUNT] = {"name": VM_ACCOUNT}
        found.grant()
        monkeypatch.setattr(preflight, "create_table_artifact", _kept(found.tables))
        yield found


def _kept(tables: list[dict[str, Any]]) -> Any:
    return lambda table, **about: tables.append({"table": table, **about})


def ungranted(found: dict[str, Row]) -> dict[str, str]:
    return {row.what: row.verdict for row in found.values() if row.verdict != GRANTED}


def test_in_a_new_project_with_the_role_all_is_granted_and_nothing_changes(ways: Ways) -> None:
    before = ways.stored()
    found = ways.rows()
    assert ungranted(found) == {}
    assert ways.stored() == before
    assert not [a for a in ways.cloud.http.writes if not a.endswith(":testIamPermissions")]
    [made] = ways.tables
    assert made["key"] == "prefect-1-preflight"
    assert [row["prerequisite"] for row in made["table"]] == [*found]
    assert {*made["table"][0]} == {"prerequisite", "answer", "seen", "repair"}


def test_each_question_is_one_call(ways: Ways) -> None:
    ways.rows()
    assert len(ways.cloud.http.asked) == len(ALWAYS)
    ways.cloud.caller.network("prefect-1-net", "10.0.0.0/24")
    store = ways.cloud.caller.cloud.store
    store.find(f"projects/{PROJECT}/global/networks/prefect-1-net")["description"] = (
        "prefect-bootstrap:prefect-1"
    )
    assert ungranted(ways.rows()) == {}
    assert len(ways.cloud.http.asked) == len(ALWAYS) + len(OF_NETWORK)


def test_a_first_run_calls_on_the_wire_what_the_table_says_of_it(ways: Ways) -> None:
    """With the checks before it, up to the machine."""
    ways.cloud.caller.cloud.services.accounts.clear()
    ways.rows()
    asked = [*ways.cloud.http.asked]
    ways.made()
    ways.look(spec(name="prefect-2"))  # it is in no zone
    asked += ways.cloud.http.asked
    shared = {"name": "net", "subnet": "net-sub", "project": HOST_PROJECT}
    for network in ({"name": "prefect-1-net"}, shared):
        ways.rows(name="prefect-2", network=network)
        asked += ways.cloud.http.asked
    asked += ways.cloud.http.asked
    apis = ways.cloud.caller.gateway.apis
    matches = [api.match(*line.split(" ", 1)) for line in asked for api in apis]
    first = {use.method for use in USES if use.when != LATER or use.stage == "preflight"}
    later = {"compute.instances.getGuestAttributes"}  # of a machine that has booted
    assert {match[0].id for match in matches if match} == first - later


def test_the_loss_of_any_permission_is_said(ways: Ways) -> None:
    """And whatever cannot be checked without it, for which only preflight's own are needed."""
    for name in permissions():
        ways.grant(name)
        found = ways.rows()
        [row] = [row for row in found.values() if row.detail == f"without {name}"]
        assert row.verdict == MISSING
        assert f"--add-permissions={name} " in row.repair
        others = {verdict for what, verdict in ungranted(found).items() if what != row.what}
        own = {use.stage for use in USES if name in use.permissions} == {"preflight"}
        assert others <= ({UNCHECKED} if own else set()), name


def test_a_permission_of_its_own_that_preflight_lacks_leaves_its_row_unchecked(ways: Ways) -> None:
    ways.grant("compute.zones.get", "compute.regions.get", "serviceusage.services.list")
    found = ungranted(ways.rows())
    assert {"zone", "quotas", "APIs"} == {w for w, verdict in found.items() if verdict == UNCHECKED}


def spoilt(ways: Ways, what: str) -> None:
    """Take away what a row is about."""
    cloud, caller = ways.cloud.caller.cloud, ways.cloud.caller
    match what.split(" ")[0]:
        case "API":
            cloud.services.enabled.discard(f"{what.split(' ')[1]}.googleapis.com")
        case "running":
            ways.grant(ACT_AS)
        case "zone":
            ways.cloud.stored(ZONAL)["status"] = "DOWN"
        case "machine":
            cloud.store.remove(f"projects/{PROJECT}/{ZONAL}/machineTypes/e2-medium")
        case "image":
            cloud.store.find(inventory.IMAGE)["status"] = "PENDING"
        case "quota":
            cloud.quotas[what.split(" ")[1]] = 0
        case "range":
            caller.network("net", "10.10.0.0/16")
        case _:
            caller.network("net")
            nat = {"natIpAllocateOption": "AUTO_ONLY", "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES"}  # fmt: skip
            router = {"name": "r", "network": "global/networks/net", "nats": [{"name": "n", **nat}]}
            caller.change("POST", f"{REGIONAL}/routers", router)


@pytest.mark.parametrize(
    "what",
    [
        "API iam",
        "API iap",
        RUNS_AS,
        "zone us-central1-a",
        "machine type e2-medium in us-central1-a",
        "image family debian-12",
        "quota CPUS in us-central1",
        "quota SSD_TOTAL_GB in us-central1",
        "quota CPUS_ALL_REGIONS",
        "quota FIREWALLS",
        RANGE,
        OUT,
    ],
)
def test_what_the_project_lacks_is_missing(ways: Ways, what: str) -> None:
    spoilt(ways, what)
    in_net: dict[str, Any] = {"network": {"name": "net"}} if what in (RANGE, OUT) else {}
    found = ways.rows(**in_net)
    stops = [row.what for row in found.values() if row.stops]
    assert stops == [what]


def test_a_range_that_is_reserved_for_a_service_is_taken(ways: Ways) -> None:
    ways.cloud.caller.network("net")
    network = link(f"projects/{PROJECT}/global/networks/net")
    path = f"projects/{PROJECT}/global/addresses/sql"
    body = {"name": "sql", "address": "10.10.0.0", "prefixLength": 16, "network": network}
    store = ways.cloud.caller.cloud.store
    store.put(path, {**body, "purpose": "VPC_PEERING", "kind": "compute#address"})
    found = ways.rows(network={"name": "net"})[RANGE]
    assert (found.verdict, found.detail) == (MISSING, "overlaps with reserved sql (10.10.0.0/16)")
    store.put(path, {**body, "network": f"{network}-2", "kind": "compute#address"})
    assert ways.rows(network={"name": "net"})[RANGE].verdict == GRANTED


def stops(ways: Ways, **members: Any) -> dict[str, str]:
    """What a bootstrap would end with, each with its repair."""
    return {row.what: row.repair for row in ways.rows(**members).values() if row.stops}


def test_what_a_run_would_end_with_half_way_is_said_first(ways: Ways) -> None:
    """A stranger's resource; one that is lent, and absent or not as it has to be."""
    ways.cloud.caller.network("net")
    network = {"network": "global/networks/net"}
    ways.cloud.caller.change("POST", f"{REGIONAL}/routers", {"name": "prefect-1-router", **network})
    found = stops(ways, network={"name": "net"})
    assert {*found} == {"router prefect-1-router"}
    assert found["router prefect-1-router"].startswith("Choose another name in the spec")
    found = stops(ways, network={"name": "nobodys", "router": "way-out"})
    assert {*found} >= {"network nobodys", "router way-out"}
    lent = {"name": "net", "subnet": "net-sub", "cidr": "10.0.0.0/16", "nat": False}
    wanted: dict[str, Any] = {"network": lent, "prefect": {"install_from": "laptop"}}
    found = stops(ways, **wanted)
    assert {*found} == {"subnet net-sub"}
    assert found["subnet net-sub"].startswith("Change it by hand")
    ignored = [{"resource": "subnet *", "attribute": "*", "reason": "as they have it"}]
    assert stops(ways, **wanted, ignore=ignored) == {}


def test_in_a_shared_vpc_its_own_project_is_asked(ways: Ways) -> None:
    host = f"/compute/v1/projects/{HOST_PROJECT}"
    net = {"name": "net", "autoCreateSubnetworks": False}
    ways.cloud.caller.change("POST", f"{host}/global/networks", net)
    subnet = {"name": "net-sub", "network": "global/networks/net", "ipCidrRange": "10.0.0.0/24"}
    where = f"{host}/{REGIONAL}/subnetworks"
    ways.cloud.caller.change("POST", where, {**subnet, "privateIpGoogleAccess": True})
    shared = {"name": "net", "subnet": "net-sub", "cidr": "10.0.0.0/24", "project": HOST_PROJECT}
    found = ways.rows(network=shared)
    assert found[f"permissions in {HOST_PROJECT}"].verdict == GRANTED
    missing = {row.what for row in found.values() if row.stops}
    rules = {f"firewall rule prefect-1-{part}" for part in ("ssh-iap", "clients")}
    assert missing == {OUT, *rules}
    assert all(found[rule].repair.startswith("Make it: gcloud compute") for rule in rules)
    assert not [a for a in ways.cloud.http.asked if f"{PROJECT}/global/routes" in a]
    ways.grant("compute.subnetworks.use")
    row = ways.rows(network=shared)[f"permissions in {HOST_PROJECT}"]
    assert row.detail == "without compute.subnetworks.use"


def test_an_account_that_a_run_is_to_make_needs_the_grant_for_the_project(ways: Ways) -> None:
    ways.cloud.caller.cloud.services.accounts.clear()
    assert ways.rows()[RUNS_AS].verdict == GRANTED
    ways.grant(ACT_AS)
    row = ways.rows()[RUNS_AS]
    assert row.verdict == MISSING
    assert row.repair.startswith("gcloud iam service-accounts create prefect-vm ")
    assert f"--member=serviceAccount:{ACCOUNT}" in row.repair


def test_without_the_api_that_answers_for_permissions_none_is_green(ways: Ways) -> None:
    enabled = ways.cloud.caller.cloud.services.enabled
    enabled.discard("cloudresourcemanager.googleapis.com")
    found = ways.rows()
    row = found["permissions"]
    assert row.verdict == UNCHECKED
    assert row.repair.endswith("gcloud services enable cloudresourcemanager.googleapis.com")
    assert found["API cloudresourcemanager"].verdict == MISSING
    assert not any(row.stops for row in found.values())


def test_where_google_cannot_be_reached_nothing_is_green(ways: Ways) -> None:
    def away(_project: str, run: Run) -> Compute:
        raise Unreachable("no way")

    ways.compute = away  # type: ignore[method-assign]
    reach = Reach(spec(), cast(ServerTarget, ways), SECRETS, Run(uuid.uuid4()))
    found = preflight.inspect(reach, [])
    granted = [row.what for row in found if row.verdict == GRANTED]
    assert not [w for w in granted if not w.startswith(("secret of", "the laptop's", "range", OUT))]


# The first stage of a bootstrap


@pytest.fixture
def told(ways: Ways, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> dict[str, Any]:
    """What a bootstrap reads: secrets, and an error that kept them from being read."""
    read: dict[str, Any] = {"secrets": (SECRETS, None)}
    for module in (bootstrap, preflight):
        monkeypatch.setattr(module, "reached", lambda block: ways)
        monkeypatch.setattr(module, "secrets_or_error", lambda spec: read["secrets"])
    monkeypatch.setattr(preflight, "unreadable", lambda spec: {"prefect-db": read["secrets"][1]})
    monkeypatch.setattr(report, "create_table_artifact", lambda *_, **__: None)
    return read


def bootstrapped(**arguments: Any) -> State[Any]:
    state: State[Any] = bootstrap.bootstrap_server(spec(), **arguments, return_state=True)
    return state


def test_a_bootstrap_ends_before_anything_is_made_with_all_that_is_missing(
    ways: Ways, told: dict[str, Any]
) -> None:
    told["secrets"] = Secrets("", ""), Final("No secret.", repair="Make it.")
    ways.grant("compute.disks.create", ACT_AS)
    before = ways.stored()
    state = bootstrapped()
    assert state.is_failed()
    said = str(state.message)
    for part in ("Nothing was changed", "without compute.disks.create", "No secret. Make it."):
        assert part in said
    assert "gcloud iam service-accounts add-iam-policy-binding" in said
    assert ways.stored() == before
    assert [table["key"] for table in ways.tables] == ["prefect-1-preflight"]


def test_what_could_not_be_checked_stops_no_bootstrap(
    ways: Ways, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways.grant("compute.zones.get", "serviceusage.services.list")
    monkeypatch.setattr(bootstrap, "_settle", lambda *_: [])
    assert bootstrapped().is_completed()
    assert len(ways.tables) == 1


@pytest.mark.parametrize("arguments", [{}, {"dry_run": True}])
def test_secrets_that_cannot_be_read_now_end_the_run(
    ways: Ways, told: dict[str, Any], arguments: dict[str, bool]
) -> None:
    told["secrets"] = Secrets("", ""), Unreachable("Secret Manager is away.")
    before = ways.stored()
    state = bootstrapped(**arguments)
    assert state.is_failed()
    assert "Secret Manager is away" in str(state.message)
    assert ways.stored() == before


def test_a_rerun_and_a_dry_run_ask_nothing_of_it(
    ways: Ways, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrapped(dry_run=True)
    assert ways.tables == []
    ways.made()
    monkeypatch.setattr(bootstrap, "look", lambda todo, away, connect: ways.look(spec()))
    monkeypatch.setattr(bootstrap, "_settle", lambda *_: [])
    ways.cloud.http.asked.clear()
    bootstrapped()
    assert ways.tables == []
    assert ways.cloud.http.asked
    assert [a for a in ways.cloud.http.asked if "testIamPermissions" in a] == []


def test_a_machine_that_cannot_be_looked_at_is_as_good_as_none(ways: Ways) -> None:
    assert preflight.due(ways.look(spec()))
    ways.made()
    assert not preflight.due(ways.look(spec()))
    ways.grant("compute.instances.get")
    assert preflight.due(ways.look(spec()))


# The deployment


def seen_from(machine: PaperMachine, away: Unreachable | None = None) -> Any:
    """How a machine sees the database, and whether it was reached."""
    shell = None if away else cast(SshShell, machine)
    target = cast(ServerTarget, World(machine=machine))
    reach = Reach(
        spec(), target, SECRETS, Run(uuid.uuid4()), waits=False, _ssh=shell, _failure=away
    )
    return preflight._from_machine(reach, steps(Server(spec(), SECRETS), reach))


def test_the_database_is_looked_at_from_a_machine_that_is_there() -> None:
    assert seen_from(finished()) == (Outcome("database"), True)
    bare, reached = seen_from(PaperMachine())
    assert isinstance(bare, CommandFailed)
    assert reached
    away = Unreachable("no way")
    assert seen_from(finished(), away) == (away, False)


@pytest.mark.parametrize("lacks", [(), ("compute.disks.create",), ("compute.zones.get",)])
def test_the_deployment_ends_with_the_verdict(
    ways: Ways, told: dict[str, Any], lacks: tuple[str, ...]
) -> None:
    ways.grant(*lacks)
    state: State[Any] = preflight.preflight(spec(), return_state=True)
    expected = {(): "Ready", ("compute.disks.create",): "Missing"}.get(lacks, "Unknown")
    assert (state.name, state.is_completed()) == (expected, expected == "Ready")
    assert all(name in str(state.message) for name in lacks)


def test_prefect_yaml_deploys_it_without_a_schedule() -> None:
    found: Json = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    by_entrypoint = {each["entrypoint"]: each for each in found["deployments"]}
    deployed = by_entrypoint["flows.preflight.preflight"]
    assert deployed["schedules"] == []
    assert deployed["parameters"] == by_entrypoint["flows.drift.check_drift"]["parameters"]
