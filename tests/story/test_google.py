"""Google as it really behaves, on a real server: what preflight says before anything is made, calls
that fail, machines that cannot be reached, and a server that downloads nothing.

The account may do what the README grants it, and nothing else, whenever a flow runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rehearsal import follow, laptop
from rehearsal.story import BESIDE_THE_ROLE
from tests.conftest import ROOT
from tests.fleet import prepare
from tests.story.conftest import DRIFT, NAME, Story
from tests.story.driver import Ended, Json, driver
from tests.story.faults import CLOUD, UP, Step, google, root
from tests.story.test_drift import LABELS, READS, SECONDS, Laptop

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(420)]

ROLE: list[str] = yaml.safe_load((ROOT / "role.yaml").read_text())["includedPermissions"]
ALONE = "prefect-20"
"""A server in a network of its own, without a way out of it."""


@dataclass
class Account:
    """What the laptop's account may do while a flow runs; gcloud, which spoils, may do everything."""

    laptop: Laptop
    file: Path

    def run(self, flow: str, *without: str, **parameters: Any) -> Ended:
        """A run of the flow, as it ends when the account lacks these permissions."""
        names = [name for name in (*ROLE, *BESIDE_THE_ROLE) if name not in without]
        self.file.write_text(yaml.safe_dump({"includedPermissions": names}))
        self.laptop.story.cloud.ctl("role", str(self.file))
        order = {"server": self.laptop.spec, **parameters}
        try:
            return self.laptop.driver.run(flow, order, SECONDS)
        finally:
            self.laptop.story.cloud.ctl("role", "--everything")

    @property
    def story(self) -> Story:
        return self.laptop.story

    def rows(self, *without: str, **spec: Any) -> dict[str, Json]:
        """What preflight says is not granted, by its name."""
        ended = self.run("preflight", *without, server={**self.laptop.spec, **spec})
        return {r["prerequisite"]: r for r in ended.rows if r["answer"] != "granted"}

    @contextmanager
    def fault(self, *words: str) -> Iterator[None]:
        self.story.cloud.ctl("fault", *words)
        try:
            yield
        finally:
            self.story.cloud.ctl("fault", "--clear")

    @contextmanager
    def spoilt(self, by: Step, *lift: Step) -> Iterator[None]:
        self.laptop.do([by])
        try:
            yield
        finally:
            self.laptop.do(lift)


