"""What lies on the machine: units that systemd itself finds hardened, secrets where they belong, and
updates from where they should come. Needs Debian's systemd and apt."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.catalog import SERVER, WORKER, Server
from flows.reconcile import Change
from flows.resources.files import File
from tests.flows.paper_world import AUTH, SECRETS, SERVER_TOML, SERVER_UNIT, URL, WORKER_TOML
from tests.flows.paper_world import WORKER_UNIT as WORKER_NAME
from tests.flows.test_compute_resources import spec

EXPOSURE = 25
"""The most that ``systemd-analyze security`` may say, in tenths; 100 is a unit that names nothing."""
UNITS = {SERVER_UNIT: SERVER, WORKER_NAME: WORKER}
"""Unit → its directory."""
UPDATES = "/etc/apt/apt.conf.d/99prefect.conf"


def files(port: int = 4200) -> dict[str, File]:
    """Path → every file that the catalog writes."""
    made = Server(spec(server={"port": port}), SECRETS).machine()
    return {kind.path: kind for kind in made if isinstance(kind, File)}


def unit(name: str, port: int = 4200) -> str:
    return files(port)[f"/etc/systemd/system/{name}"].content


def said(text: str, setting: str) -> list[str]:
    """Every value of a setting, in order."""
    return re.findall(rf"^{setting}=(.*)$", text, re.MULTILINE)


@pytest.fixture(params=UNITS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# systemd


def test_systemd_finds_a_unit_little_exposed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(unit(name))
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}"]
    done = subprocess.run([*argv, str(tmp_path / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_systemd_knows_every_setting_of_a_unit(name: str, tmp_path: Path) -> None:
    """And complains of nothing but the program, which is not on this machine."""
    (tmp_path / name).write_text(unit(name))
    argv = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    told = subprocess.run(argv, capture_output=True, text=True).stderr
    lines = [line for line in told.splitlines() if name in line]
    assert len(lines) == 1, lines
    assert lines[0].endswith("/bin/prefect is not executable: No such file or directory")


def test_systemd_never_gives_a_unit_up(name: str) -> None:
    text = unit(name)
    assert (said(text, "Restart"), said(text, "StartLimitIntervalSec")) == (["always"], ["0"])


def test_both_units_together_leave_some_memory() -> None:
    bounds = [said(unit(name), "MemoryMax") for name in UNITS]
    assert sum(int(percent.rstrip("%")) for (percent,) in bounds) <= 95


# The worker's start


class Api(BaseHTTPRequestHandler):
    """Not ready when it is first asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(503 if len(self.asked) == 1 else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[HTTPServer]:
    Api.asked = []
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_worker_waits_until_the_api_is_healthy(api: HTTPServer) -> None:
    waits, _ = said(unit(WORKER_NAME, api.server_port), "ExecStartPre")
    subprocess.run(shlex.split(waits), check=True, timeout=30)
    assert Api.asked == ["/api/health"] * 2


def test_systemd_ends_the_workers_wait_before_a_run_gives_the_restart_up() -> None:
    """So that the run says what systemd does, and a later start finds nothing half done."""
    [limit] = said(unit(WORKER_NAME), "TimeoutStartSec")
    _, worker = Server(spec(), SECRETS).services()
    commands = worker.commands((Change("state", "active (running)", "inactive (dead)"),))
    [restart] = [c for c in commands if c.argv[:2] == ("systemctl", "restart")]
    assert int(limit) < restart.seconds


# Secrets


def test_the_auth_string_lies_in_two_files_of_mode_600_and_nowhere_else() -> None:
    """Nor in a unit: systemd shows anyone a service's variables and arguments."""
    holds = {path: (f.mode, f.owner) for path, f in files().items() if AUTH in f.content}
    assert holds == dict.fromkeys((SERVER_TOML, WORKER_TOML), ("600", "prefect:prefect"))
    assert [path for path, file in files().items() if URL in file.content] == [SERVER_TOML]


def test_a_unit_gives_its_directory_as_a_variable_and_nothing_else(name: str) -> None:
    text = unit(name)
    assert said(text, "Environment") == [f"PREFECT_HOME={UNITS[name]}"]
    assert not re.search(r"^(EnvironmentFile|PassEnvironment|SetCredential)", text, re.MULTILINE)


# Updates


def test_nothing_but_debians_security_updates_comes_by_itself(tmp_path: Path) -> None:
    parts = tmp_path / "apt.conf.d"
    parts.mkdir()
    debians = 'Unattended-Upgrade::Origins-Pattern { "origin=Debian,label=Debian"; };\n'
    (parts / "20auto-upgrades").write_text('APT::Periodic::Unattended-Upgrade "0";\n')
    (parts / "50unattended-upgrades").write_text(debians)
    (parts / UPDATES.rpartition("/")[2]).write_text(files()[UPDATES].content)
    main = tmp_path / "apt.conf"
    main.write_text(f'Dir::Etc::parts "{parts}";\n')
    dump = subprocess.run(
        ["apt-config", "dump", "--format=%f=%v%n"],
        env=os.environ | {"APT_CONFIG": str(main)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said(dump, "Unattended-Upgrade::Origins-Pattern::") == [
        "origin=Debian,label=Debian-Security"
    ]
    assert said(dump, "APT::Periodic::Unattended-Upgrade") == ["1"]
    assert said(dump, "Unattended-Upgrade::Automatic-Reboot") == ["false"]
