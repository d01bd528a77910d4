"""What a spec takes and what it refuses: in the flow, in the form, and for the values of the secrets."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError as FormError
from prefect.utilities.schema_tools.validation import is_valid_schema, validate
from prefect.utilities.templating import apply_values
from pydantic import ValidationError

from flows.spec import IAP_RANGE, OWNER_LABEL, ServerSpec, check_auth_string, check_database_url

MINIMAL: dict[str, Any] = yaml.safe_load("""
name: prefect-1
project: my-project-123
zone: europe-west4-a
auth_secret: {block: prefect-auth}
database_url_secret: {block: prefect-database-url}
""")


@flow(name="takes-a-spec")
def takes_a_spec(spec: ServerSpec) -> None:
    """A flow as bootstrap-server is one: its form is the spec's."""


FORM = parameter_schema(takes_a_spec).model_dump(exclude_unset=True)


def changed(path: str, value: object) -> dict[str, Any]:
    """The smallest spec with one value set; ``network.cidr`` is the key cidr of the group network."""
    spec = copy.deepcopy(MINIMAL)
    *groups, key = path.split(".")
    inner = spec
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[key] = value
    return spec


def ignoring(**entry: object) -> list[dict[str, object]]:
    """An ignore list of one entry."""
    return [{"resource": "instance prefect-1", "reason": "resized for a test", **entry}]


def form_errors(spec: object) -> list[str]:
    return [error.message for error in validate({"spec": spec}, FORM)]


def test_the_smallest_spec_has_a_default_for_the_rest() -> None:
    assert ServerSpec.model_validate(MINIMAL).model_dump(mode="json") == {
        "name": "prefect-1",
        "project": "my-project-123",
        "zone": "europe-west4-a",
        "auth_secret": {"kind": "gcp-secret", "block": "prefect-auth"},
        "database_url_secret": {"kind": "gcp-secret", "block": "prefect-database-url"},
        "region": "europe-west4",
        "zones": [],
        "network": {
            "name": "",
            "subnet": "",
            "router": "",
            "project": "",
            "cidr": "10.10.0.0/24",
            "nat": True,
            "clients": [],
        },
        "machine": {
            "type": "e2-medium",
            "disk_gb": 10,
            "labels": {},
            "service_account": "",
            "downtime": "allowed",
            "ssh_user": "bootstrap",
        },
        "prefect": {"version": "3.8.8", "uv_version": "0.13.9", "install_from": "index"},
        "server": {"port": 4200, "ui_api_url": "/api", "events_days": 7, "flow_runs_days": 30},
        "self_check": {
            "interval_seconds": 300,
            "answer_seconds": 5,
            "late_seconds": 120,
            "silence_seconds": 600,
            "worker_seconds": 90,
            "event_seconds": 30,
            "disk_free_percent": 10,
            "memory_free_percent": 10,
            "load_per_cpu": 4,
            "clock_seconds": 2,
            "connections_free_percent": 10,
            "growth_mb": 256,
            "transaction_seconds": 900,
            "dead_percent": 50,
            "certificate_days": 14,
            "keep_runs": 300,
        },
        "notify": "",
        "heal": "off",
        "ignore": [],
    }
    assert form_errors(MINIMAL) == []


