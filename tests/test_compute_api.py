"""The Compute API of the rehearsal cloud: Google's answers, word for word where they are on record,
and what a mutation leaves behind."""

import asyncio
import ipaddress
import uuid
from collections.abc import Iterator

import pytest

from rehearsal import errors
from rehearsal.config import ACCOUNT, PROJECT, PROJECT_NUMBER, REGION, ZONE
from rehearsal.errors import Json
from rehearsal.faults import Fault
from rehearsal.iam import ACT_AS
from rehearsal.store import link
from tests.paper import DEBIAN, FULL, REGIONAL, ZONAL, Caller, PaperMachine, paper, vm

VM = f"{ZONAL}/instances/vm"
SUBNET = f"{REGIONAL}/subnetworks/net-sub"
INSERT = "compute.instances.insert"
NETWORK: Json = {"name": "n", "autoCreateSubnetworks": False}
FIREWALL: Json = {
    "name": "fw",
    "network": "global/networks/net",
    "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
}
PRICED = f"{ZONAL}/machineTypes/e2-standard-4"


@pytest.fixture
def google() -> Iterator[Caller]:
    with paper() as caller:
        yield caller


@pytest.fixture
def net(google: Caller) -> Caller:
    """A cloud with a network."""
    google.network()
    return google


# Errors that are on record


def classic(code: int, reason: str, message: str, **item: str) -> Json:
    """Compute Engine's error body."""
    entry = {"message": message, "domain": "global", "reason": reason, **item}
    return {"error": {"code": code, "message": message, "errors": [entry]}}


@pytest.mark.parametrize(
    ("verb", "path", "body", "expected"),
    [
        (
            "GET",
            f"{ZONAL}/instances/none",
            None,
            classic(404, "notFound", f"The resource '{FULL}/{ZONAL}/instances/none' was not found"),
        ),
        (
            "POST",
            f"{ZONAL}/instances",
            vm(),
            classic(409, "alreadyExists", f"The resource '{FULL}/{VM}' already exists"),
        ),
        (
            "DELETE",
            VM,
            None,
            classic(
                400,
                "invalidResourceUsage",
                "Invalid resource usage: "
                "'Resource cannot be deleted if it's protected against deletion.'.",
            ),
        ),
        (
            "DELETE",
            SUBNET,
            None,
            classic(
                400,
                "resourceInUseByAnotherResource",
                f"The subnetwork resource '{FULL}/{SUBNET}' is already being used by '{FULL}/{VM}'",
            ),
        ),
        (
            "POST",
            f"{VM}/setMetadata",
            {"fingerprint": "AAAA"},
            classic(
                412,
                "conditionNotMet",
                "Supplied fingerprint does not match current metadata fingerprint.",
                locationType="header",
                location="If-Match",
            ),
        ),
        (
            "POST",
            f"{VM}/setLabels",
            {"labelFingerprint": "AAAA"},
            classic(
                412,
                "conditionNotMet",
                "Supplied fingerprint does not match current labels fingerprint.",
                locationType="header",
                location="If-Match",
            ),
        ),
        (
            "POST",
            f"{VM}/setTags",
            {"fingerprint": "AAAA"},
            classic(
                412,
                "conditionNotMet",
                "Invalid fingerprint.",
                locationType="header",
                location="If-Match",
            ),
        ),
        (
            "PATCH",
            SUBNET,
            {"enableFlowLogs": True, "fingerprint": "AAAA"},
            classic(
                412,
                "conditionNotMet",
                "Invalid fingerprint.",
                locationType="header",
                location="If-Match",
            ),
        ),
    ],
    ids=[
        "not found",
        "exists",
        "protected",
        "in use",
        "metadata",
        "labels",
        "tags",
        "subnetwork",
    ],
)
def test_an_error_is_googles_word_for_word(
    net: Caller, verb: str, path: str, body: Json | None, expected: Json
) -> None:
    net.instance(deletionProtection=True)
    assert net.call(verb, path, body) == (expected["error"]["code"], expected)


@pytest.mark.parametrize(
    ("reason", "code", "message"),
    [
        (
            "rateLimitExceeded",
            403,
            (
                "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute per "
                "region' of service 'compute.googleapis.com' for consumer "
                f"'project_number:{PROJECT_NUMBER}'."
            ),
        ),
        ("resourceNotReady", 400, f"The resource '{FULL}/global/networks/default' is not ready"),
        ("backendError", 503, "Backend Error"),
    ],
)
def test_an_ordered_error_is_googles_and_happens_once(
    google: Caller, reason: str, code: int, message: str
) -> None:
    google.cloud.faults.order(Fault("compute.zones.get", reason=reason))
    assert google.call("GET", ZONAL) == (code, classic(code, reason, message))
    assert google.ok("GET", ZONAL)["status"] == "UP"


def test_a_missing_permission_is_named(google: Caller) -> None:
    google.cloud.identities.grant(ACCOUNT, {"compute.disks.create"})
    message = f"Required 'compute.instances.create' permission for '{FULL}/{ZONAL}/instances'"
    expected = classic(403, "forbidden", message)
    assert google.call("POST", f"{ZONAL}/instances", vm()) == (403, expected)


@pytest.mark.parametrize(
    ("verb", "path", "permission"),
    [
        ("GET", VM, "compute.instances.get"),
        ("GET", f"{ZONAL}/instances", "compute.instances.list"),
        ("GET", "aggregated/instances", "compute.instances.list"),
        ("POST", f"{VM}/start", "compute.instances.start"),
        ("POST", f"{VM}/setMetadata", "compute.instances.setMetadata"),
        ("DELETE", VM, "compute.instances.delete"),
        ("PATCH", SUBNET, "compute.subnetworks.update"),
        ("POST", f"{ZONAL}/operations/o/wait", "compute.zoneOperations.get"),
    ],
)
def test_a_call_needs_just_its_permission(
    net: Caller, verb: str, path: str, permission: str
) -> None:
    net.cloud.identities.grant(ACCOUNT, {"compute.networks.get"})
    message = f"Required '{permission}' permission for '{FULL}/{path}'"
    assert net.refused(verb, path, {}) == (403, "forbidden", message)
    net.cloud.identities.grant(ACCOUNT, {permission})
    assert net.call(verb, path, {})[0] != 403


