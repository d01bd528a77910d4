"""``down`` leaves the host as it was, whatever happened before. Runs last: it ends the cloud."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rehearsal.config import DISKS, NAME, NAMESPACE
from tests.rehearsal.conftest import Lab

pytestmark = [pytest.mark.rehearsal, pytest.mark.gcloud]

LOOK = {
    "namespaces": ["ip", "netns"],
    "links": ["ip", "-br", "link"],
    "routes": ["ip", "route", "show", "table", "all"],
    "mounts": ["findmnt", "-rno", "TARGET,FSTYPE"],
    "loops": ["losetup", "-ln"],
    "nftables": ["nft", "list", "ruleset"],
    "sysctls": ["sh", "-c", "sysctl -a --pattern 'forward|redirects|rp_filter' 2>/dev/null"],
    "groups": ["find", "/sys/fs/cgroup", "-maxdepth", "2", "-name", "rehearsal*"],
    "files": ["sh", "-c", "ls -d /run/rehearsal* /var/lib/rehearsal* /run/lock/rehearsal* || true"],
}


def ours(line: str) -> bool:
    """Whether it names no other cloud: one may run beside this one."""
    return {*re.findall(r"\brehearsal\d*\b(?!\.)", line)} <= {NAME}


def look() -> dict[str, str]:
    """What a cloud could leave on the host."""
    seen = {
        name: subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for name, command in LOOK.items()
    }
    seen = {name: "\n".join(filter(ours, text.splitlines())) for name, text in seen.items()}
    if Path("/usr/sbin/iptables-save").exists():
        saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False)
        seen["iptables"] = "".join(
            line for line in saved.stdout.splitlines(keepends=True) if not line.startswith("#")
        )
    return {**seen, "processes": processes()}


def processes() -> str:
    """Commands that belong to a cloud; a killed one may wait for init to collect it."""
    for _ in range(50):
        listed = subprocess.run(
            ["ps", "-eo", "stat=,comm=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        words = ("systemd-nspawn", "slirp4netns", "rehearsal.daemon", str(DISKS))
        found = [line for line in listed if any(w in line for w in words) and ours(line)]
        if not found:
            return ""
        time.sleep(0.1)
    return "\n".join(found)


def daemon() -> int:
    files = list(Path("/sys/fs/cgroup").glob(f"**/{NAME}/daemon/cgroup.procs"))
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    return next(
        pid for pid in pids if b"rehearsal.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def named(command: str, argument: str) -> int:
    """The process whose command and arguments contain these."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if line.startswith(command) and argument in line:
            return int(folder.name)
    raise AssertionError(f"no process {command} … {argument}")


def database_answers(lab: Lab) -> bool:
    """Whether PostgreSQL is back within 20 seconds."""
    for _ in range(40):
        status = json.loads(lab.cloud.ctl("status", "--json").stdout)
        if status["database"]["state"] == "RUNNING":
            return True
        time.sleep(0.5)
    return False


@pytest.fixture(scope="module")
def bare(lab: Lab) -> dict[str, str]:
    """The host without a cloud."""
    lab.cloud.ctl("down", timeout=60)
    return look()


def test_down_leaves_nothing_of_a_working_cloud(lab: Lab, bare: dict[str, str]) -> None:
    lab.cloud.ctl("up", timeout=100)
    lab.cloud.ctl("up", timeout=100)  # twice is harmless
    lab.gcloud("compute", "networks", "create", "auto", "--subnet-mode=auto")
    lab.create("left", network="auto")
    assert look() != bare
    lab.cloud.ctl("down", timeout=60)
    assert look() == bare


def test_up_and_down_after_the_daemon_was_killed(lab: Lab, bare: dict[str, str]) -> None:
    lab.cloud.ctl("up", timeout=100)
    lab.gcloud("compute", "networks", "create", "auto", "--subnet-mode=auto")
    lab.create("left", network="auto")
    os.kill(daemon(), signal.SIGKILL)
    status = json.loads(lab.cloud.ctl("status", "--json").stdout)
    assert status == {"up": False}
    lab.cloud.ctl("up", timeout=100)
    assert lab.describe("compute", "instances", "list") == []
    os.kill(daemon(), signal.SIGKILL)
    lab.cloud.ctl("down", timeout=60)
    assert look() == bare


def test_what_is_killed_below_the_daemon_comes_back(lab: Lab, bare: dict[str, str]) -> None:
    lab.cloud.ctl("up", timeout=100)
    lab.gcloud("compute", "networks", "create", "auto", "--subnet-mode=auto")
    allow = ("--allow=tcp:22", "--source-ranges=35.235.240.0/20")
    lab.gcloud("compute", "firewall-rules", "create", "iap", "--network=auto", *allow)
    lab.create("left", network="auto")
    lab.ssh("left", "true")
    number = lab.describe("compute", "instances", "describe", "left")["id"]
    os.kill(named("systemd-nspawn", f"{DISKS}/i{number}.root"), signal.SIGKILL)
    os.kill(named("systemd-nspawn", f"{DISKS}/database.root"), signal.SIGKILL)
    os.kill(named("slirp4netns", f"{NAMESPACE}vpc1"), signal.SIGKILL)
    lab.cloud.ctl("up", timeout=100)
    assert (
        lab.ssh("left", "getent hosts metadata.google.internal >/dev/null; echo up").stdout
        == "up\n"
    )
    assert database_answers(lab)
    assert named("slirp4netns", f"{NAMESPACE}vpc1")
    lab.cloud.ctl("down", timeout=60)
    assert look() == bare