ACCEPTED = [
    ("name", "a"),
    ("name", "a" * 40),
    ("zone", "northamerica-northeast1-c"),
    ("zone", "us-central1-ai1a"),
    ("region", "europe-west4"),
    ("region", ""),
    ("auth_secret.kind", "prefect-secret"),
    ("zones", ["europe-west4-b", "europe-west4-c"]),
    ("network.name", "n" * 63),
    ("network", {"name": "net", "subnet": "sub", "router": "nat", "project": "host-123"}),
    ("network.cidr", "10.0.0.0/8"),
    ("network.cidr", "172.31.255.248/29"),
    ("network.cidr", "192.168.0.0/16"),
    ("network.clients", ["10.0.0.0/8", "172.16.0.0/12", "192.168.7.9/32"]),
    ("machine.type", "e2-custom-2-4096"),
    ("machine.disk_gb", 65536),
    ("machine.labels", {"team": "", "cost-centre_2": "7_a-b"}),
    ("machine.service_account", "prefect-vm@my-project-123.iam.gserviceaccount.com"),
    ("machine.ssh_user", "_deploy"),
    ("machine.ssh_user", "prefect-admin"),
    ("network", {"nat": False, "name": "prefect-net"}),
    ("prefect.install_from", "laptop"),
    ("prefect.version", "3.6.22"),
    ("prefect.version", "3.6.100"),
    ("prefect.version", "3.7.0"),
    ("prefect.version", "3.10.3"),
    ("server.port", 1024),
    ("server.port", 65535),
    ("server.ui_api_url", "https://prefect.example.org/api"),
    ("server.ui_api_url", "https://example.org:8443/prefect/api"),
    ("self_check.interval_seconds", 60),
    ("self_check.interval_seconds", 86400),
    ("self_check.answer_seconds", 1),
    ("self_check.answer_seconds", 60),
    ("self_check.late_seconds", 60),
    ("self_check.late_seconds", 1800),
    ("self_check.silence_seconds", 60),
    ("self_check.silence_seconds", 86400),
    ("self_check.worker_seconds", 60),
    ("self_check.worker_seconds", 3600),
    ("self_check.event_seconds", 5),
    ("self_check.event_seconds", 60),
    ("self_check.disk_free_percent", 1),
    ("self_check.disk_free_percent", 50),
    ("self_check.memory_free_percent", 1),
    ("self_check.memory_free_percent", 50),
    ("self_check.load_per_cpu", 1),
    ("self_check.load_per_cpu", 100),
    ("self_check.clock_seconds", 1),
    ("self_check.clock_seconds", 60),
    ("self_check.connections_free_percent", 1),
    ("self_check.connections_free_percent", 50),
    ("self_check.growth_mb", 1),
    ("self_check.growth_mb", 65536),
    ("self_check.transaction_seconds", 20),
    ("self_check.transaction_seconds", 86400),
    ("self_check.dead_percent", 5),
    ("self_check.dead_percent", 95),
    ("self_check.certificate_days", 0),
    ("self_check.certificate_days", 90),
    ("self_check.keep_runs", 10),
    ("self_check.keep_runs", 10000),
    ("notify", ""),
    ("notify", "slack-webhook/alerts"),
    ("notify", "ms-teams-webhook/on-call-2"),
    ("heal", "safe"),
    ("heal", "all"),
    ("ignore", ignoring()),
    ("ignore", ignoring(resource="firewall rule *", attribute="source*", until="2028-02-29")),
    ("ignore", ignoring(resource="*", until="")),
]


@pytest.mark.parametrize(("path", "value"), ACCEPTED)
def test_what_is_right_is_accepted_by_flow_and_form_alike(path: str, value: object) -> None:
    spec = changed(path, value)
    ServerSpec.model_validate(spec)
    assert form_errors(spec) == []