def test_an_api_that_is_off_says_how_to_turn_it_on(google: Caller) -> None:
    service = f"/v1/projects/{PROJECT_NUMBER}/services/compute.googleapis.com"
    google.ok("POST", f"{service}:disable", host="serviceusage.googleapis.com")
    status, answer = google.call("GET", ZONAL)
    error = answer["error"]
    url = "https://console.developers.google.com/apis/api/compute.googleapis.com/overview"
    assert status == 403
    assert error["message"] == (
        f"Compute Engine API has not been used in project {PROJECT_NUMBER} before or it is "
        f"disabled. Enable it by visiting {url}?project={PROJECT_NUMBER} then retry. If you "
        "enabled this API recently, wait a few minutes for the action to propagate to our systems "
        "and retry."
    )
    assert error["status"] == "PERMISSION_DENIED"
    assert error["errors"][0]["reason"] == "accessNotConfigured"
    assert error["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "SERVICE_DISABLED",
            "domain": "googleapis.com",
            "metadata": {
                "service": "compute.googleapis.com",
                "consumer": f"projects/{PROJECT_NUMBER}",
            },
        }
    ]
    google.ok("POST", f"{service}:enable", host="serviceusage.googleapis.com")
    assert google.ok("GET", ZONAL)["name"] == ZONE


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ya29.forged", "Basic eDp5", "x"])
def test_nobody_is_served_without_a_token(google: Caller, authorization: str) -> None:
    google.authorization = authorization
    message = "Request had invalid authentication credentials."
    assert google.refused("GET", ZONAL) == (401, "authError", message)


def test_what_is_not_implemented_says_so(google: Caller) -> None:
    for verb, path, body, method in (
        ("POST", f"{VM}/suspend", {}, "compute.instances.suspend"),
        ("GET", "global/sslCertificates", None, "compute.sslCertificates.list"),
        ("PUT", VM, vm(), "compute.instances.update"),
    ):
        message = f"The rehearsal cloud does not implement {method}."
        assert google.refused(verb, path, body) == (501, "notImplemented", message)


def test_a_path_that_no_api_has_is_not_found(google: Caller) -> None:
    assert google.call("GET", "/compute/v1/nothing/here")[0] == 404
    assert google.call("PUT", ZONAL)[0] == 404


@pytest.mark.parametrize(
    "path", ["zones/nowhere-a/instances", "regions/nowhere/subnetworks", "regions/nowhere/routers"]
)
def test_an_unknown_place_is_refused(google: Caller, path: str) -> None:
    assert google.call("GET", path)[0] == 400
    assert google.call("POST", path, {"name": "x"})[0] == 400


def test_another_project_is_not_ours_to_read_or_write(google: Caller) -> None:
    for verb, path, body in (
        ("GET", "/compute/v1/projects/other", None),
        ("GET", "/compute/v1/projects/other/global/networks", None),
        ("POST", "/compute/v1/projects/other/global/networks", NETWORK),
        ("POST", "/compute/v1/projects/debian-cloud/global/networks", NETWORK),
        ("POST", "/compute/v1/projects/other/global/snapshots", {"name": "s"}),
    ):
        assert google.call(verb, path, body)[0] == 404
    images = google.ok("GET", "/compute/v1/projects/debian-cloud/global/images")
    assert [image["family"] for image in images["items"]] == ["debian-12"]


# Operations


def test_an_operation_is_pending_then_running_then_done(google: Caller) -> None:
    google.cloud.faults.order(Fault("compute.networks.insert", delay=0.05, operation=True))
    operation = google.ok("POST", "global/networks", NETWORK)
    path = operation["selfLink"].partition(f"{FULL}/")[2]
    assert (operation["status"], operation["progress"]) == ("PENDING", 0)
    assert operation["operationType"] == "insert"
    assert operation["targetLink"] == link(f"{FULL}/global/networks/n")
    assert operation["user"] == ACCOUNT
    assert operation["targetId"].isdecimal()
    assert operation["id"].isdecimal()
    assert google.ok("GET", path)["status"] == "RUNNING"
    operation = google.done(operation)
    assert (operation["status"], operation["progress"]) == ("DONE", 100)
    assert operation["insertTime"] <= operation["startTime"] <= operation["endTime"]


def test_wait_holds_until_the_operation_is_done(google: Caller) -> None:
    google.cloud.faults.order(Fault("compute.networks.insert", delay=0.1, operation=True))
    operation = google.ok("POST", "global/networks", NETWORK)
    path = operation["selfLink"].partition(f"{FULL}/")[2]

    async def both() -> tuple[Json, float]:
        clock = asyncio.get_running_loop().time
        began = clock()
        _, answer = await google.asks("POST", f"{path}/wait")
        return answer, clock() - began

    answer, seconds = google.run(both())
    assert answer["status"] == "DONE"
    assert 0.05 < seconds < 5