@pytest.fixture(scope="module")
def account(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with follow.api(story.urls["laptop"]) as client:
        spec = follow.found(client, DRIFT)["parameters"]["server"]
    work = tmp_path_factory.mktemp("google")
    with driver(story.urls["laptop"], work / "log") as process:
        one = Laptop(story, process, {**spec, "machine": {"labels": LABELS}})
        ended = one.bootstrap()
        assert ended.state in ("Changed", "Unchanged"), ended.message
        yield Account(one, work / "role.yaml")


# Before anything is made


def test_preflight_grants_all_to_the_server_that_is_there(account: Account) -> None:
    ended = account.run("preflight")
    assert (ended.state, account.rows()) == ("Ready", {})
    said = {row["prerequisite"]: row["seen"] for row in ended.rows}
    assert said["IAP access"] == "the machine was reached"
    assert "PostgreSQL, from the machine" in said


NEW: Json = {"name": "prefect-30"}
"""What differs in the spec of a server that is not made yet."""


def test_each_line_of_preflight_repairs_what_it_is_about(account: Account) -> None:
    disable = google("services disable iap.googleapis.com --force")
    with account.spoilt(disable, google("services enable iap.googleapis.com")):
        row = account.rows(**NEW)["API iap"]
        assert row["answer"] == "missing"
        account.story.shell(row["repair"])
        assert account.rows(**NEW) == {}


LACKING: dict[str, tuple[tuple[str, ...], Json]] = {
    "permissions to make the server": (("compute.disks.create",), {}),
    "running the machine as its account": (("iam.serviceAccounts.actAs",), {}),
    "zone us-central1-z": ((), {"zone": "us-central1-z"}),
    "machine type e2-huge in us-central1-a": ((), {"machine": {"type": "e2-huge"}}),
    "quota SSD_TOTAL_GB in us-central1": ((), {"machine": {"disk_gb": 2000}}),
    "range 10.10.0.0/25": ((), {"network": {"name": "prefect-1-net", "cidr": "10.10.0.0/25"}}),
    "network nobody": ((), {"network": {"name": "nobody"}}),
}
"""Row of preflight's: the permissions that are taken away, and what is in the spec."""


def test_a_bootstrap_says_all_that_is_missing_and_makes_nothing(account: Account) -> None:
    for what, (without, spec) in LACKING.items():
        server = {**account.laptop.spec, **NEW, **spec}
        with account.laptop.requests() as requests:
            ended = account.run("bootstrap-server", *without, server=server)
        assert ended.state == "Failed", what
        assert "Nothing was changed, for the project lacks:" in ended.message
        assert what in ended.message
        wrote = {each["method"].rpartition(".")[2] for each in requests}
        assert wrote <= {*READS, "aggregatedList", "getFromFamily", "testIamPermissions"}, what


# Calls that fail


@dataclass(frozen=True)
class Case:
    """``by``: the row of the drift matrix that makes a bootstrap call the method. ``told``: what the
    run says that cannot go on; empty: it converges."""

    by: str
    method: str
    how: tuple[str, ...]
    told: str = ""

    def __str__(self) -> str:
        return f"{self.method} {' '.join(self.how)}"


def case(by: str, method: str, how: str, told: str = "") -> Case:
    return Case(by, method, tuple(how.split()), told)


ROW = {fault.name: fault for fault in CLOUD}
RULE, TAG, PLACE = "a deleted firewall rule", "a removed tag", "a stopped machine"
AGAIN, NOBODY = "Run again in some minutes", "Run again when nobody else changes it"
# fmt: off
SAMPLE = (
    case(RULE, "compute.firewalls.insert", "--reason=backendError"),
    case(RULE, "compute.firewalls.insert", "--reason=tooManyRequests --count=2"),
    case(RULE, "compute.firewalls.insert", "--operation=QUOTA_EXCEEDED --count=9", "Ask for more quota"),
    case("a range opened to the internet", "compute.firewalls.patch", "--reason=rateLimitExceeded"),
    case("a deleted router", "compute.routers.insert", "--reason=resourceNotReady"),
    case("a deleted NAT", "compute.routers.patch", "--operation=INTERNAL_ERROR"),
    case("no private Google access", "compute.subnetworks.setPrivateIpGoogleAccess", "--reason=internalError"),
    case("another routing mode", "compute.networks.patch", "--status=403 --reason=forbidden --count=99", "role.yaml has all that are needed"),
    case("a deleted account", "iam.projects.serviceAccounts.create", "--reason=backendError"),
    case("a changed label", "compute.instances.setLabels", "--reason=conditionNotMet"),
    case("a changed label", "compute.instances.setLabels", "--reason=conditionNotMet --count=99", NOBODY),
    case("a removed label of the disk", "compute.disks.setLabels", "--reason=tooManyRequests"),
    case("a startup script", "compute.instances.setMetadata", "--reason=conditionNotMet"),
    case(TAG, "compute.instances.setTags", "--operation=INTERNAL_ERROR"),
    case(TAG, "compute.instances.get", "--reason=backendError --count=3"),
    case("no deletion protection", "compute.instances.setDeletionProtection", "--reason=accessNotConfigured --count=99", "gcloud services enable compute.googleapis.com"),
    case("an external address", "compute.instances.deleteAccessConfig", "--delay=5"),
    case("no restart after a failure", "compute.instances.setScheduling", "--operation=CONCURRENT_OPERATIONS_QUOTA_EXCEEDED"),
    case(PLACE, "compute.instances.start", "--operation=ZONE_RESOURCE_POOL_EXHAUSTED --count=9", "Run again later"),
    case(PLACE, "compute.instances.start", "--operation=RESOURCE_NOT_READY"),
)
# fmt: on


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_call_that_fails_is_made_up_for_by_the_run_or_by_the_next(
    account: Account, inventory: set[str], case: Case
) -> None:
    account.laptop.do(ROW[case.by].spoil)
    with account.fault(case.method, *case.how):
        ended = account.run("bootstrap-server")
    assert ended.state == ("Failed" if case.told else "Changed"), ended.message
    assert case.told in ended.message
    if case.told:
        assert account.run("bootstrap-server").state == "Changed"
    assert listed(account.story) == inventory
    assert account.laptop.check().state == "Unchanged"


@pytest.fixture(scope="module")
def inventory(account: Account) -> set[str]:
    return listed(account.story)


def listed(story: Story) -> set[str]:
    """All that there is in the cloud."""
    script = (
        "for kind in networks networks.subnets routers firewall-rules instances disks; do"
        " gcloud compute $(echo $kind | tr . ' ') list --format='value(selfLink)' & done; wait"
    )
    return {*story.shell(script).split()}


# Machines that cannot be reached


AWAY = {
    "instance prefect-1 is not running": (
        google(f"compute instances stop {NAME}"),
        google(f"compute instances start {NAME}"),
        UP,
    ),
    "IAP finds nobody on its SSH port": (
        root("systemctl stop ssh"),
        root("systemctl start ssh"),
    ),
    "does not let bootstrap in with the SSH key": (
        root("systemctl stop google-guest-agent; mv ~bootstrap/.ssh/authorized_keys /root/"),
        root("mv /root/authorized_keys ~bootstrap/.ssh/; systemctl start google-guest-agent"),
    ),
    "shows a host key that it has not published": (
        root(
            "cp -a /etc/ssh /root/ssh; rm /etc/ssh/ssh_host_*; ssh-keygen -A >/dev/null;"
            " systemctl restart ssh"
        ),
        root("cp -a /root/ssh/. /etc/ssh/; rm -r /root/ssh; systemctl restart ssh"),
    ),
}


@pytest.mark.parametrize("why", AWAY)
def test_why_a_machine_cannot_be_reached_is_told(account: Account, why: str) -> None:
    with account.spoilt(*AWAY[why]):
        ended = account.run("check-drift")
        assert ended.state == "Unknown"
        assert any(why in reason for reason in ended.unchecked.values()), ended.unchecked
    assert account.run("check-drift").state == "Unchanged"


def test_an_account_that_may_not_use_the_tunnel_is_told(account: Account) -> None:
    ended = account.run("check-drift", "iap.tunnelInstances.accessViaIAP")
    assert ended.state == "Unknown"
    assert any("IAP does not let us through" in why for why in ended.unchecked.values())


TARGET = """
from blocks.target import ServerTarget
target = ServerTarget.load("gcp")
target.tunnel = "gcloud"
target.save("gcloud")
"""


def test_the_tunnel_can_be_gclouds(account: Account) -> None:
    environment = {
        **laptop.settings(),
        "PREFECT_API_URL": f"{account.story.urls['laptop']}/api",
    }
    account.story.cloud.run("python", "-c", TARGET, env=environment)
    ended = account.run("check-drift", target="gcloud")
    assert (ended.state, ended.rows) == ("Unchanged", [])


# As others describe it

ZONE, REGION = {"zone": "us-central1-a"}, {"region": "us-central1"}
DESCRIBED: list[tuple[str, str, Json, str]] = [
    ("instances", "Instances", ZONE, NAME),
    ("disks", "Disks", ZONE, NAME),
    ("networks", "Networks", {}, f"{NAME}-net"),
    ("networks subnets", "Subnetworks", REGION, f"{NAME}-subnet"),
    ("routers", "Routers", REGION, f"{NAME}-router"),
    ("firewall-rules", "Firewalls", {}, f"{NAME}-clients"),
    ("firewall-rules", "Firewalls", {}, f"{NAME}-ssh-iap"),
]
"""All that a first run makes: gcloud's words, google-cloud-compute's client, the scope, the name."""
CLIENTS = """
import json, sys
from google.cloud import compute_v1
from googleapiclient.discovery import build

api, found = build("compute", "v1"), []
for _, client, scope, name in json.loads(sys.argv[1]):
    where = {"project": "rehearsal", **scope, client.lower().removesuffix("s"): name}
    message = getattr(compute_v1, f"{client}Client")().get(**where)
    options = {"use_integers_for_enums": False, "including_default_value_fields": False}
    as_dict = type(message).to_dict(message, preserving_proto_field_name=False, **options)
    found.append([as_dict, getattr(api, client.lower())().get(**where).execute()])
print(json.dumps(found))
"""


def test_three_clients_of_google_describe_a_server_alike(account: Account) -> None:
    described = json.dumps(DESCRIBED)
    found = json.loads(account.story.cloud.run("python", "-c", CLIENTS, described).stdout)
    for (words, _, scope, name), (theirs, ours) in zip(DESCRIBED, found, strict=True):
        where = [f"--{key}={value}" for key, value in scope.items()]
        describe = ("compute", *words.split(), "describe", name, *where, "--format=json")
        gcloud: Json = json.loads(account.story.google(*describe))
        of_google = {key: gcloud[key] for key in gcloud if not key.startswith("x_gcloud_")}
        assert of_google == ours == theirs
        assert ours["name"] == name


# A server without a way out, where the first zone has no room for it


def test_a_server_without_a_way_out_is_installed_from_the_laptop(account: Account) -> None:
    story = account.story
    prepare(story.cloud, story.urls["laptop"], [ALONE])
    server = {
        **account.laptop.spec,
        "name": ALONE,
        "auth_secret": {"block": f"{ALONE}-auth"},
        "database_url_secret": {"block": f"{ALONE}-database-url"},
        "network": {"cidr": "10.30.0.0/24", "nat": False},
        "zones": ["us-central1-b"],
        "prefect": {"install_from": "laptop"},
        "self_check": {"interval_seconds": 86400},
    }
    stock_out = ("--operation", "ZONE_RESOURCE_POOL_EXHAUSTED")
    with account.fault("compute.instances.insert", *stock_out):
        ended = account.run("bootstrap-server", server=server)
    assert ended.state == "Changed", ended.message
    machine, running = describe(account.story), started(account.story)
    assert machine["zone"].endswith("/us-central1-b")
    assert "accessConfigs" not in machine["networkInterfaces"][0]
    routers = account.story.google("compute", "routers", "list", "--format=value(name)")
    assert ALONE not in routers

    # As Google's image is, without Debian's python3-venv; and with a disk that is too small.
    purge = "apt-get -qq purge -y python3-venv python3.11-venv >/dev/null; rm -r /opt/prefect"
    account.story.cloud.ctl("root", ALONE, "--", "sh", "-c", purge)
    before = int(size(account.story))
    larger = {**server, "machine": {**server["machine"], "disk_gb": 12}}
    ended = account.run("bootstrap-server", server=larger)
    assert ended.state == "Changed", ended.message
    assert started(account.story) == running
    assert account.run("check-drift", server=larger).state == "Unchanged"
    for verb in ("stop", "start"):  # the kernel may not let a file system here grow in use
        account.story.google("compute", "instances", verb, ALONE, "--zone=us-central1-b")
    assert int(size(account.story)) - before > 1.8 * 2**30

    ended = account.run("bootstrap-server", server=server)
    assert ended.state == "Failed"
    assert "shrink" in ended.message


def describe(story: Story) -> Json:
    where = ("compute", "instances", "describe", ALONE, "--zone=us-central1-b", "--format=json")
    found: Json = json.loads(story.google(*where))
    return found


def started(story: Story) -> list[int]:
    """The machine's first process, which changes when it is started again."""
    machines = json.loads(story.cloud.ctl("status", "--json").stdout)["instances"]
    return [each["leader"] for each in machines if each["name"] == ALONE]


def size(story: Story) -> str:
    """Bytes of the root file system."""
    df = ("df", "--output=size", "--block-size=1", "/")
    return story.cloud.ctl("root", ALONE, "--", *df).stdout.split()[-1]
