"""Every difference that there can be has been judged, and no run changes more than it may."""

from __future__ import annotations

from datetime import date

import pytest

from flows.catalog import Server
from flows.policy import TABLE, UNKNOWN, Level, judged, may_change, policy
from flows.reconcile import Change, Described
from flows.resources.compute import cloud_resources
from flows.spec import Ignored
from tests.flows.paper_world import SECRETS
from tests.flows.test_compute_resources import KEY, spec

TODAY = date(2026, 11, 22)


def no_api() -> None:
    raise AssertionError("what should be is known without a server")


def everything() -> list[Described]:
    """The catalog, of all stages."""
    server = Server(spec(notify="slack-webhook/alerts"), SECRETS)
    return [
        *cloud_resources(server.spec, KEY),
        *server.machine(),
        *Server(spec(prefect={"install_from": "laptop"}), SECRETS).sources()[1],
        *server.database(),
        *server.services(),
        *server.prefect(no_api),  # type: ignore[arg-type]  # it is never called
        *server.notifications(no_api, no_api),  # type: ignore[arg-type]
    ]


DIFFERENCES = [
    (each.name, attribute) for each in everything() for attribute in ("", *each.desired())
]


def test_every_difference_has_been_judged() -> None:
    assert [where for where in DIFFERENCES if judged(*where) is None] == []


def test_every_row_of_the_table_judges_something() -> None:
    used = {judged(*where) for where in DIFFERENCES}
    assert [row for row in TABLE if row not in used] == []


def test_what_nobody_has_judged_is_left_to_a_person() -> None:
    assert policy("volume prefect-1", "size") == UNKNOWN
    assert (UNKNOWN.severity, UNKNOWN.heal) == ("warning", "hand")


def test_what_no_run_can_heal_says_who_does_what() -> None:
    said = [row for row in TABLE if row.policy.action]
    assert said == [row for row in TABLE if row.policy.heal in ("hand", "never")]


JUDGED = {
    "firewall rule prefect-1-clients: sourceRanges": "critical safe",
    "firewall rule prefect-1-ssh-iap: ": "critical safe",
    "exposure of prefect-1: port 22 open to": "critical never",
    "instance prefect-1: labels.team": "info safe",
    "instance prefect-1: metadata.ssh-keys": "critical safe",
    "instance prefect-1: deletionProtection": "warning safe",
    "instance prefect-1: accessConfigs": "critical all",
    "instance prefect-1: machineType": "warning all",
    "instance prefect-1: serviceAccount.email": "warning all",
    "instance prefect-1: shieldedInstanceConfig.enableVtpm": "warning all",
    "instance prefect-1: status": "critical all",
    "instance prefect-1: ": "critical all",
    "router prefect-1-router: nat": "critical safe",
    "router prefect-1-router: nat.addresses": "critical all",
    "disk prefect-1: sizeGb": "warning all",
    "file /var/lib/prefect/.prefect/prefect.toml: content": "warning safe",
    "file /var/lib/prefect/.prefect/prefect.toml: mode": "critical safe",
    "file /etc/systemd/system/prefect-server.service: content": "warning safe",
    "file /etc/ssh/sshd_config.d/00-prefect.conf: content": "critical safe",
    "file /etc/apt/apt.conf.d/99prefect.conf: content": "warning safe",
    "sshd: passwordauthentication": "critical hand",
    "no file /var/lib/prefect/.prefect/.env: exists": "warning safe",
    "directory /var/lib/prefect: mode": "warning safe",
    "user prefect: shell": "warning all",
    "wheels: other than locked": "info safe",
    "uv 0.13.9: ": "warning all",
    "prefect 3.8.8: other than locked": "warning all",
    "worker's environment: other than locked": "warning all",
    "database: PostgreSQL": "critical hand",
    "schema: revision": "critical all",
    "schema: invalid indexes": "warning all",
    "service prefect-server: state": "critical safe",
    "service prefect-server: at boot": "critical safe",
    "service prefect-server: overrides": "warning safe",
    "service prefect-worker: configuration": "warning safe",
    "server's answers: without auth string": "critical hand",
    "server's answers: server.api.port": "warning hand",
    "work pool server: ": "critical safe",
    "work pool server: type": "critical hand",
    "worker prefect-1: status": "critical safe",
    "deployment check-health/prefect-1: paused": "critical safe",
    "deployment check-health/prefect-1: schedule": "critical safe",
    "deployment check-health/prefect-1: version": "warning all",
    "automation crash-silent-runs: enabled": "warning safe",
    "automation notify-self-check: copies": "warning safe",
    "automation notify-prefect-1: ": "warning safe",
    "notification block slack-webhook/alerts: values": "warning safe",
    "self-check: next run": "critical safe",
}


@pytest.mark.parametrize(("where", "expected"), JUDGED.items())
def test_how_bad_it_is_and_who_may_heal_it(where: str, expected: str) -> None:
    resource, attribute = where.rsplit(": ", 1)
    assert (resource, attribute) in DIFFERENCES
    assert " ".join(policy(resource, attribute)[:2]) == expected


LEVELS: list[tuple[str, Level, bool]] = [
    ("labels.team", "off", False),
    ("labels.team", "safe", True),
    ("labels.team", "all", True),
    ("labels.team", "hand", True),
    ("machineType", "off", False),
    ("machineType", "safe", False),
    ("machineType", "all", True),
    ("machineType", "hand", True),
]


@pytest.mark.parametrize(("attribute", "level", "may"), LEVELS)
def test_a_run_changes_what_its_level_reaches(attribute: str, level: Level, may: bool) -> None:
    change = Change(attribute, "a", "b")
    assert may_change("instance prefect-1", change, level, (), TODAY) is may


@pytest.mark.parametrize(
    ("resource", "level", "may"),
    [
        ("database", "all", False),
        ("database", "hand", True),  # where it ends, with the sentence that repairs it
        ("exposure of prefect-1", "all", False),
        ("exposure of prefect-1", "hand", False),
    ],
)
def test_what_only_a_person_can_heal(resource: str, level: Level, may: bool) -> None:
    assert may_change(resource, Change("any", "a", "b"), level, (), TODAY) is may


@pytest.mark.parametrize(
    ("until", "ignored"),
    [("", True), ("2026-11-23", True), ("2026-11-22", True), ("2026-11-21", False)],
)
def test_what_is_ignored_is_not_changed_until_that_is_over(until: str, ignored: bool) -> None:
    entry = Ignored(resource="instance *", attribute="machine*", reason="a test", until=until)
    change = Change("machineType", "a", "b")
    assert may_change("instance prefect-1", change, "hand", (entry,), TODAY) is not ignored


@pytest.mark.parametrize(("attribute", "made"), [("*", False), ("mode", True)])
def test_a_resource_that_is_missing_is_ignored_as_a_whole_or_made(
    attribute: str, made: bool
) -> None:
    """Half a resource is none."""
    entry = Ignored(resource="file /a", attribute=attribute, reason="a test")
    changes = [Change(name, "a", None, missing=True) for name in ("mode", "owner")]
    assert [may_change("file /a", c, "hand", (entry,), TODAY) for c in changes] == [made] * 2