def test_wait_gives_up_when_google_does(google: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rehearsal.operations.WAIT_SECONDS", 0.01)
    google.cloud.faults.order(Fault("compute.networks.insert", delay=0.2, operation=True))
    operation = google.ok("POST", "global/networks", NETWORK)
    path = operation["selfLink"].partition(f"{FULL}/")[2]
    assert google.ok("POST", f"{path}/wait")["status"] == "RUNNING"


def test_an_unknown_operation_is_not_found(google: Caller) -> None:
    for verb, path in (("GET", "operations/o"), ("POST", "operations/o/wait")):
        for scope in ("global", ZONAL, REGIONAL):
            assert google.call(verb, f"{scope}/{path}")[0] == 404


def test_a_repeated_request_id_does_nothing_again(net: Caller) -> None:
    again = str(uuid.uuid4())
    first = net.ok("POST", f"{ZONAL}/instances", vm(), requestId=again)
    second = net.ok("POST", f"{ZONAL}/instances", vm(), requestId=again)
    assert first["name"] == second["name"]
    assert first["clientOperationId"] == again
    net.done(first)
    assert len(net.ok("GET", f"{ZONAL}/instances")["items"]) == 1
    assert net.call("POST", f"{ZONAL}/instances", vm(), requestId=str(uuid.uuid4()))[0] == 409


@pytest.mark.parametrize("given", ["", "x", "00000000-0000-0000-0000-000000000000"])
def test_a_request_id_is_a_uuid(net: Caller, given: str) -> None:
    message = f"Invalid value for field 'requestId': '{given}'. Must be a UUID."
    assert net.refused("POST", f"{ZONAL}/instances", vm(), requestId=given) == (
        400,
        "invalid",
        message,
    )
    assert "items" not in net.ok("GET", f"{ZONAL}/instances")


def test_a_request_that_was_refused_may_be_repeated(net: Caller) -> None:
    again = str(uuid.uuid4())
    bad = vm(machineType=f"{ZONAL}/machineTypes/none")
    assert net.call("POST", f"{ZONAL}/instances", bad, requestId=again)[0] == 404
    net.change("POST", f"{ZONAL}/instances", vm(), requestId=again)


# Operations that fail


def test_a_zone_without_stock_leaves_nothing_behind(net: Caller) -> None:
    order = Fault(INSERT, reason="ZONE_RESOURCE_POOL_EXHAUSTED", operation=True)
    net.cloud.faults.order(order)
    operation = net.done(net.ok("POST", f"{ZONAL}/instances", vm()))
    assert operation["error"]["errors"] == [
        {
            "code": "ZONE_RESOURCE_POOL_EXHAUSTED",
            "message": f"The zone '{FULL}/{ZONAL}' does not have enough resources available to "
            "fulfill the request.  Try a different zone, or try again later.",
            "errorDetails": [
                {
                    "errorInfo": {
                        "reason": "resource_availability",
                        "domain": "compute.googleapis.com",
                        "metadatas": {"zone": ZONE, "vmType": "e2-medium"},
                    }
                }
            ],
        }
    ]
    assert operation["httpErrorStatusCode"] == 503
    assert operation["httpErrorMessage"] == "SERVICE UNAVAILABLE"
    assert_no_instance(net)
    net.instance()


def test_a_quota_ends_the_operation_and_takes_the_disk_with_it(net: Caller) -> None:
    net.cloud.quotas["CPUS"] = 4
    net.instance("first")
    body = vm(machineType=PRICED)
    assert net.failed("POST", f"{ZONAL}/instances", body) == {
        "code": "QUOTA_EXCEEDED",
        "message": f"Quota 'CPUS' exceeded.  Limit: 4.0 in region {REGION}.",
        "errorDetails": [
            {
                "quotaInfo": {
                    "metricName": "compute.googleapis.com/cpus",
                    "limitName": "CPUS-per-project-region",
                    "limit": 4.0,
                    "dimensions": {"region": REGION},
                }
            }
        ],
        "http": [403, "FORBIDDEN"],
    }
    assert_no_instance(net)
    net.instance("second")  # what failed uses nothing up


def assert_no_instance(net: Caller) -> None:
    assert net.call("GET", VM)[0] == 404
    assert net.call("GET", f"{ZONAL}/disks/vm")[0] == 404
    assert "vm" not in {m.hostname for m in net.cloud.machines.values()}


def test_a_machine_that_does_not_start_leaves_nothing_behind(
    net: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: PaperMachine) -> None:
        raise RuntimeError("no power")

    monkeypatch.setattr(PaperMachine, "start", fail)
    error = net.failed("POST", f"{ZONAL}/instances", vm())
    assert (error["code"], error["http"][0]) == ("INTERNAL_ERROR", 500)
    assert_no_instance(net)
    assert net.cloud.machines == {}


def test_a_failed_insert_keeps_the_disk_it_was_given(net: Caller) -> None:
    mine = {"name": "mine", "sourceImage": f"https://www.googleapis.com/compute/v1/{DEBIAN}"}
    net.change("POST", f"{ZONAL}/disks", mine)
    net.cloud.quotas["CPUS"] = 1
    body = vm(disks=[{"boot": True, "autoDelete": True, "source": f"{ZONAL}/disks/mine"}])
    assert net.failed("POST", f"{ZONAL}/instances", body)["code"] == "QUOTA_EXCEEDED"
    assert net.ok("GET", f"{ZONAL}/disks/mine").get("users", []) == []


def test_a_network_in_use_stays(net: Caller) -> None:
    net.change("POST", "global/firewalls", FIREWALL)
    error = net.failed("DELETE", "global/networks/net")
    assert error == {
        "code": "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
        "message": f"The network resource '{FULL}/global/networks/net' is already being used by "
        f"'{FULL}/global/firewalls/fw'",
        "http": [400, "BAD REQUEST"],
    }
    net.change("DELETE", "global/firewalls/fw")
    assert net.failed("DELETE", "global/networks/net")["message"].endswith(f"'{FULL}/{SUBNET}'")
    net.change("DELETE", SUBNET)
    net.change("DELETE", "global/networks/net")
    assert net.call("GET", "global/networks/net")[0] == 404
    assert net.cloud.vpcs == {}


def test_an_account_may_only_be_given_by_who_may_act_as_it(net: Caller) -> None:
    account = f"server@{PROJECT}.iam.gserviceaccount.com"
    body = vm(serviceAccounts=[{"email": account, "scopes": ["x"]}])
    everything_else = {
        "compute.instances.create",
        "compute.disks.create",
        "compute.subnetworks.use",
        "compute.zoneOperations.get",
        "compute.instances.get",
        "compute.disks.get",
        "compute.instances.stop",
        "compute.instances.setServiceAccount",
    }
    denied = {
        "code": "SERVICE_ACCOUNT_ACCESS_DENIED",
        "message": f"The user does not have access to service account '{account}'.  User: "
        f"'{ACCOUNT}'.  Ask a project owner to grant you the iam.serviceAccountUser role on the "
        "service account",
        "http": [400, "BAD REQUEST"],
    }
    net.cloud.identities.grant(ACCOUNT, everything_else)
    assert net.failed("POST", f"{ZONAL}/instances", body) == denied
    assert_no_instance(net)
    net.instance()
    assert net.failed("POST", f"{VM}/setServiceAccount", {"email": account})["code"] == (
        "RESOURCE_NOT_READY"
    )
    net.change("POST", f"{VM}/stop")
    assert net.failed("POST", f"{VM}/setServiceAccount", {"email": account}) == denied
    net.cloud.identities.grant(ACCOUNT, {*everything_else, ACT_AS})
    net.change("POST", f"{VM}/setServiceAccount", {"email": account, "scopes": ["x"]})
    assert net.ok("GET", VM)["serviceAccounts"] == [{"email": account, "scopes": ["x"]}]


def test_a_delay_and_an_error_of_an_operation_both_happen(google: Caller) -> None:
    google.cloud.faults.order(
        Fault("compute.networks.insert", delay=0.01, reason="INTERNAL_ERROR", operation=True)
    )
    assert google.failed("POST", "global/networks", NETWORK)["code"] == "INTERNAL_ERROR"
    assert google.call("GET", "global/networks/n")[0] == 404


# Instances


def test_an_instance_lives_as_googles_do(net: Caller) -> None:
    net.cloud.faults.order(Fault(INSERT, delay=0.01, operation=True))
    operation = net.ok("POST", f"{ZONAL}/instances", vm())
    assert net.cloud.store.find(f"{FULL}/{VM}")["status"] == "PROVISIONING"
    net.done(operation)
    instance = net.ok("GET", VM)
    assert instance["status"] == "RUNNING"
    for action, status in (
        ("stop", "TERMINATED"),
        ("stop", "TERMINATED"),
        ("start", "RUNNING"),
        ("start", "RUNNING"),
        ("reset", "RUNNING"),
    ):
        net.change("POST", f"{VM}/{action}")
        assert net.ok("GET", VM)["status"] == status
    assert net.cloud.past(instance) == ["create", "start", "stop", "start", "cut", "start"]
    net.change("DELETE", VM)
    assert_no_instance(net)
    assert net.cloud.machines == {}


def test_a_stopped_instance_is_not_reset(net: Caller) -> None:
    net.instance()
    net.change("POST", f"{VM}/stop")
    message = f"The resource '{FULL}/{VM}' is not ready"
    assert net.refused("POST", f"{VM}/reset") == (400, "resourceNotReady", message)


def test_a_machine_type_changes_while_the_instance_is_stopped(net: Caller) -> None:
    instance = net.instance()
    body = {"machineType": PRICED}
    assert net.failed("POST", f"{VM}/setMachineType", body) == {
        "code": "RESOURCE_NOT_READY",
        "message": f"The resource '{FULL}/{VM}' is not ready",
        "http": [400, "BAD REQUEST"],
    }
    assert net.ok("GET", VM)["machineType"] == instance["machineType"]
    net.change("POST", f"{VM}/stop")
    net.change("POST", f"{VM}/setMachineType", body)
    net.change("POST", f"{VM}/start")
    assert net.ok("GET", VM)["machineType"] == link(f"{FULL}/{PRICED}")
    machine = net.cloud.machine(instance)
    assert (machine.cpus, machine.memory) == (4, 16384 << 20)


def test_links_of_any_host_are_stored_in_one_form(net: Caller) -> None:
    body = vm(machineType=f"http://127.0.0.1:8080/compute/v1/{FULL}/{ZONAL}/machineTypes/e2-small")
    net.change("POST", f"{ZONAL}/instances", body)
    instance = net.ok("GET", VM)
    assert instance["machineType"] == link(f"{FULL}/{ZONAL}/machineTypes/e2-small")
    nic = instance["networkInterfaces"][0]
    assert nic["subnetwork"] == link(f"{FULL}/{SUBNET}")
    assert nic["network"] == link(f"{FULL}/global/networks/net")


def test_protection_comes_and_goes(net: Caller) -> None:
    net.instance(deletionProtection=True)
    net.change("POST", f"{VM}/setDeletionProtection", deletionProtection="false")
    assert net.ok("GET", VM)["deletionProtection"] is False
    net.change("POST", f"{VM}/setDeletionProtection")
    assert net.ok("GET", VM)["deletionProtection"] is True
    net.change("POST", f"{VM}/setDeletionProtection", deletionProtection="False")
    net.change("DELETE", VM)


@pytest.mark.parametrize(
    ("action", "part", "content"),
    [
        ("setMetadata", "metadata", [{"key": "a", "value": "b"}]),
        ("setTags", "tags", ["web", "db"]),
    ],
)
def test_a_fingerprint_lets_one_of_two_writers_through(
    net: Caller, action: str, part: str, content: list[object]
) -> None:
    read = net.instance()[part]["fingerprint"]
    net.change("POST", f"{VM}/{action}", {"items": content, "fingerprint": read})
    assert net.call("POST", f"{VM}/{action}", {"items": [], "fingerprint": read})[0] == 412
    after = net.ok("GET", VM)[part]
    assert after["items"] == content
    net.change("POST", f"{VM}/{action}", {"items": [], "fingerprint": after["fingerprint"]})


def test_labels_change_with_their_fingerprint(net: Caller) -> None:
    read = net.instance(labels={"env": "test"})["labelFingerprint"]
    body = {"labels": {"env": "prod"}, "labelFingerprint": read}
    net.change("POST", f"{VM}/setLabels", body)
    assert net.call("POST", f"{VM}/setLabels", body)[0] == 412
    assert net.ok("GET", VM)["labels"] == {"env": "prod"}


@pytest.mark.parametrize("labels", [{"Env": "x"}, {"env": "X"}, {"1": "x"}, {"a": "b" * 64}])
def test_labels_are_lower_case_and_short(net: Caller, labels: Json) -> None:
    assert net.refused("POST", f"{ZONAL}/instances", vm(labels=labels))[:2] == (400, "invalid")


@pytest.mark.parametrize(
    "items",
    [
        [{"key": "k", "value": "v" * (256 << 10 | 1)}],
        [{"key": f"k{n}", "value": "v" * (200 << 10)} for n in range(3)],
        [{"key": "k", "value": "1"}, {"key": "k", "value": "2"}],
        [{"value": "v"}],
    ],
    ids=["value", "sum", "twice", "no key"],
)
def test_metadata_has_bounds(net: Caller, items: list[Json]) -> None:
    body = vm(metadata={"items": items})
    assert net.refused("POST", f"{ZONAL}/instances", body)[:2] == (400, "invalid")


@pytest.mark.parametrize(
    "members",
    [
        {"machineType": f"{ZONAL}/diskTypes/pd-ssd"},
        {"machineType": f"zones/{REGION}-b/machineTypes/e2-medium"},
        {"networkInterfaces": [{"network": f"{REGIONAL}/subnetworks/net-sub"}]},
        {"networkInterfaces": [{"subnetwork": "global/networks/net"}]},
        {"networkInterfaces": [{"subnetwork": SUBNET, "networkIP": "10.9.9.9"}]},
        {"networkInterfaces": [{"subnetwork": SUBNET, "networkIP": "ten"}]},
        {
            "networkInterfaces": [
                {"subnetwork": SUBNET, "accessConfigs": [{"natIP": "somewhere"}]},
            ]
        },
        {"networkInterfaces": []},
        {"disks": []},
        {"disks": [{"boot": True}]},
        {"disks": [{"boot": True, "source": "global/networks/net"}]},
        {"disks": [{"boot": True, "initializeParams": {}}]},
        {"disks": [{"boot": True, "initializeParams": {"sourceImage": f"{FULL}/{ZONAL}"}}]},
        {"disks": [{"boot": True, "initializeParams": {"sourceImage": DEBIAN, "diskSizeGb": "9"}}]},
    ],
)
def test_a_body_that_fits_the_schema_and_makes_no_sense_is_refused(
    net: Caller, members: Json
) -> None:
    assert net.call("POST", f"{ZONAL}/instances", vm(**members))[0] == 400
    assert "items" not in net.ok("GET", f"{ZONAL}/instances")


def test_a_disk_has_one_user(net: Caller) -> None:
    net.instance()
    message = f"The disk resource '{FULL}/{ZONAL}/disks/vm' is already being used by '{FULL}/{VM}'"
    used = (400, "resourceInUseByAnotherResource", message)
    boot = [{"boot": True, "source": f"{ZONAL}/disks/vm"}]
    assert net.refused("POST", f"{ZONAL}/instances", vm("two", disks=boot)) == used
    assert net.refused("DELETE", f"{ZONAL}/disks/vm") == used
    source = {"source": f"{ZONAL}/disks/vm"}
    net.instance("three")
    assert net.refused("POST", f"{ZONAL}/instances/three/attachDisk", source) == used


def test_two_instances_at_once_do_not_share_a_new_disk(net: Caller) -> None:
    new = {"sourceImage": DEBIAN, "diskName": "d"}
    disks = [{"boot": True, "initializeParams": new}]
    net.cloud.faults.order(Fault(INSERT, delay=0.01, operation=True))
    first = net.ok("POST", f"{ZONAL}/instances", vm("one", disks=disks))
    second = net.refused("POST", f"{ZONAL}/instances", vm("two", disks=disks))
    assert second == (409, "alreadyExists", f"The resource '{FULL}/{ZONAL}/disks/d' already exists")
    net.done(first)


def test_a_disk_is_kept_unless_it_is_to_go_with_its_instance(net: Caller) -> None:
    new = {"sourceImage": DEBIAN, "diskName": "d", "diskSizeGb": "20"}
    net.instance(disks=[{"boot": True, "initializeParams": new}])
    disk = net.ok("GET", f"{ZONAL}/disks/d")
    assert (disk["sizeGb"], disk["users"]) == ("20", [link(f"{FULL}/{VM}")])
    net.change("DELETE", VM)
    assert net.ok("GET", f"{ZONAL}/disks/d").get("users", []) == []
    net.instance(disks=[{"boot": True, "source": f"{ZONAL}/disks/d"}])


def test_disks_come_and_go(net: Caller) -> None:
    instance = net.instance()
    net.change("POST", f"{ZONAL}/disks", {"name": "data", "sizeGb": "10"})
    source = {"source": f"{ZONAL}/disks/data", "deviceName": "data"}
    net.change("POST", f"{VM}/attachDisk", source)
    assert [d["deviceName"] for d in net.ok("GET", VM)["disks"]] == ["persistent-disk-0", "data"]
    net.change("POST", f"{VM}/detachDisk", deviceName="data")
    assert net.cloud.past(instance)[-2:] == ["plug data", "unplug data"]
    assert len(net.ok("GET", VM)["disks"]) == 1
    assert net.call("POST", f"{VM}/detachDisk", deviceName="data")[0] == 400
    assert net.call("POST", f"{VM}/detachDisk", deviceName="persistent-disk-0")[0] == 400
    assert net.call("POST", f"{VM}/detachDisk")[0] == 400
    net.change("POST", f"{ZONAL}/disks/data/resize", {"sizeGb": "20"})
    assert net.call("POST", f"{ZONAL}/disks/data/resize", {"sizeGb": "15"})[0] == 400
    net.change("POST", f"{ZONAL}/disks/data/createSnapshot", {"name": "s"})
    restored = {"name": "copy", "sourceSnapshot": "global/snapshots/s"}
    net.change("POST", f"{ZONAL}/disks", restored)
    assert net.ok("GET", f"{ZONAL}/disks/copy")["sizeGb"] == "20"
    again = {"name": "s", "sourceDisk": f"{ZONAL}/disks/data"}
    assert net.call("POST", "global/snapshots", again)[0] == 409
    assert net.call("POST", "global/snapshots", {"sourceDisk": again["sourceDisk"]})[0] == 400


def test_an_external_address_comes_and_goes(net: Caller) -> None:
    net.instance()
    assert "accessConfigs" not in net.ok("GET", VM)["networkInterfaces"][0]
    net.change("POST", f"{VM}/addAccessConfig", {}, networkInterface="nic0")
    [access] = net.ok("GET", VM)["networkInterfaces"][0]["accessConfigs"]
    assert access["name"] == "External NAT"
    named = {"networkInterface": "nic0", "accessConfig": access["name"]}
    assert net.call("POST", f"{VM}/addAccessConfig", {}, networkInterface="nic0")[0] == 400
    assert net.call("POST", f"{VM}/addAccessConfig", {})[0] == 400
    assert net.call("POST", f"{VM}/deleteAccessConfig", networkInterface="nic0")[0] == 400
    wrong = {**named, "networkInterface": "nic7"}
    assert net.call("POST", f"{VM}/deleteAccessConfig", **wrong)[0] == 400
    net.change("POST", f"{VM}/deleteAccessConfig", **named)
    assert "accessConfigs" not in net.ok("GET", VM)["networkInterfaces"][0]
    assert net.call("POST", f"{VM}/addAccessConfig", {}, networkInterface="nic7")[0] == 400


# Addresses


def test_no_two_instances_share_an_address(net: Caller) -> None:
    net.cloud.quotas.update(CPUS=1000, IN_USE_ADDRESSES=1000, INSTANCES=1000, DISKS_TOTAL_GB=9999)
    outside = [{"subnetwork": SUBNET, "accessConfigs": [{}]}]
    operations = [
        net.ok("POST", f"{ZONAL}/instances", vm(f"vm{n}", networkInterfaces=outside))
        for n in range(20)
    ]
    for operation in operations:
        assert "error" not in net.done(operation)
    nics = [i["networkInterfaces"][0] for i in net.ok("GET", f"{ZONAL}/instances")["items"]]
    assert len({nic["networkIP"] for nic in nics}) == 20
    assert len({nic["accessConfigs"][0]["natIP"] for nic in nics}) == 20
    taken = vm("late", networkInterfaces=[{"subnetwork": SUBNET, "networkIP": "10.0.0.2"}])
    assert net.call("POST", f"{ZONAL}/instances", taken)[0] == 400


def test_a_full_subnetwork_says_so(google: Caller) -> None:
    google.network(ranges="10.0.0.0/29")
    for n in range(4):
        google.instance(f"vm{n}")
    status, _, message = google.refused("POST", f"{ZONAL}/instances", vm("late"))
    assert status == 400
    assert f"'{FULL}/{SUBNET}' is exhausted" in message


def test_addresses_are_allotted_once(net: Caller) -> None:
    for n in range(3):
        net.change("POST", f"{REGIONAL}/addresses", {"name": f"out{n}"})
        inside = {"name": f"in{n}", "addressType": "INTERNAL", "subnetwork": SUBNET}
        net.change("POST", f"{REGIONAL}/addresses", inside)
    net.instance()
    given = [a["address"] for a in net.ok("GET", f"{REGIONAL}/addresses")["items"]]
    given.append(net.ok("GET", VM)["networkInterfaces"][0]["networkIP"])
    assert len(set(given)) == 7
    twice = {"name": "again", "addressType": "INTERNAL", "subnetwork": SUBNET}
    for address in (given[0], "10.9.9.9", "x"):
        body = {**twice, "address": address}
        assert net.call("POST", f"{REGIONAL}/addresses", body)[0] == 400


def test_external_addresses_run_out_without_a_crash(google: Caller) -> None:
    google.cloud.quotas["STATIC_ADDRESSES"] = 1000
    for n in range(254):
        google.ok("POST", f"{REGIONAL}/addresses", {"name": f"a{n}"})
    assert google.call("POST", f"{REGIONAL}/addresses", {"name": "late"})[0] == 403


# Networks


def test_an_auto_mode_network_has_a_subnetwork_in_every_region(google: Caller) -> None:
    google.change("POST", "global/networks", {"name": "auto"})
    network = google.ok("GET", "global/networks/auto")
    regions = google.ok("GET", "regions")["items"]
    assert len(network["subnetworks"]) == len(regions)
    for region in regions:
        subnet = google.ok("GET", f"regions/{region['name']}/subnetworks/auto")
        assert subnet["selfLink"] in network["subnetworks"]
        assert subnet["region"] == region["selfLink"]
        assert ipaddress.ip_network(subnet["ipCidrRange"])[1] == ipaddress.ip_address(
            subnet["gatewayAddress"]
        )
    assert len(google.cloud.vpc("auto").gateways) == len(regions)
    google.change("DELETE", "global/networks/auto")
    assert google.call("GET", f"{REGIONAL}/subnetworks/auto")[0] == 404


@pytest.mark.parametrize(
    "ranges", ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.0/16", "10.0.0.1/24", "10.1.0.0/30", "x", "",
               "10.1.0.0/255.255.255.0", "fd00::/64", "10.1.0.0/24 "]
)  # fmt: skip
def test_a_range_that_overlaps_or_is_none_is_refused(net: Caller, ranges: str) -> None:
    body = {"name": "two", "network": "global/networks/net", "ipCidrRange": ranges}
    status, reason, message = net.refused("POST", f"{REGIONAL}/subnetworks", body)
    assert (status, reason) == (400, "invalid")
    assert message.startswith("Invalid value for field 'resource.ipCidrRange'")