REFUSED: list[tuple[str, object, str]] = [
    ("name", "Prefect-1", "such as prefect-1"),
    ("name", "1-prefect", "a letter first"),
    ("name", "prefect-", "no dash last"),
    ("name", "p" * 41, "up to 40"),
    ("name", "", "such as prefect-1"),
    ("project", "My Project", "id, not its title"),
    ("project", "123456789012", "id, not its title or number"),
    ("zone", "europe-west4", "such as europe-west4-a"),
    ("region", "europe-west4-a", "such as europe-west4,"),
    ("zones", ["europe-west4"], "such as europe-west4-a"),
    ("auth_secret.block", "prefect_auth", "such as prefect-auth"),
    ("auth_secret.kind", "secret", "'gcp-secret'"),
    ("network.name", "Net", "such as prefect-net"),
    ("network.subnet", "s" * 64, "up to 63"),
    ("network.router", "Nat", "such as prefect-net"),
    ("network.project", "Host", "id of a shared VPC's host project"),
    ("network.cidr", "10.10.0.0", "such as 10.10.0.0/24"),
    ("network.cidr", "10.10.0.0/7", "from /8 to /29"),
    ("network.cidr", "10.10.0.0/30", "from /8 to /29"),
    ("network.cidr", "10.10.0.256/24", "such as 10.10.0.0/24"),
    ("network.cidr", "172.16.0.0/11", "private (RFC 1918)"),
    ("network.cidr", "172.32.0.0/16", "private (RFC 1918)"),
    ("network.cidr", "192.168.0.0/15", "private (RFC 1918)"),
    ("network.cidr", "8.8.8.0/24", "private (RFC 1918)"),
    ("network.cidr", "fd00::/64", "IPv4"),
    ("network.clients", ["0.0.0.0/0"], "such as 10.20.0.0/16; the server is never open"),
    ("network.clients", ["10.0.0.0/8", "0.0.0.0/1"], "private (RFC 1918)"),
    ("network.clients", ["10.0.0.0/0"], "private (RFC 1918)"),
    ("network.clients", ["::/0"], "private (RFC 1918)"),
    ("network.clients", [IAP_RANGE], "private (RFC 1918)"),
    ("machine.type", "medium", "such as e2-medium"),
    ("machine.disk_gb", 9, "10"),
    ("machine.disk_gb", 65537, "65536"),
    ("machine.labels", {"Team": "data"}, "such as team"),
    ("machine.labels", {"team": "Data"}, "such as data"),
    ("machine.labels", {"k" * 64: ""}, "up to 63"),
    ("machine.labels", {OWNER_LABEL: "other"}, "is taken"),
    ("machine.service_account", "me@example.org", "such as prefect-vm@"),
    ("machine.service_account", "1-compute@developer.gserviceaccount.com", "made for it"),
    ("machine.downtime", "sometimes", "'allowed'"),
    ("machine.ssh_user", "root", "such as bootstrap"),
    ("machine.ssh_user", "prefect", "such as bootstrap"),
    ("machine.ssh_user", "Admin", "such as bootstrap"),
    ("prefect.version", "latest", "such as 3.8.8"),
    ("prefect.version", ">=3.8.8", "a range, or latest"),
    ("prefect.version", "3.8", "one exact version"),
    ("prefect.version", "3.8.8rc1", "one exact version"),
    ("prefect.version", "v3.8.8", "one exact version"),
    ("prefect.version", "3.6.21", "from 3.6.22 on (before it, some paths needed no auth string)"),
    ("prefect.version", "3.5.30", "from 3.6.22 on"),
    ("prefect.version", "2.20.4", "from 3.6.22 on"),
    ("prefect.uv_version", "latest", "such as 0.13.9"),
    ("prefect.install_from", "mirror", "laptop"),
    ("prefect.uv_version", "0.13.*", "such as 0.13.9"),
    ("server.port", 80, "1024"),
    ("server.port", 65536, "65535"),
    (
        "server.ui_api_url",
        "http://prefect.example.org/api",
        "such as https://prefect.example.org/api",
    ),
    ("server.ui_api_url", "https://prefect.example.org", "such as https://prefect.example.org/api"),
    ("server.ui_api_url", "https://me:pw@prefect.example.org/api", "/api, which works"),
    ("server.events_days", 0, "1"),
    ("server.flow_runs_days", 3651, "3650"),
    ("self_check.interval_seconds", 59, "60"),
    ("self_check.interval_seconds", 86401, "86400"),
    ("self_check.answer_seconds", 0, "1"),
    ("self_check.answer_seconds", 61, "60"),
    ("self_check.late_seconds", 59, "60"),
    ("self_check.late_seconds", 1801, "1800"),
    ("self_check.silence_seconds", 59, "60"),
    ("self_check.silence_seconds", 86401, "86400"),
    ("self_check.worker_seconds", 59, "60"),
    ("self_check.worker_seconds", 3601, "3600"),
    ("self_check.event_seconds", 4, "5"),
    ("self_check.event_seconds", 61, "60"),
    ("self_check.disk_free_percent", 0, "1"),
    ("self_check.disk_free_percent", 51, "50"),
    ("self_check.memory_free_percent", 0, "1"),
    ("self_check.memory_free_percent", 51, "50"),
    ("self_check.load_per_cpu", 0, "1"),
    ("self_check.load_per_cpu", 101, "100"),
    ("self_check.clock_seconds", 0, "1"),
    ("self_check.clock_seconds", 61, "60"),
    ("self_check.connections_free_percent", 0, "1"),
    ("self_check.connections_free_percent", 51, "50"),
    ("self_check.growth_mb", 0, "1"),
    ("self_check.growth_mb", 65537, "65536"),
    ("self_check.transaction_seconds", 19, "20"),
    ("self_check.transaction_seconds", 86401, "86400"),
    ("self_check.dead_percent", 4, "5"),
    ("self_check.dead_percent", 96, "95"),
    ("self_check.certificate_days", -1, "0"),
    ("self_check.certificate_days", 91, "90"),
    ("self_check.keep_runs", 9, "10"),
    ("self_check.keep_runs", 10001, "10000"),
    ("notify", "alerts", "such as slack-webhook/alerts, or nothing"),
    ("notify", "slack-webhook/", "type and name of a notification block"),
    ("notify", "https://hooks.slack.com/services/T0/B0/secret", "such as slack-webhook/alerts"),
    ("heal", "on", "'off', 'safe'"),
    ("ignore", ignoring(reason=""), "why it may differ, such as"),
    ("ignore", ignoring(reason=" \t"), "why it may differ, such as"),
    ("ignore", ignoring(resource=""), "such as instance prefect-1"),
    ("ignore", ignoring(resource="* "), "such as firewall rule *"),
    ("ignore", ignoring(attribute=""), "such as labels.*"),
    ("ignore", ignoring(until="31.1.2027"), "such as 2027-01-31 (in YAML in quotes), or nothing"),
    ("ignore", ignoring(until="2027-1-31"), "such as 2027-01-31 (in YAML in quotes), or nothing"),
    ("ignore", ignoring(until="2027-13-01"), "such as 2027-01-31 (in YAML in quotes), or nothing"),
    (
        "ignore",
        ignoring(until="2027-01-31T10:00:00"),
        "such as 2027-01-31 (in YAML in quotes), or nothing",
    ),
]


