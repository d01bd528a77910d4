"""The Compute client, by Google's own library, against a cloud on paper."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.client import IncompleteRead, RemoteDisconnected
from threading import Barrier, Lock, local
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from google.auth.exceptions import TransportError
from httplib2 import Response, ServerNotFoundError

from blocks.compute import ApiError, Compute, DeadlinePassed, Remedy, Run, described
from rehearsal.faults import KNOWN, Fault
from tests.paper import Caller, paper, vm

RUN = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
API = described("compute", "v1")
ZONE: dict[str, Any] = {"zone": "us-central1-a"}


@dataclass
class PaperHttp:
    """What googleapiclient sends its requests through; ``losing`` answers are lost on the way."""

    caller: Caller
    losing: int = 0
    loss: Exception = field(default_factory=lambda: ConnectionResetError("the answer was lost"))
    asked: list[str] = field(default_factory=list)

    def request(
        self, uri: str, method: str, body: str | None = None, **_: Any
    ) -> tuple[Response, bytes]:
        url = urlsplit(uri)
        self.asked.append(f"{method} {url.path}")
        raw = (body or "").encode()
        query = dict(parse_qsl(url.query))
        status, answer = self.caller.call(method, url.path, raw, host=url.netloc, **query)
        if self.losing:
            self.losing -= 1
            raise self.loss
        return Response({"status": str(status)}), json.dumps(answer).encode()


@dataclass
class Lab:
    caller: Caller
    http: PaperHttp
    compute: Compute
    slept: list[float]

    def fault(self, method: str, reason: str, count: int = 1) -> None:
        self.caller.cloud.faults.order(Fault(method, reason=reason, count=count))

    def create(self, name: str = "vm", **arguments: Any) -> Any:
        insert = self.compute.service.instances().insert
        return self.compute.change(insert, f"create {name}", **ZONE, body=vm(name), **arguments)

    def status(self, name: str = "vm") -> str | None:
        get = self.compute.service.instances().get
        found = self.compute.read(get(project="rehearsal", instance=name, **ZONE))
        return str(found["status"]) if found else None


@pytest.fixture
def lab() -> Iterator[Lab]:
    with paper() as caller:
        caller.network()
        http, slept = PaperHttp(caller), list[float]()
        compute = Compute("rehearsal", API, Run(RUN), lambda: http, slept.append)
        yield Lab(caller, http, compute, slept)


def test_a_change_ends_when_its_operation_is_done(lab: Lab) -> None:
    assert lab.status() is None
    assert lab.create()["status"] == "DONE"
    assert lab.status() == "RUNNING"


def test_global_and_regional_operations_are_waited_for(lab: Lab) -> None:
    service = lab.compute.service
    body: dict[str, Any] = {"name": "two", "autoCreateSubnetworks": False}
    lab.compute.change(service.networks().insert, "network", body=body)
    region: dict[str, Any] = {"region": "us-central1"}
    lab.compute.change(service.addresses().insert, "address", body={"name": "a"}, **region)
    waits = [path for path in lab.http.asked if path.endswith("/wait")]
    assert [path.split("/")[-4] for path in waits] == ["global", "us-central1"]


def test_a_lost_answer_makes_no_second_machine(lab: Lab) -> None:
    lab.http.losing = 1
    lab.create()
    assert len(lab.slept) == 1
    inserts = [path for path in lab.http.asked if path.startswith("POST") and "/instances" in path]
    assert len(inserts) == 2
    assert lab.status() == "RUNNING"


def test_a_later_call_of_the_same_step_is_not_answered_with_an_earlier_failure(lab: Lab) -> None:
    lab.fault("compute.instances.insert", "ZONE_RESOURCE_POOL_EXHAUSTED")
    with pytest.raises(ApiError):
        lab.create()
    lab.create()
    assert lab.status() == "RUNNING"


@dataclass
class Ids:
    """Request ids as they are sent; answers get lost before or after the effect."""

    http: PaperHttp
    losing: str = ""
    sent: list[str] = field(default_factory=list)

    def request(self, uri: str, method: str, **rest: Any) -> tuple[Response, bytes]:
        self.sent += [v for k, v in parse_qsl(urlsplit(uri).query) if k == "requestId"]
        losing, self.losing = self.losing, ""
        if losing == "before":
            raise ConnectionResetError
        answer = self.http.request(uri, method, **rest)
        if losing == "after":
            raise ConnectionResetError
        return answer


def ids(lab: Lab, losing: str = "", **run: Any) -> tuple[Compute, list[str]]:
    """A client of a run, and the ids that it sends."""
    http = Ids(lab.http, losing)
    one = run.get("run", Run(RUN))
    return Compute("rehearsal", API, one, lambda: http, lab.slept.append), http.sent


def label(compute: Compute, value: str) -> None:
    """A change that can be made again and again."""
    where = {**ZONE, "project": "rehearsal", "instance": "vm"}
    now = compute.read(compute.service.instances().get(**where)) or {}
    body = {"labels": {"x": value}, "labelFingerprint": now["labelFingerprint"]}
    compute.change(compute.service.instances().setLabels, "label", instance="vm", body=body, **ZONE)


@pytest.mark.parametrize("losing", ["before", "after"])
def test_every_try_of_a_call_has_its_id_and_it_has_one_operation(lab: Lab, losing: str) -> None:
    compute, sent = ids(lab, losing)
    insert = compute.service.instances().insert
    made = compute.change(insert, "create vm", body=vm(), **ZONE)
    assert (len(sent), len(set(sent))) == (2, 1)
    assert made["clientOperationId"] == sent[0]
    operations = [o["operationType"] for o in lab.caller.cloud.store.every("operations")]
    assert operations.count("insert") == 3  # network, subnet, vm


def test_ids_follow_from_run_attempt_step_and_turn(lab: Lab) -> None:
    lab.create()
    run = Run(RUN)
    first, sent = ids(lab, run=run)
    second, more = ids(lab, run=run)  # another thread's client
    for client, value in ((first, "a"), (second, "b"), (first, "a")):
        label(client, value)
    assert len({*sent, *more}) == 3
    again, same = ids(lab, run=Run(RUN))
    for value in ("b", "a", "b"):
        label(again, value)
    assert set(same) == {*sent, *more}, "the same run, attempt, step and turn"


def test_a_run_that_is_started_again_is_not_answered_with_what_became_of_it_before(
    lab: Lab,
) -> None:
    """A person retries the very run in the UI, once there is quota."""
    lab.fault("compute.instances.insert", "QUOTA_EXCEEDED")
    compute, sent = ids(lab)
    with pytest.raises(ApiError):
        compute.change(compute.service.instances().insert, "create vm", body=vm(), **ZONE)
    again, more = ids(lab, run=Run(RUN, attempt=2))
    again.change(again.service.instances().insert, "create vm", body=vm(), **ZONE)
    assert not set(sent) & set(more)
    assert lab.status() == "RUNNING"


def test_an_operation_that_failed_for_the_moment_is_begun_anew(lab: Lab) -> None:
    lab.fault("compute.instances.insert", "INTERNAL_ERROR", count=2)
    compute, sent = ids(lab)
    compute.change(compute.service.instances().insert, "create vm", body=vm(), **ZONE)
    assert (len(sent), len(set(sent)), len(lab.slept)) == (3, 3, 2)


@pytest.mark.parametrize("lost", [RemoteDisconnected, IncompleteRead])
def test_half_an_answer_is_a_lost_one(lab: Lab, lost: type[Exception]) -> None:
    lab.http.losing, lab.http.loss = 1, lost("") if lost is RemoteDisconnected else lost(b"")
    lab.create()
    assert lab.status() == "RUNNING"


def test_what_another_run_made_is_to_be_adopted(lab: Lab) -> None:
    lab.create()
    with pytest.raises(ApiError) as error:
        lab.create()
    assert error.value.remedy is Remedy.ADOPT


def test_service_accounts_are_reached_by_the_same_client(lab: Lab) -> None:
    accounts = lab.compute.iam.projects().serviceAccounts()
    body = {"accountId": "prefect-vm", "serviceAccount": {"displayName": "x"}}
    made = lab.compute.ask(accounts.create(name="projects/rehearsal", body=body))
    assert lab.compute.read(accounts.get(name=made["name"])) == made
    assert lab.compute.read(accounts.get(name=made["name"].replace("vm@", "db@"))) is None


def test_an_api_that_is_off_is_named(lab: Lab) -> None:
    lab.caller.cloud.services.enabled.discard("iam.googleapis.com")
    get = lab.compute.iam.projects().serviceAccounts().get
    with pytest.raises(ApiError) as error:
        lab.compute.read(get(name="projects/rehearsal/serviceAccounts/x"))
    assert error.value.repair.endswith("gcloud services enable iam.googleapis.com")


def test_what_the_service_does_not_have_is_not_tried_again(lab: Lab) -> None:
    resume = lab.compute.service.instances().resume
    lab.create()
    with pytest.raises(ApiError) as error:
        lab.compute.change(resume, "resume", instance="vm", **ZONE)
    assert (error.value.code, error.value.remedy, lab.slept) == (501, Remedy.FATAL, [])


@pytest.mark.parametrize("lost", [ConnectionResetError, ServerNotFoundError, TransportError])
def test_no_way_to_google_is_a_lost_answer(lab: Lab, lost: type[Exception]) -> None:
    lab.http.losing, lab.http.loss = 1, lost("the answer was lost")
    lab.create()
    assert (len(lab.slept), lab.status()) == (1, "RUNNING")


@pytest.mark.parametrize("reason", ["backendError", "tooManyRequests", "rateLimitExceeded"])
def test_what_passes_is_tried_again(lab: Lab, reason: str) -> None:
    lab.fault("compute.instances.insert", reason, count=3)
    lab.create()
    assert len(lab.slept) == 3
    assert lab.slept[0] <= 0.5 < lab.slept[2] <= 2


@pytest.mark.parametrize("reason", ["resourceNotReady", "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED"])
def test_what_is_not_ready_is_tried_again_slowly(lab: Lab, reason: str) -> None:
    lab.fault("compute.instances.insert", reason)
    lab.create()
    assert 2.5 <= lab.slept[0] <= 5


@pytest.mark.parametrize(
    ("reason", "remedy", "repair"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", Remedy.OTHER_ZONE, ""),
        ("QUOTA_EXCEEDED", Remedy.FATAL, "Ask for more quota"),
        ("RESOURCE_ALREADY_EXISTS", Remedy.ADOPT, ""),
        ("conditionNotMet", Remedy.REFETCH, ""),
        ("accessNotConfigured", Remedy.FATAL, "gcloud services enable compute.googleapis.com"),
        ("SERVICE_ACCOUNT_ACCESS_DENIED", Remedy.FATAL, "roles/iam.serviceAccountUser"),
    ],
)
def test_what_does_not_pass_says_what_to_do(
    lab: Lab, reason: str, remedy: Remedy, repair: str
) -> None:
    lab.fault("compute.instances.insert", reason)
    with pytest.raises(ApiError) as error:
        lab.create()
    assert (error.value.remedy, lab.slept) == (remedy, [])
    assert repair in error.value.repair


@pytest.mark.parametrize("reason", KNOWN)
def test_every_recorded_error_has_a_reason_and_a_repair(lab: Lab, reason: str) -> None:
    lab.fault("compute.instances.insert", reason, count=99)
    with pytest.raises(ApiError) as error:
        lab.create(seconds=0.3)
    assert error.value.reason
    assert error.value.repair.endswith((".", "googleapis.com"))
    assert error.value.during.endswith(("compute.instances.insert", "create vm"))


def test_a_missing_permission_is_named(lab: Lab) -> None:
    lab.caller.cloud.identities.grant("bootstrap@rehearsal.iam.gserviceaccount.com", [])
    with pytest.raises(ApiError, match=r"Required 'compute.instances.create' permission") as error:
        lab.create()
    assert "role.yaml" in error.value.repair


def test_a_failure_that_stays_ends_at_the_deadline(lab: Lab) -> None:
    lab.fault("compute.instances.insert", "backendError", count=99)
    with pytest.raises(ApiError) as error:
        lab.create(seconds=0.2)
    assert error.value.code == 503


def test_no_network_ends_at_the_deadline_with_the_repair(lab: Lab) -> None:
    lab.http.losing = 99
    with pytest.raises(DeadlinePassed, match="Check the network"):
        lab.create(seconds=0.2)


def test_an_operation_that_takes_too_long_is_named(lab: Lab) -> None:
    lab.caller.cloud.faults.order(Fault("compute.instances.insert", delay=1, operation=True))
    with pytest.raises(DeadlinePassed, match=r"create vm: operation operation-.* is not done"):
        lab.create(seconds=-1)


def test_threads_share_a_client_and_each_has_a_connection_of_its_own(lab: Lab) -> None:
    made: list[PaperHttp] = []
    paper_is_not_for_two = Lock()

    class Connection(PaperHttp):
        def request(self, *args: Any, **rest: Any) -> tuple[Response, bytes]:
            with paper_is_not_for_two:
                return super().request(*args, **rest)

    def connection() -> PaperHttp:
        made.append(Connection(lab.caller))
        return made[-1]

    compute = replace(lab.compute, connection=connection, _here=local())
    all_here = Barrier(4, timeout=30)

    def read(_: int) -> Any:
        all_here.wait()
        where = {**ZONE, "project": "rehearsal"}
        return [compute.ask(compute.service.instances().list(**where)) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(read, range(4)))) == 4
    assert [len(each.asked) for each in made] == [3, 3, 3, 3]


class Part:
    """Of an API as googleapiclient has it, but slow to make."""

    def __init__(self) -> None:
        self.asked = 0

    def parts(self) -> Part:
        self.asked += 1
        time.sleep(0.05)
        return Part()

    parts.__is_resource__ = True  # type: ignore[attr-defined] # googleapiclient marks them so


def test_a_part_of_an_api_is_made_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Part()
    monkeypatch.setattr("googleapiclient.discovery.build", lambda *_, **__: whole)
    described.cache_clear()
    api, all_here = described("compute", "v1"), Barrier(8, timeout=30)
    described.cache_clear()

    def part(_: int) -> Any:
        all_here.wait()
        return api.parts().parts()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(part, range(8))))) == 1
    assert whole.asked == 1