def test_networks_are_apart(net: Caller) -> None:
    net.network("other", "10.0.0.0/24")
    assert net.cloud.vpc("other").gateways == net.cloud.vpc("net").gateways


def test_nothing_is_built_on_a_network_that_is_not_there_yet(google: Caller) -> None:
    google.cloud.faults.order(Fault("compute.networks.insert", delay=0.05, operation=True))
    operation = google.ok("POST", "global/networks", {**NETWORK, "name": "net"})
    message = f"The resource '{FULL}/global/networks/net' is not ready"
    subnet = {"name": "s", "network": "global/networks/net", "ipCidrRange": "10.0.0.0/24"}
    for path, body in (
        (f"{REGIONAL}/subnetworks", subnet),
        ("global/firewalls", FIREWALL),
        (f"{REGIONAL}/routers", {"name": "r", "network": "global/networks/net"}),
    ):
        assert google.refused("POST", path, body) == (400, "resourceNotReady", message)
    google.done(operation)
    google.change("POST", f"{REGIONAL}/subnetworks", subnet)
    assert google.cloud.opened == [link(f"{FULL}/global/networks/net")]


def test_a_subnetwork_grows(net: Caller) -> None:
    path = f"{SUBNET}/expandIpCidrRange"
    net.change("POST", path, {"ipCidrRange": "10.0.0.0/20"})
    subnet = net.ok("GET", SUBNET)
    assert (subnet["ipCidrRange"], subnet["gatewayAddress"]) == ("10.0.0.0/20", "10.0.0.1")
    assert net.cloud.vpc("net").gateways == {"10.0.0.1/20"}
    for ranges in ("10.0.0.0/24", "10.7.0.0/16", "x"):
        assert net.call("POST", path, {"ipCidrRange": ranges})[0] == 400


