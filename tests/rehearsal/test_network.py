"""Nothing of the rehearsal's networks is reachable from the host but through the relay."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from pathlib import Path

import pytest

from rehearsal.config import NAMESPACE
from tests.rehearsal.conftest import Lab

pytestmark = [pytest.mark.rehearsal, pytest.mark.gcloud]


def test_the_host_has_no_route_to_a_machine(lab: Lab, machine: str) -> None:
    address = "10.128.0.2"
    instance = lab.describe("compute", "instances", "describe", machine)
    assert instance["networkInterfaces"][0]["networkIP"] == address
    for ranges in ("10.128.0.0/9", "10.104.120.0/24", "100.64.0.0/10", "35.235.240.0/20"):
        command = ["ip", "-json", "route", "show", "table", "all", "root", ranges]
        routes = json.loads(subprocess.run(command, capture_output=True, check=True).stdout or "[]")
        assert routes == []
    devices = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True)
    assert not [w for w in ("br0", "veth", "vpc", "ens4") if w in devices.stdout]
    # The relay's way in is a socket of the network's own namespace, which the host's are not.
    namespaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"{NAMESPACE}vpc" in namespaces
    # A connect() of the host would leave for its default gateway; so it is bound to loopback,
    # from where nothing may leave, and must fail there.
    with contextlib.closing(socket.socket()) as host:
        host.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        host.settimeout(2)
        with pytest.raises(OSError, match=r"unreachable|timed out"):
            host.connect((address, 22))
    assert lab.ssh(machine, "hostname").stdout == f"{machine}\n"


def test_machines_reach_each_other_only_as_the_firewall_says(
    lab: Lab, network: str, machine: str
) -> None:
    lab.create("peer", network=network, extra=("--tags=peer",))
    knock = "timeout 2 bash -c 'echo > /dev/tcp/10.128.0.3/22'; echo $?"
    peer = lab.describe("compute", "instances", "describe", "peer")
    address = peer["networkInterfaces"][0]["networkIP"]
    knock = knock.replace("10.128.0.3", address)
    lab.ssh("peer", "true")
    assert lab.ssh(machine, knock).stdout == "124\n"
    lab.gcloud(
        *("compute", "firewall-rules", "create", "lab-inside", f"--network={network}"),
        *("--allow=tcp:22", "--source-ranges=10.128.0.0/20", "--target-tags=peer"),
    )
    assert lab.ssh(machine, knock).stdout == "0\n"
    lab.gcloud("compute", "instances", "remove-tags", "peer", "--tags=peer")
    assert lab.ssh(machine, knock).stdout == "124\n"
    lab.gcloud("compute", "firewall-rules", "delete", "lab-inside")
    lab.delete("peer")


def test_the_database_answers_inside_the_network(lab: Lab, machine: str) -> None:
    knock = "timeout 2 bash -c 'echo > /dev/tcp/10.104.120.4/5432' 2>/dev/null; echo $?"
    assert lab.ssh(machine, knock).stdout == "0\n"
    status = json.loads(lab.cloud.ctl("status", "--json").stdout)
    authority = Path(status["authority"]).read_text()
    tls = "openssl s_client -starttls postgres -connect 10.104.120.4:5432 -verify_ip 10.104.120.4"
    verify = f"echo '{authority}' > ca.crt; {tls} -CAfile ca.crt </dev/null 2>&1"
    assert "Verify return code: 0 (ok)" in lab.ssh(machine, verify, check=False).stdout
    lab.cloud.ctl("database", "stop")
    assert lab.ssh(machine, knock).stdout == "1\n"
    lab.cloud.ctl("database", "start")
    assert lab.ssh(machine, knock).stdout == "0\n"
    query = (
        "select r.rolname, r.rolsuper, current_setting('password_encryption') from pg_database d"
        " join pg_roles r on r.oid = d.datdba where datname = 'prefect-db'"
    )
    answer = lab.cloud.ctl("database", "psql", "-Atc", query).stdout
    assert answer == "prefect|f|scram-sha-256\n"


def test_metadata_and_names_without_a_way_out(lab: Lab, machine: str) -> None:
    ask = "curl -sS -m 3 -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/"
    assert lab.ssh(machine, f"{ask}instance/name").stdout == machine
    assert lab.ssh(machine, f"{ask}project/project-id").stdout == "rehearsal"
    refused = "curl -s -o /dev/null -w '%{http_code}' http://169.254.169.254/computeMetadata/v1/"
    assert lab.ssh(machine, refused).stdout == "403"
