"""The health of a real server: what ails it is named by the right check, or from outside, and it is
healthy again when that is lifted. The rows are in ``tests/story/ailments.py``."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rehearsal import follow, laptop
from rehearsal.control import Failed
from tests.story.ailments import INSIDE, OUTSIDE, Ailment
from tests.story.conftest import DRIFT, NAME, Story, tell
from tests.story.driver import Driver, Ended, Json, driver
from tests.story.faults import UP

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(420)]

HEALTH = f"check-health/{NAME}"
INTERVAL = 60.0
"""Seconds, the shortest of the spec; what ails a server is named within two of them."""
ONE = 60.0
"""Seconds for one check."""
ALONE = 30.0
"""Seconds in which systemd heals what it can."""
SHORT = {
    "event_seconds": 5,
    "transaction_seconds": 20,
    "late_seconds": 60,
    "silence_seconds": 60,
    "load_per_cpu": 100,  # the host's, where other tests run
}


@dataclass
class Patient:
    """The new server, and the laptop's flows that look after it."""

    story: Story
    driver: Driver
    spec: Json
    server: httpx.Client
    """Its API, for the test."""

    def becomes(self, **self_check: int) -> None:
        self.spec = {**self.spec, "self_check": self_check}
        ended = self.driver.run("bootstrap-server", {"server": self.spec}, 200)
        assert ended.state in ("Changed", "Unchanged"), ended.message

    def check(self) -> Ended:
        """A self-check, started by hand; rows that are not healthy."""
        began = time.monotonic()
        run = follow.start(self.server, HEALTH)
        state = follow.follow(self.server, run, ONE, lambda _tasks: None)
        assert state["type"] in follow.OVER, f"the self-check is {state['name']}"
        rows = follow.table(self.server, f"{NAME}-health", run)
        bad = [row for row in rows if row["verdict"] != "healthy"]
        return Ended(state["name"], state["message"] or "", time.monotonic() - began, bad)

    def outside(self) -> Ended:
        return self.driver.run("check-server", {"server": self.spec}, 120)

    def until(self, look: Callable[[], Ended], that: Callable[[Ended], bool]) -> Ended:
        """Look again and again, for two intervals. A server may not answer for a while."""
        deadline = time.monotonic() + 2 * INTERVAL
        seen: Ended | Failed | None = None
        while time.monotonic() < deadline:
            try:
                seen = ended = look()
            except Failed as error:
                seen = error
                time.sleep(1)
            else:
                if that(ended):
                    return ended
        pytest.fail(f"after two intervals: {seen}", pytrace=False)