def test_a_patch_changes_what_it_names_and_an_update_replaces_the_rest(net: Caller) -> None:
    net.change("POST", "global/firewalls", {**FIREWALL, "targetTags": ["web"], "priority": 5})
    path = "global/firewalls/fw"
    before = net.ok("GET", path)
    net.change("PATCH", path, {"name": "fw", "sourceRanges": ["10.0.0.0/8"]})
    patched = net.ok("GET", path)
    assert patched == {**before, "sourceRanges": ["10.0.0.0/8"]}
    net.change("PUT", path, {**FIREWALL, "priority": 7})
    updated = net.ok("GET", path)
    assert "targetTags" not in updated
    for member in ("id", "selfLink", "creationTimestamp", "kind"):
        assert updated[member] == before[member]
    assert net.call("PATCH", path, {"name": "fw", "direction": "EGRESS"})[0] == 400


def test_what_only_the_service_sets_cannot_be_sent(net: Caller) -> None:
    sent = {"id": "5", "selfLink": "https://elsewhere/", "kind": "x", "creationTimestamp": "never"}
    net.change("POST", "global/firewalls", {**FIREWALL, **sent})
    before = net.ok("GET", "global/firewalls/fw")
    assert not sent.items() & before.items()
    net.change("PATCH", "global/firewalls/fw", {**FIREWALL, **sent})
    assert net.ok("GET", "global/firewalls/fw") == before
    net.change("POST", f"{REGIONAL}/addresses", {"name": "a", "users": ["me"]})
    assert "users" not in net.ok("GET", f"{REGIONAL}/addresses/a")


