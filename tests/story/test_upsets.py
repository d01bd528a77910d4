"""The server that a bootstrap made: reruns, changes of the spec, a power cut, and what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.story.conftest import DRIFT, NAME, Story

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(420)]

BOUND = 150.0
"""Seconds in which every failure has to be told."""


@pytest.fixture
def healed(story: Story) -> Iterator[Story]:
    """A server at rest, whose own check tells of nothing, and that a rerun brings back to its spec."""
    story.rests()
    yield story
    ended = story.run()
    assert ended.state in ("Changed", "Unchanged"), ended.message


def told(story: Story, *words: str) -> str:
    """The message of a bootstrap that fails in time, which has all the words."""
    ended = story.run(seconds=2 * BOUND)
    assert ended.state == "Failed", ended.message
    assert ended.seconds < BOUND
    assert [word for word in words if word not in ended.message] == [], ended.message
    assert ended.outcomes("failed")
    return ended.message


# What a changed spec changes


def instance(story: Story) -> str:
    return story.google("compute", "instances", "describe", NAME, "--format=value(id)").strip()


def test_a_changed_spec_converges_on_the_same_machine(story: Story) -> None:
    before = instance(story)
    ended = story.run(
        server={"port": 4300, "events_days": 3},
        machine={"labels": {"team": "data"}},
        network={"clients": ["10.20.0.0/16"]},
        ignore=[{"resource": "disk*", "attribute": "size", "reason": "asked for"}],
    )
    assert ended.state == "Changed", ended.message
    assert set(ended.outcomes("changed")) == {
        "firewall rule prefect-1-clients",
        "disk prefect-1",
        "instance prefect-1",
        "file /var/lib/prefect/.prefect/prefect.toml",
        "file /var/lib/prefect/worker/prefect.toml",
        "file /etc/systemd/system/prefect-worker.service",
        "service prefect-server",
        "service prefect-worker",
        "deployment check-health/prefect-1",
        "self-check",
    }
    assert instance(story) == before
    told = story.root("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:4300/api/health")
    assert told.stdout == "200"
    back = story.run()  # a label that the spec does not name any more is nobody's
    labelled = {"disk prefect-1", "instance prefect-1"}
    assert set(back.outcomes("changed")) == set(ended.outcomes("changed")) - labelled


def test_a_drift_check_names_what_was_changed_by_hand_and_changes_nothing(healed: Story) -> None:
    healed.root(
        "systemctl disable -q prefect-worker; chmod 644 /var/lib/prefect/.prefect/prefect.toml"
    )
    before = len(healed.requests())
    ended = healed.run(DRIFT)
    assert ended.state == "Drifted"
    assert ended.found == {
        ("file /var/lib/prefect/.prefect/prefect.toml", "mode"),
        ("service prefect-worker", "at boot"),
    }
    methods = {entry["method"] for entry in healed.requests()[before:] if entry["method"]}
    cloud = {method for method in methods if method.startswith(("compute.", "iam."))}
    assert {method.rpartition(".")[2] for method in cloud} <= {"get", "list", "getGuestAttributes"}
    assert healed.run(DRIFT).found == ended.found


# What a server survives


def test_a_server_that_boots_without_its_database_waits_for_it(story: Story) -> None:
    story.cloud.ctl("database", "stop")
    try:
        story.google("compute", "instances", "reset", NAME)
        failed = "systemctl show --value --property=NRestarts prefect-server"
        restarts(story, failed, at_least=1)
    finally:
        story.cloud.ctl("database", "start")
    story.root(
        "for _ in $(seq 60); do curl -sf http://127.0.0.1:4200/api/health && exit 0; sleep 1; done; exit 1",
        timeout=90,
    )


def restarts(story: Story, script: str, *, at_least: int) -> None:
    """Wait until systemd has restarted the unit so often."""
    deadline = time.monotonic() + 60
    while int(story.root(script, check=False).stdout.strip() or 0) < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_crashed_server_comes_back(story: Story) -> None:
    story.root("systemctl kill --signal=KILL prefect-server")
    restarts(story, "systemctl show --value --property=NRestarts prefect-server", at_least=1)
    story.root(
        "for _ in $(seq 60); do curl -sf http://127.0.0.1:4200/api/health && exit 0; sleep 1; done; exit 1",
        timeout=90,
    )


# What goes wrong, and how it is told


def test_a_wrong_database_password_is_told(healed: Story) -> None:
    with url(healed, "//prefect:", "//prefect:wrong-"):
        told(healed, "database", "InvalidPasswordError", "Correct the user or the password")


@contextmanager
def url(story: Story, old: str, new: str) -> Iterator[None]:
    """Another database URL in Secret Manager, for a while."""
    right = story.secret("prefect-database-url")
    add = (
        "import sys; from google.cloud import secretmanager as s;"
        "s.SecretManagerServiceClient(transport='rest').add_secret_version("
        "parent='projects/rehearsal/secrets/prefect-database-url',"
        "payload=s.SecretPayload(data=sys.argv[1].encode()))"
    )
    story.cloud.run("python", "-c", add, right.replace(old, new))
    try:
        yield
    finally:
        story.cloud.run("python", "-c", add, right)


def test_a_crash_loop_is_told_with_its_journal(healed: Story) -> None:
    """Something else has taken the port."""
    taken = "systemd-run --quiet --unit=taken python3 -m http.server 4200"
    healed.root(f"systemctl stop prefect-server; {taken}")
    try:
        message = told(healed, "service prefect-server", "crashes again and again")
    finally:
        healed.root("systemctl stop taken")
    assert "Port 4200 is already in use" in message


def test_a_full_disk_is_told(healed: Story) -> None:
    fill = (
        "for size in 64M 4K 1; do dd if=/dev/zero bs=$size of=/full oflag=append conv=notrunc; done"
    )
    healed.root(f"rm /var/lib/prefect/worker/prefect.toml; {fill} 2>/dev/null; df /", timeout=100)
    try:
        told(healed, "worker/prefect.toml", "No space left on device")
    finally:
        healed.root("rm /full")


def test_a_package_index_out_of_reach_is_told(healed: Story) -> None:
    healed.root("rm -rf /opt/prefect/uv-*; echo 127.0.0.1 $(getent hosts localhost) > /dev/null")
    healed.root(
        "cp /etc/resolv.conf /etc/resolv.conf.kept; echo nameserver 192.0.2.1 > /etc/resolv.conf"
    )
    try:
        told(healed, "uv 0.13.9", "pip")
    finally:
        healed.root("mv /etc/resolv.conf.kept /etc/resolv.conf")


def test_a_migration_that_fails_is_told_and_made_when_it_can_be(healed: Story) -> None:
    """The last revision is undone, and its table is somebody else's."""
    healed.root("systemctl stop prefect-server prefect-worker")
    head = healed.sql("SELECT version_num FROM alembic_version")
    downgrade = "prefect server database downgrade --yes"
    as_server = f"cd ~/.prefect && exec /opt/prefect/3.8.8-*/bin/{downgrade}"
    healed.root('runuser -u prefect -- sh -c "$1"', f"export HOME=/var/lib/prefect; {as_server}")
    healed.sql("ALTER TABLE flow_run OWNER TO postgres; GRANT ALL ON flow_run TO prefect")
    try:
        told(healed, "schema", "must be owner of table flow_run")
    finally:
        healed.sql("ALTER TABLE flow_run OWNER TO prefect")
    assert "schema" in healed.run().outcomes("changed")
    assert healed.sql("SELECT version_num FROM alembic_version") == head


# What was cut off


def test_a_run_that_a_power_cut_ended_has_crashed(story: Story) -> None:
    """tests/story/test_power.py cut it off; three heartbeats have to be missed."""
    ended = (
        "SELECT s.name || ': ' || s.message FROM flow_run r JOIN flow f ON f.id = r.flow_id"
        " JOIN flow_run_state s ON s.id = r.state_id WHERE f.name = 'sleeper'"
    )
    gone = "Crashed: No heartbeat for 540 s: its process, or the machine, is gone."
    deadline = time.monotonic() + 400
    while (said := story.sql(ended)) != gone:
        assert time.monotonic() < deadline, said
        time.sleep(1)
