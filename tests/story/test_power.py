"""The power is cut at the worst moments: nothing committed is lost, and a rerun converges.

What the guest had not yet written to its disk survives here, for the host has it: that a file was
written in full or not at all is proved in the other rings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from rehearsal import follow
from tests.story.ailments import asked
from tests.story.conftest import DRIFT, NAME, Story
from tests.story.driver import Ended, driver

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(420)]

BACK = 30.0
"""Seconds in which a server answers again."""
SECONDS = 120.0
COMPLETED = "SELECT id FROM flow_run WHERE state_type = 'COMPLETED'"
RUNNING = "SELECT count(*) FROM flow_run WHERE state_type = 'RUNNING'"
# Somebody's flow, which would take long.
SLEEPER = asked("""
with open("/run/sleeper.py", "w") as file:
    file.write("import time\\nfrom prefect import flow\\n@flow\\ndef sleeper(): time.sleep(900)\\n")
step = {"prefect.deployments.steps.set_working_directory": {"directory": "/run"}}
made = ask("POST", "deployments/", {
    "name": "sleeper", "flow_id": ask("POST", "flows/", {"name": "sleeper"})["id"],
    "work_pool_name": "server", "entrypoint": "sleeper.py:sleeper", "pull_steps": [step],
})
ask("POST", f"deployments/{made['id']}/create_flow_run", {})
""")
REVISION = "SELECT version_num FROM alembic_version"
DOWNGRADE = """
systemctl stop prefect-server prefect-worker
export HOME=/var/lib/prefect
cd ~/.prefect
runuser -u prefect -- sh -c "exec /opt/prefect/3.8.8-*/bin/prefect server database downgrade --yes"
"""
# Prefect's migration waits for this table in the middle of its work.
LOCK = "DO $$ BEGIN LOCK TABLE flow_run; PERFORM pg_sleep(40); END $$"
MIGRATING = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'prefect' AND wait_event_type = 'Lock'"
)
WAITING = "SELECT count(*) FROM pg_locks WHERE relation = 'flow_run'::regclass AND granted AND mode = 'AccessExclusiveLock'"
INSTALLING = "pgrep --full --count 'uv --quiet tool install' || true"
ALIVE = "curl -sf http://127.0.0.1:4200/api/health"


def cut(story: Story) -> None:
    """Cut the power, and switch it on again."""
    story.google("compute", "instances", "reset", NAME)


def until(what: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def bootstrap(story: Story, log: Path) -> Iterator[Future[Ended]]:
    """A bootstrap under way; at the end, it has been run again, and there is no drift."""
    with follow.api(story.urls["laptop"]) as client:
        spec = follow.found(client, DRIFT)["parameters"]["server"]
    with driver(story.urls["laptop"], log) as laptop, ThreadPoolExecutor(1) as beside:
        yield beside.submit(lambda: laptop.run("bootstrap-server", {"server": spec}, 300))
        again = laptop.run("bootstrap-server", {"server": spec}, 300)
        assert again.state in ("Changed", "Unchanged"), again.message
        checked = laptop.run("check-drift", {"server": spec}, 120)
        assert checked.state == "Unchanged", checked.rows


def test_in_a_flow_run_nothing_committed_is_lost_and_the_server_is_back_within_30_seconds(
    story: Story,
) -> None:
    story.rests()
    completed = set(story.sql(COMPLETED).splitlines())
    assert completed
    story.root(*SLEEPER.words)
    until(lambda: story.sql(RUNNING) == "1")
    story.api("POST", "deployments/{check}/create_flow_run", "{}")
    until(lambda: story.sql(RUNNING) == "2")
    cut(story)
    began = time.monotonic()
    until(lambda: story.root(ALIVE, check=False).stdout == "true")
    assert time.monotonic() - began < BACK
    assert completed <= set(story.sql(COMPLETED).splitlines())
    assert story.run(DRIFT).state == "Unchanged"


def test_in_a_migration_the_next_run_finishes_it(story: Story, tmp_path: Path) -> None:
    head = story.sql(REVISION)
    story.root(DOWNGRADE)
    assert story.sql(REVISION) != head
    with ThreadPoolExecutor(1) as beside:
        held = beside.submit(story.sql, LOCK)
        until(lambda: story.sql(WAITING) == "1")
        with bootstrap(story, tmp_path / "log") as first:
            until(lambda: story.sql(MIGRATING) != "0")
            cut(story)
            assert story.sql(REVISION) != head
            held.result(SECONDS)
            first.result(300)
    assert story.sql(REVISION) == head


def test_in_an_install_the_next_run_finishes_it(story: Story, tmp_path: Path) -> None:
    story.root("systemctl stop prefect-server prefect-worker; rm -rf /opt/prefect/3.8.8-*")
    with bootstrap(story, tmp_path / "log") as first:
        until(lambda: story.root(INSTALLING, check=False).stdout.strip() not in ("", "0"))
        cut(story)
        first.result(300)