@pytest.mark.parametrize(
    "members",
    [
        {"allowed": [{"IPProtocol": "tcp", "ports": ["x"]}]},
        {"allowed": [{"IPProtocol": "tcp", "ports": ["90-80"]}]},
        {"allowed": [{"IPProtocol": "tcp", "ports": ["65536"]}]},
        {"allowed": [{"IPProtocol": "icmp", "ports": ["1"]}]},
        {"allowed": [{"IPProtocol": "tcpp"}]},
        {"allowed": [{"IPProtocol": "256"}]},
        {"allowed": [{}]},
        {"allowed": []},
        {"denied": [{"IPProtocol": "tcp"}]},
        {"sourceRanges": ["10.0.0.0/33"]},
        {"sourceRanges": ["10.0.0.0/255.0.0.0"]},
        {"sourceRanges": ["::g/64"]},
        {"sourceRanges": [":; flush ruleset"]},
        {"direction": "EGRESS", "destinationRanges": ["x"]},
        {"priority": 65536},
        {"priority": -1},
        {"network": "global/networks/none"},
        {"network": f"{REGIONAL}/subnetworks/net-sub"},
        {"network": "net"},
    ],
)
def test_a_firewall_rule_that_means_nothing_is_refused(net: Caller, members: Json) -> None:
    status = net.call("POST", "global/firewalls", {**FIREWALL, **members})[0]
    assert status == (404 if members.get("network") == "global/networks/none" else 400)
    assert "items" not in net.ok("GET", "global/firewalls")


