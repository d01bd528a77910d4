"""ssh through our own tunnel instead of gcloud's, to a real sshd."""

from __future__ import annotations

import hashlib
import random
import shlex
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import Completed
from tests.rehearsal.conftest import Lab

pytestmark = [pytest.mark.rehearsal, pytest.mark.gcloud]

FORTY = 20 * (2 << 20)
SLOWLY = "for i in $(seq 20); do head -c 2097152; sleep 0.2; done"


def ssh(lab: Lab, name: str, command: str) -> list[str]:
    """The command line. ``lab.ssh`` has pinned the host key before."""
    known = lab.home / f"known.{name}"
    proxy = f"{sys.executable} -m blocks.iap rehearsal us-central1-a {name} 22"
    return [
        *("ssh", "-F", "none", "-i", str(lab.home / "key"), "-o", f"ProxyCommand={proxy}"),
        *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}"),
        *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        *("-o", f"HostKeyAlias={known.read_text().split()[0]}", "-o", "IdentitiesOnly=yes"),
        *("-o", "BatchMode=yes", f"tester@{name}", command),
    ]


def test_ssh_through_the_tunnel(lab: Lab, machine: str) -> None:
    lab.ssh(machine, "true")
    done = lab.cloud.run(*ssh(lab, machine, "cat /etc/debian_version"))
    assert done.stdout.startswith("12.")
    assert done.stderr == ""


def test_forty_megabytes_each_way_survive_five_cuts(lab: Lab, machine: str, tmp_path: Path) -> None:
    lab.ssh(machine, "true")
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(random.Random(1).randbytes(FORTY))  # noqa: S311 - not a secret
    line = f"{shlex.join(ssh(lab, machine, SLOWLY))} < {sent} > {back}"
    results: list[Completed] = []
    copying = threading.Thread(
        target=lambda: results.append(lab.cloud.run("sh", "-c", line, check=False))
    )
    copying.start()
    cuts = 0
    while cuts < 5 and copying.is_alive():
        if back.exists() and back.stat().st_size:
            cuts += lab.cloud.ctl("fault", "--cut").stdout.startswith("cut 1 ")
    copying.join()
    assert cuts == 5
    assert [(done.returncode, done.stderr) for done in results] == [(0, "")]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (sent, back)]
    assert digests[0] == digests[1]


def test_a_port_the_firewall_closes_is_named(lab: Lab, machine: str) -> None:
    command = [sys.executable, "-m", "blocks.iap", "rehearsal", "us-central1-a", machine, "4200"]
    done = lab.cloud.run(*command, check=False)
    assert done.returncode == 44
    assert "35.235.240.0/20" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_instance_that_is_not_there_is_named(lab: Lab, network: str) -> None:
    command = [sys.executable, "-m", "blocks.iap", "rehearsal", "us-central1-a", "nobody", "22"]
    assert lab.cloud.run(*command, check=False).returncode == 46