@pytest.fixture(scope="module")
def patient(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    with follow.api(story.urls["laptop"]) as client:
        spec = follow.found(client, DRIFT)["parameters"]["server"]
    work = tmp_path_factory.mktemp("driver")
    there = tell(story.cloud, work / "run.json")["urls"]["server"]  # through a tunnel that is open
    auth = story.secret("prefect-auth")
    with driver(story.urls["laptop"], work / "log") as process, follow.api(there, auth) as it:
        yield Patient(story, process, spec, it)
    assert story.run().state in ("Changed", "Unchanged")  # as it was before


@pytest.fixture(scope="module")
def alone(patient: Patient) -> Patient:
    """With nobody's checks but the test's."""
    patient.becomes(interval_seconds=3600, **SHORT)
    patient.until(patient.check, healthy)
    return patient


def healthy(seen: Ended) -> bool:
    return seen.state in ("Completed", "Healthy")


def named(seen: Ended, ailment: Ailment) -> bool:
    bad = {row["check"] for row in seen.rows}
    return ailment.named <= bad if ailment.more else ailment.named == bad


@pytest.mark.parametrize("ailment", INSIDE, ids=lambda ailment: ailment.name)
def test_what_ails_a_server_is_named_by_its_check_until_it_is_lifted(
    alone: Patient, ailment: Ailment
) -> None:
    alone.story.rests()
    try:
        alone.story.do(ailment.spoil)
        if not ailment.lift:
            began = time.monotonic()
            alone.story.do([UP])
            assert time.monotonic() - began < ALONE
        seen = alone.until(alone.check, lambda seen: named(seen, ailment))
        assert seen.state in ("Degraded", "Unhealthy", "Unknown")
        assert all(row["check"] in seen.message for row in seen.rows[:1])
        assert all(row["repair"] for row in seen.rows)
    finally:
        alone.story.do(ailment.lift)
    alone.until(alone.check, healthy)


def test_the_matrix_has_25_rows_and_more() -> None:
    names = {ailment.name for ailment in (*INSIDE, *OUTSIDE)}
    assert len(names) == len(INSIDE) + len(OUTSIDE) >= 25


@pytest.fixture(scope="module")
def watched(patient: Patient) -> Patient:
    """With checks on schedule, every minute."""
    patient.becomes(interval_seconds=int(INTERVAL))
    patient.until(patient.outside, healthy)
    return patient


@pytest.mark.parametrize("ailment", OUTSIDE, ids=lambda ailment: ailment.name)
def test_what_a_server_cannot_say_itself_is_seen_from_outside(
    watched: Patient, ailment: Ailment
) -> None:
    watched.story.rests()  # a check that is cut off keeps its place for five minutes
    try:
        watched.story.do(ailment.spoil)
        watched.until(watched.outside, lambda seen: {seen.state} == ailment.named)
    finally:
        watched.story.do(ailment.lift)
    watched.until(watched.outside, healthy)


# Who is told


RECEIVER = """
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[2], "ab") as file:
            file.write(body + b"\\n")
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
"""
BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
CustomWebhookNotificationBlock(
    name="prefect", url=sys.argv[1], json_data={"text": "{{subject}}: {{body}}"}
).save("alerts")
"""


@pytest.fixture
def heard(watched: Patient, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A webhook on the laptop and one on the machine, under one URL. What the laptop's has heard is
    in the file, what the machine's has heard in the file of that name there."""
    file, there = tmp_path / "heard", "/run/heard"
    port = str(laptop.free_port(4300))
    here = subprocess.Popen([sys.executable, "-c", RECEIVER, port, str(file)])
    try:
        watched.story.root(
            f"cat > /run/receiver.py <<'END'\n{RECEIVER}\nEND\n"
            f"systemd-run --quiet --unit=receiver python3 /run/receiver.py {port} {there}"
        )
        environment = {
            **laptop.settings(),
            "PREFECT_API_URL": f"{watched.story.urls['laptop']}/api",
        }
        url = f"http://127.0.0.1:{port}/"
        watched.story.cloud.run("python", "-c", BLOCK, url, env=environment)
        watched.spec = {**watched.spec, "notify": "custom-webhook/alerts"}
        watched.becomes(interval_seconds=int(INTERVAL))
        yield file, there
    finally:
        here.kill()
        here.wait()
        watched.story.root("systemctl stop receiver")
        watched.spec = {**watched.spec, "notify": ""}


def test_both_servers_tell_of_a_failure_through_the_block(
    watched: Patient, heard: tuple[Path, str]
) -> None:
    file, there = heard
    watched.story.root("systemctl disable --quiet prefect-worker")
    try:
        watched.until(watched.check, lambda seen: seen.state == "Unhealthy")
        with follow.api(watched.story.urls["laptop"]) as client:
            run = follow.start(client, f"check-server/{NAME}", {"server": watched.spec})
            state = follow.follow(client, run, 120, lambda _tasks: None)
    finally:
        watched.story.root("systemctl enable --quiet prefect-worker")
    assert state["name"] == "Unhealthy", state["message"]
    deadline = time.monotonic() + 30
    while not (file.exists() and watched.story.root(f"cat {there}", check=False).stdout):
        assert time.monotonic() < deadline
        time.sleep(1)
    words = "drift: service prefect-worker: at boot"
    said = watched.story.root(f"cat {there}").stdout
    assert f"{NAME}: check-health ended as Unhealthy" in said
    assert words in said
    assert f"{NAME}: check-server ended as Unhealthy" in file.read_text()
    assert words in file.read_text()