def test_a_change_shows_in_the_ruleset_of_its_network_alone(net: Caller) -> None:
    net.network("other", "10.8.0.0/24")
    net.instance(tags={"items": ["web"]})
    others = len(net.cloud.vpc("other").rulesets)
    line = "ip saddr 0.0.0.0/0 ip daddr { 10.0.0.2 } meta l4proto tcp th dport { 22 } accept"
    net.change("POST", "global/firewalls", {**FIREWALL, "targetTags": ["web"]})
    assert line in net.cloud.vpc("net").rulesets[-1]
    tags = {"items": [], "fingerprint": net.ok("GET", VM)["tags"]["fingerprint"]}
    net.change("POST", f"{VM}/setTags", tags)
    assert line not in net.cloud.vpc("net").rulesets[-1]
    assert len(net.cloud.vpc("other").rulesets) == others


def test_a_nat_is_a_way_out(net: Caller) -> None:
    net.instance()
    assert "oifname \"up0\" ip saddr" not in net.cloud.vpc("net").rulesets[-1]  # fmt: skip
    nat = {
        "name": "nat",
        "natIpAllocateOption": "AUTO_ONLY",
        "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS",
        "subnetworks": [{"name": SUBNET, "sourceIpRangesToNat": ["ALL_IP_RANGES"]}],
    }
    router = {"name": "r", "network": "global/networks/net", "nats": [nat]}
    net.change("POST", f"{REGIONAL}/routers", router)
    line = 'oifname "up0" ip saddr { 10.0.0.0/24 } accept'
    assert line in net.cloud.vpc("net").rulesets[-1]
    net.change("PATCH", f"{REGIONAL}/routers/r", {"nats": []})
    assert line not in net.cloud.vpc("net").rulesets[-1]
    for field in ("name", "natIpAllocateOption", "sourceSubnetworkIpRangesToNat"):
        partial = {k: v for k, v in nat.items() if k != field}
        assert net.call("PATCH", f"{REGIONAL}/routers/r", {"nats": [partial]})[0] == 400


# Reading


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("zones", "compute#zoneList"),
        ("regions", "compute#regionList"),
        (f"{ZONAL}/machineTypes", "compute#machineTypeList"),
        (f"{ZONAL}/diskTypes", "compute#diskTypeList"),
        (f"{ZONAL}/instances", "compute#instanceList"),
        (f"{ZONAL}/disks", "compute#diskList"),
        ("global/networks", "compute#networkList"),
        ("global/firewalls", "compute#firewallList"),
        ("global/snapshots", "compute#snapshotList"),
        (f"{REGIONAL}/subnetworks", "compute#subnetworkList"),
        (f"{REGIONAL}/routers", "compute#routerList"),
        (f"{REGIONAL}/addresses", "compute#addressList"),
    ],
)
def test_a_list_says_what_it_is_and_an_empty_one_has_no_items(
    google: Caller, path: str, kind: str
) -> None:
    answer = google.ok("GET", path)
    assert answer["kind"] == kind
    assert answer["selfLink"] == link(f"{FULL}/{path}")
    assert answer.get("items") != []
    assert "nextPageToken" not in answer


def test_a_list_comes_in_pages(google: Caller) -> None:
    names, token = [], ""
    while True:
        query: Json = {"maxResults": "3"} | ({"pageToken": token} if token else {})
        answer = google.ok("GET", "zones", **query)
        assert 0 < len(answer["items"]) <= 3
        names += [zone["name"] for zone in answer["items"]]
        if not (token := answer.get("nextPageToken", "")):
            break
    assert names == [zone["name"] for zone in google.ok("GET", "zones")["items"]]
    assert len(names) == len(set(names)) > 9