@pytest.mark.parametrize(("path", "value", "repair"), REFUSED)
def test_a_refusal_says_what_to_write_instead_in_flow_and_form_alike(
    path: str, value: object, repair: str
) -> None:
    spec = changed(path, value)
    with pytest.raises(ValidationError) as refused:
        ServerSpec.model_validate(spec)
    assert [str(error["loc"]) for error in refused.value.errors() if repair in error["msg"]], (
        refused.value
    )
    in_form = form_errors(spec)
    assert len(in_form) == 1
    assert repair in in_form[0]


@pytest.mark.parametrize("path", ["size", "network.range", "auth_secret.value", "self_check.port"])
def test_an_unknown_key_is_refused_with_the_known_ones(path: str) -> None:
    spec = changed(path, "x")
    with pytest.raises(
        ValidationError, match=f"there is no key '{path.split('.')[-1]}': write keys of "
    ):
        ServerSpec.model_validate(spec)
    assert [message for message in form_errors(spec) if "was unexpected" in message]


@pytest.mark.parametrize("key", MINIMAL)
def test_what_has_no_default_must_be_there(key: str) -> None:
    spec = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(ValidationError, match="Field required"):
        ServerSpec.model_validate(spec)
    assert form_errors(spec) == [f"'{key}' is a required property"]


# What a JSON schema cannot say, the flow does, before it does anything else.
REFUSED_BY_THE_FLOW = [
    ("region", "europe-west1", "region\n  Value error, write europe-west4, the region of the zone"),
    ("zones", ["europe-west1-b"], "write zones of europe-west4, the region of the zone"),
    ("zones", ["europe-west4-b", "europe-west4-b"], "write each zone once"),
    ("zones", ["europe-west4-a"], "not the first one again"),
    ("network", {"name": "net", "project": "host-123"}, "write name and subnet, too"),
    ("network", {"subnet": "sub"}, "write name, too"),
    ("network", {"router": "nat"}, "write name, too"),
    ("network.cidr", "10.10.0.7/24", "write 10.10.0.0/24"),
    ("network.clients", ["192.168.1.0/16"], "write 192.168.0.0/16"),
    ("network.nat", False, "write install_from: laptop, or nat: true"),
    ("name", "prefect-1\n", "such as prefect-1"),
    ("ignore", ignoring(until="2027-02-29"), "write a day that the calendar has"),
    ("ignore", ignoring(until="0000-01-01"), "write a day that the calendar has"),
]


