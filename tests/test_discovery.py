"""Routes and schemas from Google's discovery documents: which method a request is, and what is
refused before any handler sees it."""

import functools
import json
import re
from importlib import resources
from typing import Any

import pytest
from jsonschema import ValidationError

from rehearsal.discovery import Api
from rehearsal.errors import ApiError, Json
from rehearsal.gateway import DOCUMENTS

INSERT = "compute.instances.insert"
NAME = "(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)"


@functools.cache
def api(document: str = "compute.v1") -> Api:
    return Api(document)


def raw_methods(node: Json) -> list[Json]:
    own = list(node.get("methods", {}).values())
    return own + [m for child in node.get("resources", {}).values() for m in raw_methods(child)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_method_is_found_by_its_own_url(document: str) -> None:
    source = resources.files("googleapiclient.discovery_cache.documents") / f"{document}.json"
    methods = raw_methods(json.loads(source.read_text()))
    assert len(methods) == (1025 if document == "compute.v1" else len(api(document).methods))
    for raw in methods:
        names = re.findall(r"\{\+?(\w+)\}", raw["flatPath"])
        sample = {name: f"{name.lower()}-1.x@y" for name in names}
        path = re.sub(r"\{\+?(\w+)\}", lambda m, s=sample: s[m[1]], raw["flatPath"])  # type: ignore[misc]  # bound early
        found = api(document).match(raw["httpMethod"], api(document).base + path)
        assert found is not None, raw["id"]
        assert (found[0].id, found[1]) == (raw["id"], sample)


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/compute/v1/"),
        ("GET", "/compute/v1/projects/p/zones//instances"),
        ("GET", "/compute/v1/projects/p/zones/z/instances/"),
        ("GET", "/compute/v1/projects/p/zones/z/instances/a:b"),
        ("PUT", "/compute/v1/projects/p/zones/z/instances"),
        ("HEAD", "/compute/v1/projects/p"),
        ("GET", "/compute/beta/projects/p"),
        ("GET", "/compute/v1/PROJECTS/p"),
    ],
)
def test_other_paths_are_no_method(verb: str, path: str) -> None:
    assert api().match(verb, path) is None


def test_members_that_only_the_service_sets_are_taken_out() -> None:
    sent = {"name": "n", "id": "5", "status": "RUNNING", "kind": "x", "labels": {"id": "5"}}
    assert api().writable("Instance", sent) == {"name": "n", "labels": {"id": "5"}}
    # Output only in words, in an older schema:
    assert api().writable("Network", {"name": "n", "selfLink": "x"}) == {"name": "n"}
    assert api().writable("Metadata", {"fingerprint": "x"}) == {"fingerprint": "x"}


def refusal(method: str, body: Json, **query: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check(method, body, **query)
    assert caught.value.code == 400
    return caught.value


def check(method: str, body: Json, **query: str) -> None:
    params = {"project": "p", "zone": "z-a", "region": "r", "instance": "i"}
    known = api().methods[method]
    api().check_request(known, {k: v for k, v in params.items() if k in known.path}, query, body)


def body(**members: Any) -> Json:
    return {"name": "vm", **members}


UNKNOWN = 'Invalid JSON payload received. Unknown name "{}"{}: Cannot find field.'
FIELD = "Invalid value for field 'resource.{}': '{}'. Must be {}"


@pytest.mark.parametrize(
    ("members", "reason", "message"),
    [
        ({"nam": "x"}, "badRequest", UNKNOWN.format("nam", "")),
        (
            {"scheduling": {"prio": 1}},
            "badRequest",
            UNKNOWN.format("prio", " at 'resource.scheduling'"),
        ),
        (
            {"disks": [{"boot": True}, {"boat": True}]},
            "badRequest",
            UNKNOWN.format("boat", " at 'resource.disks[1]'"),
        ),
        ({"name": "Vm"}, "invalid", FIELD.format("name", "Vm", f"a match of regex '{NAME}'")),
        ({"name": "vm\n"}, "invalid", FIELD.format("name", "vm\n", f"a match of regex '{NAME}'")),
        ({"name": 7}, "badRequest", "Invalid value at 'resource.name' (string)"),
        ({"name": None}, "badRequest", "Invalid value at 'resource.name' (string)"),
        ({"canIpForward": "yes"}, "badRequest", "Invalid value at 'resource.canIpForward' (boolean)"),
        ({"disks": {}}, "badRequest", "Invalid value at 'resource.disks' (array)"),
        ({"tags": {"items": [1]}}, "badRequest", "Invalid value at 'resource.tags.items[0]' (string)"),
        ({"labels": {"a": 1}}, "badRequest", "Invalid value at 'resource.labels.a' (string)"),
        (
            {"scheduling": {"minNodeCpus": 2**31}},
            "badRequest",
            "Invalid value at 'resource.scheduling.minNodeCpus' (integer)",
        ),
        (
            {"scheduling": {"provisioningModel": "CHEAP"}},
            "invalid",
            FIELD.format("scheduling.provisioningModel", "CHEAP", "one of "),
        ),
        (
            {"disks": [{"diskSizeGb": "ten"}]},
            "invalid",
            FIELD.format("disks[0].diskSizeGb", "ten", "a match of regex '-?[0-9]{1,20}'"),
        ),
    ],
)  # fmt: skip
def test_a_body_that_breaks_the_schema_is_refused_in_googles_words(
    members: Json, reason: str, message: str
) -> None:
    error = refusal(INSERT, body(**members))
    assert (error.reason, error.message[: len(message)]) == (reason, message)
    if not message.endswith("of "):
        assert error.message == message


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"disks": [{"diskSizeGb": "10"}, {"diskSizeGb": 10}]},
        {"scheduling": {"minNodeCpus": 2**31 - 1, "provisioningModel": "SPOT"}},
        {"labels": {"a": "b"}},
        {"description": ""},
    ],
)
def test_a_body_that_fits_passes(members: Json) -> None:
    check(INSERT, body(**members))


