"""Whatever a client sends, it is answered: never with a 500, and never with a silent yes.

Bodies are generated from the discovery documents' schemas, over a body that works, so that they get
as far as the handlers; then one is broken where the schema can see it. Operations count too: one
that ends with INTERNAL_ERROR is a 500 that came late.
"""

import asyncio
import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rehearsal import instances  # noqa: F401 - registers handlers
from rehearsal.config import PROJECT, REGION, ZONE
from rehearsal.discovery import Api, Method
from rehearsal.errors import Json
from rehearsal.gateway import DOCUMENTS, HANDLERS
from tests.paper import DEBIAN, REGIONAL, ZONAL, Caller, paper, vm

bounded = functools.partial(
    settings, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

SUBNET = f"{REGIONAL}/subnetworks/net-sub"
FIREWALL: Json = {
    "name": "fw",
    "network": "global/networks/net",
    "allowed": [{"IPProtocol": "tcp"}],
}
NAT: Json = {
    "name": "nat",
    "natIpAllocateOption": "AUTO_ONLY",
    "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES",
}
WORKS: dict[str, Json] = {
    "compute.instances.insert": vm("new"),
    "compute.instances.setMachineType": {"machineType": f"{ZONAL}/machineTypes/e2-small"},
    "compute.instances.attachDisk": {"source": f"{ZONAL}/disks/d"},
    "compute.networks.insert": {"name": "new"},
    "compute.subnetworks.insert": {
        "name": "new",
        "network": "global/networks/net",
        "ipCidrRange": "10.7.0.0/24",
    },
    "compute.subnetworks.expandIpCidrRange": {"ipCidrRange": "10.0.0.0/16"},
    "compute.firewalls.insert": {**FIREWALL, "name": "new"},
    "compute.firewalls.patch": {"name": "fw"},
    "compute.firewalls.update": FIREWALL,
    "compute.routers.insert": {"name": "new", "network": "global/networks/net"},
    "compute.addresses.insert": {"name": "new"},
    "compute.disks.insert": {"name": "new"},
    "compute.disks.resize": {"sizeGb": "20"},
    "compute.disks.createSnapshot": {"name": "new"},
    "compute.snapshots.insert": {"name": "new", "sourceDisk": f"{ZONAL}/disks/d"},
    "iam.projects.serviceAccounts.create": {"accountId": "account"},
}
"""A body that is accepted, for methods that need more than an empty one."""
NAMES = {
    "project": PROJECT, "projectsId": PROJECT, "zone": ZONE, "region": REGION, "instance": "vm",
    "network": "net", "subnetwork": "net-sub", "firewall": "fw", "router": "r", "address": "a",
    "disk": "d", "snapshot": "s",
}  # fmt: skip
LABELLED = {"instances": "vm", "disks": "d", "addresses": "a", "snapshots": "s"}
TEXTS = [
    "", "x", "vm", "d", "nic0", "new-name", "default", "10.0.0.9", "10.0.0.0/24", "10.8.0.0/16", "::1/128",
    "0.0.0.0/0", "-1", "0", "10", "65536", "99999999999999999999", "a" * 70, "Ünï 💥", "22", "80-90",
    "tcp", "all", "e@p.iam.gserviceaccount.com", "global/networks/net", "global/networks/none", SUBNET,
    f"{ZONAL}/machineTypes/e2-micro", f"{ZONAL}/diskTypes/pd-ssd", f"{ZONAL}/disks/d",
    "global/snapshots/s", DEBIAN, ZONAL, REGIONAL, "https://example.com/compute/v1/global/networks/net",
    "a\nb", "../..", "'; drop", "{", "null",
]  # fmt: skip
DEEP = json.loads('{"x": [' * 60 + "]}" * 60)


@functools.cache
def apis() -> list[Api]:
    return [Api(document) for document in DOCUMENTS]


@functools.cache
def writers() -> dict[str, tuple[Api, Method]]:
    """Every implemented method that takes a body."""
    return {
        m.id: (api, m)
        for api in apis()
        for m in api.methods.values()
        if m.id in HANDLERS and m.request
    }


def url(api: Api, method: Method) -> str:
    """A path of the method at which there is something."""
    own = LABELLED.get(method.collection.rpartition(".")[2], "x")

    def name(match: re.Match[str]) -> str:
        return NAMES.get(match[1], own)

    return api.base + re.sub(r"\(\?P<(\w+)>\[\^/:\]\+\)", name, method.route.pattern).replace(
        "\\", ""
    )


@contextmanager
def furnished() -> Iterator[Caller]:
    """A cloud that has one of everything."""
    with paper() as google:
        google.network()
        google.change("POST", f"{ZONAL}/instances", vm())
        google.change("POST", "global/firewalls", FIREWALL)
        router = {"name": "r", "network": "global/networks/net", "nats": [NAT]}
        google.change("POST", f"{REGIONAL}/routers", router)
        google.change("POST", f"{REGIONAL}/addresses", {"name": "a"})
        google.change("POST", f"{ZONAL}/disks", {"name": "d"})
        google.change("POST", f"{ZONAL}/disks/d/createSnapshot", {"name": "s"})
        yield google


@pytest.fixture(scope="module")
def google() -> Iterator[Caller]:
    """One for all tests that change nothing in it."""
    with furnished() as caller:
        yield caller


# Bodies that fit the schema


@st.composite
def fitting(draw: Callable[[Any], Any], api: Api, schema: Json, depth: int = 0) -> Any:
    """A value that fits a discovery schema: few members, from values that mean something here."""
    if "$ref" in schema:
        schema = api.schemas[schema["$ref"]]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    match schema.get("type"):
        case "object" if "properties" in schema:
            known = sorted(schema["properties"])
            few = st.lists(st.sampled_from(known), unique=True, max_size=4 if depth else 6)
            chosen = draw(few) if known and depth < 4 else []
            return {k: draw(fitting(api, schema["properties"][k], depth + 1)) for k in chosen}
        case "object":
            inner = schema.get("additionalProperties", {})
            keys = draw(st.lists(st.sampled_from(["a", "env", "Ünï", "", "x" * 70]), max_size=2))
            return {key: draw(fitting(api, inner, depth + 1)) for key in keys}
        case "array":
            size = draw(st.integers(0, 2)) if depth < 4 else 0
            return [draw(fitting(api, schema["items"], depth + 1)) for _ in range(size)]
        case "boolean":
            return draw(st.booleans())
        case "integer" if schema.get("format") == "uint32":
            return draw(st.sampled_from([0, 1, 1000, 2**32 - 1]))
        case "integer":
            return draw(st.sampled_from([0, 1, -1, 1000, 65535, 65536, 2**31 - 1, -(2**31)]))
        case "number":
            return draw(st.sampled_from([0, 1.5, -1e300]))
        case "string" if schema.get("format") in ("int64", "uint64"):
            return draw(st.sampled_from(["0", "1", "10", "20", "-5", 30, 2**62]))
        case "string":
            fit = [t for t in TEXTS if re.fullmatch(schema.get("pattern", "(?s:.*)"), t)]
            return draw(st.sampled_from(fit or [""]))
    return draw(st.sampled_from(["x", 1, None, [], {}]))


@st.composite
def requests(draw: Callable[[Any], Any]) -> tuple[str, Json]:
    """A method, and a body that fits it: what works, with some members more or other."""
    name = draw(st.sampled_from(sorted(writers())))
    api, method = writers()[name]
    extra = draw(fitting(api, {"$ref": method.request}))
    return name, {**WORKS.get(name, {}), **extra}


async def sent(google: Caller, name: str, body: Json | bytes) -> tuple[int, Json]:
    """Status and answer, or the operation when it is done."""
    api, method = writers()[name]
    path = url(api, method)
    query = {k: "nic0" for k, v in method.query.items() if v.get("required")}
    status, answer = await google.asks(method.verb, path, body, host=api.host, **query)
    if status == 200 and answer.get("kind") == "compute#operation":
        wait = answer["selfLink"].partition(".com")[2] + "/wait"
        status, answer = await google.asks("POST", wait)
    return status, answer


def complete(google: Caller, name: str, body: Json) -> Json:
    """The body with the fingerprint of what it changes, as of a client that has just read it."""
    api, method = writers()[name]
    read = google.ok("GET", f"{ZONAL}/instances/vm")
    fresh = {
        "compute.instances.setMetadata": read["metadata"],
        "compute.instances.setTags": read["tags"],
        "compute.projects.setCommonInstanceMetadata": google.ok("GET", "")[
            "commonInstanceMetadata"
        ],
        "compute.subnetworks.patch": google.ok("GET", SUBNET),
    }.get(name, {})
    if method.action == "setLabels":
        path = url(api, method).rpartition("/")[0]
        return {**body, "labelFingerprint": google.ok("GET", path)["labelFingerprint"]}
    return {**body, "fingerprint": fresh["fingerprint"]} if fresh else body


@pytest.mark.parametrize("name", sorted(WORKS))
def test_the_bodies_it_starts_from_work(name: str) -> None:
    with furnished() as google:
        if name == "compute.instances.setMachineType":
            google.change("POST", f"{ZONAL}/instances/vm/stop")
        status, answer = google.run(sent(google, name, WORKS[name]))
        assert (status, answer.get("error")) == (200, None)


@bounded(max_examples=300)
@given(requests())
def test_a_body_that_fits_the_schema_never_crashes(request: tuple[str, Json]) -> None:
    name, body = request
    with furnished() as google:
        status, answer = google.run(sent(google, name, complete(google, name, body)))
        assert status != 500, answer
        codes = [e["code"] for e in answer.get("error", {}).get("errors", ()) if "code" in e]
        assert "INTERNAL_ERROR" not in codes, answer
        for vpc in ("net", *(["new"] if len(google.cloud.vpcs) > 1 else [])):
            link = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/networks/{vpc}"
            if link in google.cloud.vpcs:
                text = google.cloud.vpc(vpc).rulesets[-1]
                assert re.fullmatch(r'[\w {}.,/:"!=;\n-]*', text)  # nothing but nftables' words
        for listed in LISTS:
            google.ok("GET", listed)


# Bodies that do not


def places(
    api: Api, schema: Json, value: Any, *, top: bool = True
) -> Iterator[tuple[Any, Any, Json]]:
    """(container, key, schema) of everything in a body that the schema speaks of."""
    if "$ref" in schema:
        schema = api.schemas[schema["$ref"]]
    if isinstance(value, dict) and "properties" in schema:
        yield value, None, schema
        kept = api.writable(schema["id"], value) if top else value
        members = [(k, schema["properties"][k]) for k in kept if k in schema["properties"]]
    elif isinstance(value, dict):
        members = [
            (k, schema["additionalProperties"]) for k in value if "additionalProperties" in schema
        ]
    elif isinstance(value, list) and "items" in schema:
        yield value, None, schema
        members = [(i, schema["items"]) for i in range(len(value))]
    else:
        return
    for key, inner in members:
        resolved = api.schemas[inner["$ref"]] if "$ref" in inner else inner
        yield value, key, resolved
        yield from places(api, inner, value[key], top=False)


def wrong(schema: Json) -> list[Any]:
    """Values that do not fit."""
    kind, sized = schema.get("type"), schema.get("format") in ("int64", "uint64")
    values: list[tuple[str, Any]] = [
        ("null", None), ("boolean", True), ("number", 1.5), ("object", {}), ("object", DEEP),
        ("array", []), ("string", "text"), ("number", 10**40), ("number", -(10**40)),
    ]  # fmt: skip
    unfit = [v for k, v in values if k != kind and not (k == "object" and "properties" in schema)]
    if kind in (None, "any"):
        return []
    if sized:
        unfit += ["text", "1.5", "", "1" * 5000, "\u0663"]
    if "enum" in schema:
        unfit += ["NO_SUCH_VALUE", ""] if "" not in schema["enum"] else ["NO_SUCH_VALUE"]
    if "pattern" in schema and not sized:
        unfit += [t for t in ("Not a Name!", "a\n") if not re.fullmatch(schema["pattern"], t)]
    return unfit


@st.composite
def broken(draw: Callable[[Any], Any]) -> tuple[str, Json]:
    """A body with one thing in it that its schema does not allow."""
    name, body = draw(requests())
    api, method = writers()[name]
    body = json.loads(json.dumps(body))
    where = [p for p in places(api, {"$ref": method.request}, body) if p[1] is None or wrong(p[2])]
    container, key, schema = draw(st.sampled_from(where))
    if key is not None:
        container[key] = draw(st.sampled_from(wrong(schema)))
    elif isinstance(container, list):
        items = (
            api.schemas[schema["items"]["$ref"]] if "$ref" in schema["items"] else schema["items"]
        )
        container.append(draw(st.sampled_from(wrong(items) or [None])))
        if not wrong(items):
            body["unknown"] = 1
    else:
        container[draw(st.sampled_from(["unknown", "nam", "Name", "", "💥", "__class__"]))] = 1
    return name, body


@bounded(max_examples=500)
@given(request=broken())
def test_a_body_that_breaks_the_schema_is_always_refused(
    google: Caller, request: tuple[str, Json]
) -> None:
    name, body = request
    status, answer = google.run(sent(google, name, body))
    assert status == 400, answer
    assert answer["error"]["message"]


NO_JSON = [
    b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"\x00", b"{'name': 1}", b'{"name": NaN}',
    b'{"name": Infinity}', b'{"name": "\\ud800"}', b'{"\\udfff": 1}', b"[" * 100_000,
    b'{"a":' * 100_000, b'{"name":"x"} {}', b'{"name":"x",}', b'{"a": ' + b"9" * 5000 + b"}",
    b'{"metadata": ' + b'{"a": [' * 300 + b"1" + b"]}" * 300 + b"}", "{“name”: 1}".encode(),
    b"<xml/>", b"name=x",
]  # fmt: skip


@pytest.mark.parametrize("raw", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_object_is_refused(google: Caller, raw: bytes) -> None:
    for name in ("compute.instances.insert", "compute.firewalls.patch", "compute.disks.setLabels"):
        assert google.run(sent(google, name, raw))[0] == 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_refused(google: Caller, number: str) -> None:
    name = "compute.subnetworks.insert"
    body = json.dumps({**WORKS[name], "logConfig": {"flowSampling": 0.5}}).replace("0.5", number)
    assert google.run(sent(google, name, body.encode()))[0] == 400


@bounded(max_examples=100)
@given(raw=st.binary(max_size=40), name=st.sampled_from(sorted(WORKS)))
def test_random_bytes_are_refused(google: Caller, raw: bytes, name: str) -> None:
    whole = json.dumps(WORKS[name]).encode()
    for body in (
        raw or b"x",
        whole[: min(len(raw), len(whole) - 1)] or b"x",
        whole + (raw.strip() or b"x"),
    ):
        assert google.run(sent(google, name, body))[0] == 400


def test_an_empty_body_is_an_empty_object(google: Caller) -> None:
    for name, (api, method) in sorted(writers().items()):
        with furnished() as fresh:
            path = url(api, method)
            empty, _ = fresh.call(method.verb, path, b"", host=api.host)
            assert empty != 500, name
        assert google.call(method.verb, path, b"[]", host=api.host)[0] == 400


# Queries, filters and paths

LISTS = [
    f"{ZONAL}/instances", f"{ZONAL}/disks", f"{REGIONAL}/subnetworks", f"{REGIONAL}/routers",
    f"{REGIONAL}/addresses", "global/networks", "global/firewalls", "global/snapshots", "zones",
    "aggregated/instances",
]  # fmt: skip
WORDS = [
    "name", "status", "labels.env", "=", "!=", ":", "eq", "ne", "<", ">=", "vm", '"vm.*"', "'vm'", '"',
    "'", "(", ")", "AND", "OR", "NOT", "RUNNING", "*", "\\", "1", "é", ".", "a.b.c", '"[a"', '"(x+"',
]  # fmt: skip


@bounded(max_examples=150)
@given(
    path=st.sampled_from(LISTS),
    query=st.dictionaries(
        st.sampled_from(
            ["maxResults", "pageToken", "orderBy", "filter", "alt", "fields", "$alt", "includeAllScopes",
             "returnPartialSuccess", "prettyPrint", "requestId", "unknown", "", "é"]
        ),
        st.one_of(st.sampled_from(["", "0", "1", "501", "true", "True", "name", "\u0663", "-1", "9" * 5000]),
                  st.text(max_size=12)),
        max_size=3,
    ),
)  # fmt: skip
def test_a_random_query_is_answered(google: Caller, path: str, query: Json) -> None:
    status, answer = google.run(google.asks("GET", path, **query))
    assert status in (200, 400), answer
    if {"unknown", "", "é", "requestId"} & query.keys():
        assert status == 400


@bounded(max_examples=250)
@given(words=st.lists(st.sampled_from(WORDS), max_size=9), glue=st.sampled_from([" ", ""]))
def test_a_random_filter_is_answered(google: Caller, words: list[str], glue: str) -> None:
    for path in ("zones", "aggregated/instances"):
        status, answer = google.run(google.asks("GET", path, filter=glue.join(words)))
        assert status in (200, 400), answer


@bounded(max_examples=200)
@given(
    verb=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "X"]),
    parts=st.lists(
        st.one_of(
            st.sampled_from(["projects", PROJECT, "zones", ZONE, "global", "instances", "vm", "networks",
                             "net", "operations", "wait", "-", "", "..", "%2F", "1", "family", "regions"]),
            st.text(max_size=6),
        ),
        max_size=8,
    ),
    host=st.sampled_from(["compute.googleapis.com", "www.googleapis.com", "iam.googleapis.com",
                          "secretmanager.googleapis.com", "elsewhere", ""]),
)  # fmt: skip
def test_a_random_path_is_answered(verb: str, parts: list[str], host: str) -> None:
    with paper() as google:
        for base in ("/compute/v1/projects", "/v1", ""):
            path = "/".join([base, *parts])
            if path.startswith("/"):
                status, _ = google.call(verb, path, host=host)
                assert status != 500


@bounded(max_examples=100)
@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"Bearer [\w-]+\.[\w-]+\.[\w-]+")))
def test_a_random_authorization_is_nobody(text: str) -> None:
    with paper() as google:
        google.authorization = text
        assert google.call("GET", "zones")[0] == 401


def test_a_thousand_requests_at_once_are_all_answered(google: Caller) -> None:
    async def storm() -> list[tuple[int, Json]]:
        calls = [google.asks("GET", LISTS[n % len(LISTS)]) for n in range(1000)]
        return await asyncio.gather(*calls)

    assert {status for status, _ in google.run(storm())} == {200}
