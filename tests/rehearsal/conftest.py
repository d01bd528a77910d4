"""A network with gcloud's own key on its machines, and ssh to them through IAP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cloud, Completed

IAP = "35.235.240.0/20"


@dataclass(frozen=True)
class Lab:
    """The cloud, with a home directory of the tests' own so that nobody's ssh keys change."""

    cloud: Cloud
    home: Path

    def gcloud(self, *args: str, check: bool = True, timeout: float = 60) -> Completed:
        return self.cloud.run(
            "gcloud", *args, "--quiet", check=check, timeout=timeout, env={"HOME": str(self.home)}
        )

    def describe(self, *args: str) -> Any:
        return json.loads(self.gcloud(*args, "--format=json").stdout)

    def python(self, code: str, *args: str, timeout: float = 60) -> str:
        """Run Python with Google's clients in the cloud; its output."""
        return self.cloud.run(sys.executable, "-c", code, *args, timeout=timeout).stdout

    def create(self, *names: str, network: str, extra: tuple[str, ...] = ()) -> Completed:
        """Machines that take the tests' key and publish their host keys."""
        public = (self.home / "key.pub").read_text().strip()
        metadata = f"enable-oslogin=FALSE,enable-guest-attributes=TRUE,ssh-keys=tester:{public}"
        return self.gcloud(
            *("compute", "instances", "create", *names, f"--subnet={network}", "--no-address"),
            *("--image-family=debian-12", "--image-project=debian-cloud"),
            *("--machine-type=e2-small", f"--metadata={metadata}", *extra),
        )

    def delete(self, *names: str) -> None:
        self.gcloud("compute", "instances", "delete", *names)
        for name in names:
            (self.home / f"known.{name}").unlink(missing_ok=True)

    def ssh(
        self, name: str, command: str, *, timeout: float = 60, check: bool = True, tries: int = 20
    ) -> Completed:
        """Run a command on a machine as ``tester``, through IAP, its host key pinned by what the
        machine published. The first tries may come before the guest agent made the user."""
        known = self.home / f"known.{name}"
        if not known.exists():
            number = self.describe("compute", "instances", "describe", name)["id"]
            known.write_text(self.host_keys(name, number))
        alias = known.read_text().split()[0]
        proxy = f"gcloud compute start-iap-tunnel {name} 22 --listen-on-stdin --verbosity=error"
        argv = [
            *("ssh", "-i", str(self.home / "key"), "-o", f"ProxyCommand={proxy}"),
            *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}"),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
            *("-o", f"HostKeyAlias={alias}", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"),
            *("-o", f"ControlPath={self.home}/%r@%n", f"tester@{name}", command),
        ]
        for _ in range(tries):
            done = self.cloud.run(*argv, timeout=timeout, check=False, env={"HOME": str(self.home)})
            if done.returncode != 255 or "Permission denied" not in done.stderr:
                break
        if check and done.returncode:
            tunnel = self.gcloud(
                *proxy.split()[1:], check=False
            ).stderr  # which ssh keeps to itself
            pytest.fail(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}{tunnel}")
        return done

    def host_keys(self, name: str, number: str) -> str:
        for _ in range(20):
            found = self.gcloud(
                *("compute", "instances", "get-guest-attributes", name),
                *("--query-path=hostkeys/", "--format=json"),
                check=False,
            )
            if found.returncode == 0:
                return "".join(
                    f"compute.{number} {item['key']} {item['value']}\n"
                    for item in json.loads(found.stdout)
                )
        raise AssertionError(f"{name} published no host keys: {found.stderr}")


@pytest.fixture(scope="session")
def lab(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "key")]
    subprocess.run(command, check=True, timeout=30, env={**os.environ, "HOME": str(home)})
    return Lab(cloud, home)


@pytest.fixture(scope="session")
def network(lab: Lab) -> str:
    """A network and subnet ``lab`` that IAP may reach, without a way out."""
    lab.gcloud("compute", "networks", "create", "lab", "--subnet-mode=custom")
    lab.gcloud(
        *("compute", "networks", "subnets", "create", "lab", "--network=lab"),
        "--range=10.128.0.0/20",
    )
    lab.gcloud(
        *("compute", "firewall-rules", "create", "lab-iap", "--network=lab"),
        *("--allow=tcp:22", f"--source-ranges={IAP}"),
    )
    return "lab"


@pytest.fixture(scope="session")
def machine(lab: Lab, network: str) -> str:
    """A running machine in ``lab``."""
    script = "startup-script=#!/bin/sh\necho made at boot > /var/startup"
    lab.create("one", network=network)
    lab.gcloud("compute", "instances", "add-metadata", "one", f"--metadata={script}")
    return "one"