@pytest.mark.parametrize(
    "size", ["\u0661\u0660", "1" * 5000, 10.5, True, 10**30, "", "1 ", " 1", "0x10", "1\n"]
)
def test_a_64_bit_number_is_digits_or_a_number(size: object) -> None:
    refusal(INSERT, body(disks=[{"diskSizeGb": size}]))


def test_a_missing_member_is_named() -> None:
    assert refusal(INSERT, {}).message == "Required field 'resource.name' not specified"
    assert refusal(INSERT, {}).reason == "required"


@pytest.mark.parametrize(
    ("method", "query", "message"),
    [
        (
            "compute.instances.list",
            {"max_results": "5"},
            (
                'Invalid JSON payload received. Unknown name "max_results": Cannot bind query '
                "parameter. Field 'max_results' could not be found in request message."
            ),
        ),
        ("compute.instances.list", {"maxResults": "501"}, None),
        ("compute.instances.list", {"maxResults": "-1"}, None),
        ("compute.instances.list", {"maxResults": "many"}, None),
        ("compute.instances.list", {"maxResults": "9" * 5000}, None),
        ("compute.instances.list", {"maxResults": "\u0663"}, None),
        ("compute.instances.list", {"maxResults": ""}, None),
        ("compute.instances.list", {"alt": "xml"}, None),
        ("compute.instances.list", {"prettyPrint": "yes"}, None),
        ("compute.instances.getSerialPortOutput", {"start": "x"}, None),
    ],
)
def test_a_query_that_breaks_the_schema_is_refused(
    method: str, query: dict[str, str], message: str | None
) -> None:
    [(name, value)] = query.items()
    expected = message or f"Invalid value '{value}' for parameter '{name}'."
    assert refusal(method, {}, **query).message == expected


@pytest.mark.parametrize(
    "query",
    [
        {"maxResults": "500", "pageToken": "x", "filter": "y", "orderBy": "name"},
        {"returnPartialSuccess": "True"},  # gcloud sends it
        {"$alt": "json;enum-encoding=int"},  # Google's generated REST clients send it
        {"alt": "json", "fields": "items", "prettyPrint": "False", "key": "k"},
    ],
)
def test_a_query_that_clients_send_passes(query: dict[str, str]) -> None:
    check("compute.instances.list", {}, **query)


def test_a_query_that_is_required_is_asked_for() -> None:
    error = refusal("compute.instances.detachDisk", {})
    assert (error.reason, error.message) == (
        "required",
        "Required field 'deviceName' not specified",
    )


def test_a_method_without_a_body_takes_none() -> None:
    expected = "Invalid JSON payload received. This method takes no body."
    assert refusal("compute.instances.stop", {"x": 1}).message == expected


def test_a_path_parameter_has_a_pattern() -> None:
    method = api().methods["compute.zones.get"]
    with pytest.raises(ApiError, match=r"field 'resource\.zone': 'Z'\. Must be a match of regex"):
        api().check_request(method, {"project": "p", "zone": "Z"}, {}, {})


def test_our_own_answer_is_held_to_the_schema() -> None:
    method = api().methods["compute.instances.get"]
    api().check_response(method, {"kind": "compute#instance", "status": "RUNNING"})
    for answer in ({"status": "ASLEEP"}, {"nam": "x"}, {"id": 1.5}):
        with pytest.raises(ValidationError):
            api().check_response(method, answer)