@pytest.mark.parametrize(("path", "value", "repair"), REFUSED_BY_THE_FLOW)
def test_the_flow_refuses_what_the_form_cannot(path: str, value: object, repair: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ServerSpec.model_validate(changed(path, value))
    assert repair in str(refused.value)


def test_an_ignored_difference_needs_a_reason() -> None:
    spec = changed("ignore", [{"resource": "instance prefect-1"}])
    with pytest.raises(ValidationError, match="Field required"):
        ServerSpec.model_validate(spec)
    assert form_errors(spec) == ["'reason' is a required property"]


def test_a_day_without_quotes_is_refused_with_what_to_write() -> None:
    """YAML makes a date of it; ``prefect deploy`` takes it for a template and gives up."""
    written = yaml.safe_load("[{resource: a, reason: b, until: 2027-01-31}]")
    with pytest.raises(ValidationError, match='write the day in quotes: "2027-01-31"'):
        ServerSpec.model_validate(changed("ignore", written))
    with pytest.raises(ValueError, match="Unexpected template type 'date'"):
        apply_values(written, {})


def test_off_without_quotes_is_refused_with_what_to_write() -> None:
    """YAML makes false of it."""
    spec = changed("heal", yaml.safe_load("off"))
    with pytest.raises(ValidationError, match="heal\n  Input should be 'off', 'safe' or 'all'"):
        ServerSpec.model_validate(spec)
    assert "False is not one of ['off', 'safe', 'all']" in form_errors(spec)


def test_a_refused_zone_is_one_error() -> None:
    with pytest.raises(ValidationError) as refused:
        ServerSpec.model_validate(changed("zone", "here"))
    assert [error["loc"] for error in refused.value.errors()] == [("zone",)]


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    yield "ServerSpec", list(schema["properties"].values())
    for name, group in schema["$defs"].items():
        yield name, list(group["properties"].values())


def test_every_field_of_the_form_has_title_description_and_place() -> None:
    for group, fields in properties(ServerSpec.model_json_schema()):
        assert [field["position"] for field in fields] == list(range(len(fields))), group
        for field in fields:
            assert field["title"], group
            assert field["description"].endswith("."), field
            assert "such as" in field["description"], field


def test_the_form_is_one_that_the_ui_can_draw() -> None:
    """The UI takes ``anyOf`` and ``allOf`` for a choice between, or several, fields."""

    def keys(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield str(key)
                yield from keys(value)
        elif isinstance(node, list):
            for value in node:
                yield from keys(value)

    is_valid_schema(FORM)
    assert not {"anyOf", "allOf", "oneOf"} & set(keys(FORM))


def test_prefect_deploy_refuses_in_the_same_words() -> None:
    """A deployment's parameters are validated so when it is created."""
    with pytest.raises(
        FormError, match=r"field 'spec.network.clients\[0\]'.*'a private .* was expected"
    ):
        validate(
            {"spec": changed("network.clients", ["0.0.0.0/0"])},
            FORM,
            raise_on_error=True,
            ignore_required=True,
            allow_none_with_default=True,
        )


def test_a_spec_survives_json() -> None:
    spec = ServerSpec.model_validate(
        changed("network.clients", ["10.20.0.0/16"]) | {"machine": {"labels": {"team": "data"}}}
    )
    assert ServerSpec.model_validate_json(spec.model_dump_json()) == spec
    assert form_errors(spec.model_dump(mode="json")) == []


def test_a_spec_does_not_change() -> None:
    spec = ServerSpec.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]  # mypy says the same


def test_a_derived_name_is_one_for_google() -> None:
    spec = ServerSpec.model_validate(changed("name", "p" * 40))
    assert spec.named("router") == "p" * 40 + "-router"
    assert len(spec.named("x" * 22)) == 63


SECRET = "postgresql+asyncpg://prefect:s3cr3t-of-the-house@db/prefect"


@pytest.mark.parametrize(
    "spec",
    [
        changed("auth_secret.block", SECRET),
        changed("auth_secret.kind", SECRET),
        changed("auth_secret", SECRET),
        changed("database_url_secret.url", SECRET),
        changed("name", SECRET),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        ServerSpec.model_validate(spec)
    assert "s3cr3t" not in str(refused.value) + repr(refused.value)
    with pytest.raises(ParameterTypeError) as by_prefect:
        takes_a_spec.validate_parameters({"spec": spec})
    assert "s3cr3t" not in str(by_prefect.value)


def test_the_form_does_not_repeat_what_stands_where_a_block_is_named() -> None:
    assert "s3cr3t" not in str(form_errors(changed("auth_secret.block", SECRET)))


@pytest.mark.parametrize(
    "value", ["admin:0123456789", "a:" + "b" * 14, "admin:with spaces: \"'\\%#"]
)
def test_an_auth_string_that_works_is_returned(value: str) -> None:
    assert check_auth_string(value) == value


AUTH_STRINGS = [
    ("s3cr3t-s3cr3t-s3cr3t", "no colon"),
    (":s3cr3t-s3cr3t-s3cr3t", "colon with text on both sides"),
    ("s3cr3t-s3cr3t-s3cr3t:", "colon with text on both sides"),
    ("admin:s3cr3t-s3", "shorter than 16 characters"),
    ("admin:s3cr3t-s3cr3t-ü", "printable ASCII"),
    ("admin:s3cr3t-s3cr3t\n", "the line break that echo adds"),
    ("admin:s3cr3t-s3cr3t\x00", "printable ASCII"),
    ("", "no colon"),
]


@pytest.mark.parametrize(("value", "why"), AUTH_STRINGS)
def test_a_wrong_auth_string_is_refused_without_repeating_it(value: str, why: str) -> None:
    with pytest.raises(
        ValueError, match="write user:password, 16 or more ASCII characters"
    ) as refused:
        check_auth_string(value)
    assert why in str(refused.value)
    assert "s3" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        "postgresql+asyncpg://prefect:pw@10.104.120.4/prefect-db",
        "postgresql+asyncpg://prefect:p%40ss%25w%2Frd%231@db.example.org:5432/prefect",
        "postgresql+asyncpg://prefect:pw@[fd00::4]:5433/prefect?ssl=verify-full",
        "postgresql+asyncpg://prefect:a+b=c@db/prefect?ssl=require&prepared_statement_cache_size=0",
    ],
)
def test_a_database_url_that_works_is_returned(value: str) -> None:
    assert check_database_url(value) == value


DATABASE_URLS = [
    ("postgresql://prefect:s3cr3t@db/prefect", "replace postgresql://"),
    ("postgres://prefect:s3cr3t@db/prefect", "another driver"),
    ("postgresql+psycopg2://prefect:s3cr3t@db/prefect", "another driver"),
    ("sqlite+aiosqlite:///s3cr3t.db", "another driver"),
    ("s3cr3t", "another driver"),
    ("postgresql+asyncpg://db/s3cr3t", "user:password@"),
    ("postgresql+asyncpg://s3cr3t@db/prefect", "user:password@"),
    ("postgresql+asyncpg://prefect:s3cr3t@s3@db/prefect", "%40 for @"),
    ("postgresql+asyncpg://prefect:s3/cr3t@db/prefect", "%2F for /"),
    ("postgresql+asyncpg://prefect:s3%cr3t@db/prefect", "%25 for %"),
    ("postgresql+asyncpg://prefect:s3?cr3t#@db/prefect", "percent-encoded"),
    ("postgresql+asyncpg://prefect:s3cr3t@/prefect", "lacks the host"),
    ("postgresql+asyncpg://prefect:s3cr3t@[::1/prefect", "lacks the host"),
    ("postgresql+asyncpg://prefect:s3cr3t@db:65536/prefect", "1 to 65535"),
    ("postgresql+asyncpg://prefect:s3cr3t@db:0/prefect", "1 to 65535"),
    ("postgresql+asyncpg://prefect:s3cr3t@db", "lacks the database"),
    ("postgresql+asyncpg://prefect:s3cr3t@db/?ssl=require", "lacks the database"),
    ("postgresql+asyncpg://prefect:s3cr3t@db/prefect?sslmode=require", "use ?ssl="),
    ("postgresql+asyncpg://prefect:s3cr3t@db/prefect?ssl=true", "disable, allow, prefer, require"),
    ("postgresql+asyncpg://prefect:s3cr3t@db/prefect\n", "the line break that echo adds"),
    ("postgresql+asyncpg://prefect:s3cr3tü@db/prefect", "printable ASCII"),
    ("", "another driver"),
]


@pytest.mark.parametrize(("value", "why"), DATABASE_URLS)
def test_a_wrong_database_url_is_refused_without_repeating_it(value: str, why: str) -> None:
    with pytest.raises(
        ValueError, match=r"write postgresql\+asyncpg://user:password@host:"
    ) as refused:
        check_database_url(value)
    assert why in str(refused.value)
    assert "s3" not in str(refused.value)