def test_an_aggregated_list_names_every_place(net: Caller) -> None:
    instance = net.instance()
    answer = net.ok("GET", "aggregated/instances", returnPartialSuccess="True")
    assert answer["kind"] == "compute#instanceAggregatedList"
    assert [i["name"] for i in answer["items"].pop(ZONAL)["instances"]] == [instance["name"]]
    assert len(answer["items"]) >= 9
    for scope, empty in answer["items"].items():
        assert empty == {
            "warning": {
                "code": "NO_RESULTS_ON_PAGE",
                "message": f"There are no results for scope '{scope}' on this page.",
                "data": [{"key": "scope", "value": scope}],
            }
        }
    none = net.ok("GET", "aggregated/instances", filter="name = other")["items"]
    assert all("warning" in scope for scope in none.values())


def test_a_family_is_its_newest_image(google: Caller) -> None:
    image = google.ok("GET", f"/compute/v1/{DEBIAN}")
    assert (image["kind"], image["family"]) == ("compute#image", "debian-12")
    assert google.call("GET", f"/compute/v1/{DEBIAN}-none")[0] == 404


def test_a_region_shows_what_is_used(net: Caller) -> None:
    net.instance()
    quotas = {q["metric"]: q["usage"] for q in net.ok("GET", REGIONAL)["quotas"]}
    assert (quotas["CPUS"], quotas["INSTANCES"], quotas["DISKS_TOTAL_GB"]) == (2.0, 1.0, 10.0)
    net.change("POST", f"{VM}/stop")
    quotas = {q["metric"]: q["usage"] for q in net.ok("GET", REGIONAL)["quotas"]}
    assert (quotas["CPUS"], quotas["INSTANCES"]) == (0.0, 1.0)


def test_a_project_has_five_networks(google: Caller) -> None:
    for n in range(5):
        google.change("POST", "global/networks", {**NETWORK, "name": f"n{n}"})
    message = "Quota 'NETWORKS' exceeded.  Limit: 5.0 globally."
    refused = google.refused("POST", "global/networks", NETWORK)
    assert refused == (403, "quotaExceeded", message)


def test_metadata_of_the_project_has_a_fingerprint(google: Caller) -> None:
    read = google.ok("GET", "")["commonInstanceMetadata"]["fingerprint"]
    body = {"items": [{"key": "k", "value": "v"}], "fingerprint": read}
    google.change("POST", "setCommonInstanceMetadata", body)
    assert google.call("POST", "setCommonInstanceMetadata", body)[0] == 412
    assert google.ok("GET", "")["commonInstanceMetadata"]["items"] == body["items"]


def test_guest_attributes_and_console_are_read(net: Caller) -> None:
    instance = net.instance()
    assert net.refused("GET", f"{VM}/getGuestAttributes", queryPath="hostkeys/")[0] == 404
    net.cloud.guest_attributes[instance["id"]] = {"hostkeys/ssh-rsa": "A", "other/x": "B"}
    answer = net.ok("GET", f"{VM}/getGuestAttributes", queryPath="hostkeys/")
    assert answer["queryValue"]["items"] == [
        {"namespace": "hostkeys", "key": "ssh-rsa", "value": "A"}
    ]
    net.cloud.machine(instance).console.write_bytes(b"hello\xff world")
    answer = net.ok("GET", f"{VM}/serialPort", start="7")
    assert (answer["contents"], answer["next"]) == ("\ufffd world"[2:], "12")


# Service accounts: an envelope with a status


def test_a_service_account_exists_once(google: Caller) -> None:
    path = f"/v1/{FULL}/serviceAccounts"
    iam: Json = {"host": "iam.googleapis.com"}
    google.ok("POST", path, {"accountId": "server"}, **iam)
    message = f"Service account server already exists within project {FULL}."
    status, answer = google.call("POST", path, {"accountId": "server"}, **iam)
    entry = {"message": message, "domain": "global", "reason": "alreadyExists"}
    assert status == 409
    assert answer["error"] == {
        "code": 409,
        "message": message,
        "errors": [entry],
        "status": "ALREADY_EXISTS",
    }
    assert google.call("POST", path, {}, **iam)[0] == 400
    email = f"server@{PROJECT}.iam.gserviceaccount.com"
    assert google.ok("GET", f"{path}/{email}", **iam)["email"] == email
    google.ok("DELETE", f"{path}/{email}", **iam)
    assert google.call("GET", f"{path}/{email}", **iam)[0] == 404


def test_permissions_may_be_asked_for(google: Caller) -> None:
    google.cloud.identities.grant(ACCOUNT, {"compute.instances.get"})
    asked = {"permissions": ["compute.instances.get", "compute.instances.create"]}
    path, host = f"/v1/{FULL}:testIamPermissions", "cloudresourcemanager.googleapis.com"
    answer = google.ok("POST", path, asked, host=host)
    assert answer == {"permissions": ["compute.instances.get"]}


def test_an_error_body_has_a_status_where_googles_has() -> None:
    assert "status" not in errors.not_found("x").body(classic=True)["error"]
    assert errors.not_found("x").body(classic=False)["error"]["status"] == "NOT_FOUND"


def test_an_allow_rule_patched_into_a_deny_rule_denies(google: Caller) -> None:
    google.network()
    google.instance()
    allow = [{"IPProtocol": "tcp", "ports": ["22"]}]
    rule = {"name": "r", "network": "global/networks/net", "allowed": allow}
    google.change("POST", "global/firewalls", rule)
    assert "th dport { 22 } accept" in google.cloud.vpc("net").rulesets[-1]
    google.change("PATCH", "global/firewalls/r", {"allowed": [], "denied": allow})
    assert "allowed" not in google.ok("GET", "global/firewalls/r")
    assert "th dport { 22 } goto refused" in google.cloud.vpc("net").rulesets[-1]
    google.change("PATCH", "global/firewalls/r", {"sourceRanges": ["10.0.0.0/8"]})
    google.change("PATCH", "global/firewalls/r", {"sourceRanges": [], "targetTags": []})
    assert google.ok("GET", "global/firewalls/r")["sourceRanges"] == ["0.0.0.0/0"]
