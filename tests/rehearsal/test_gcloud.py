"""gcloud, unmodified, against the rehearsal cloud."""

from __future__ import annotations

import pytest

from tests.rehearsal.conftest import Lab

pytestmark = [pytest.mark.rehearsal, pytest.mark.gcloud]


def test_networks_firewalls_routers_and_nats(lab: Lab) -> None:
    lab.gcloud("compute", "networks", "create", "net", "--subnet-mode=custom")
    lab.gcloud(
        *("compute", "networks", "subnets", "create", "sub", "--network=net"),
        *("--range=10.200.0.0/24", "--enable-private-ip-google-access"),
    )
    subnet = lab.describe("compute", "networks", "subnets", "describe", "sub")
    assert (subnet["gatewayAddress"], subnet["privateIpGoogleAccess"]) == ("10.200.0.1", True)
    lab.gcloud(
        *("compute", "firewall-rules", "create", "web", "--network=net"),
        *("--allow=tcp:80,tcp:8000-8010,icmp", "--source-ranges=10.0.0.0/8", "--target-tags=web"),
    )
    lab.gcloud("compute", "firewall-rules", "update", "web", "--source-ranges=10.200.0.0/24")
    rule = lab.describe("compute", "firewall-rules", "describe", "web")
    assert rule["sourceRanges"] == ["10.200.0.0/24"]
    assert {"IPProtocol": "tcp", "ports": ["8000-8010"]} in rule["allowed"]
    lab.gcloud("compute", "routers", "create", "router", "--network=net")
    lab.gcloud(
        *("compute", "routers", "nats", "create", "nat", "--router=router"),
        *("--auto-allocate-nat-external-ips", "--nat-all-subnet-ip-ranges"),
    )
    nats = lab.describe("compute", "routers", "nats", "list", "--router=router")
    assert [nat["name"] for nat in nats] == ["nat"]
    busy = lab.gcloud("compute", "networks", "delete", "net", check=False)
    assert busy.returncode == 1
    assert "is already being used by" in busy.stderr
    lab.gcloud("compute", "routers", "delete", "router")
    lab.gcloud("compute", "firewall-rules", "delete", "web")
    lab.gcloud("compute", "networks", "subnets", "delete", "sub")
    lab.gcloud("compute", "networks", "delete", "net")
    names = [n["name"] for n in lab.describe("compute", "networks", "list")]
    assert "net" not in names


def test_two_instances_in_one_command_and_their_life(lab: Lab, network: str) -> None:
    lab.create("red", "blue", network=network)
    listed = lab.describe("compute", "instances", "list", "--filter=name:(red blue)")
    assert sorted((i["name"], i["status"]) for i in listed) == [
        ("blue", "RUNNING"),
        ("red", "RUNNING"),
    ]
    lab.gcloud("compute", "instances", "stop", "red", "blue")
    assert lab.describe("compute", "instances", "describe", "red")["status"] == "TERMINATED"
    lab.gcloud("compute", "instances", "set-machine-type", "red", "--machine-type=e2-medium")
    lab.gcloud("compute", "instances", "add-labels", "red", "--labels=env=test")
    lab.gcloud("compute", "instances", "add-tags", "red", "--tags=web")
    lab.gcloud("compute", "instances", "start", "red")
    red = lab.describe("compute", "instances", "describe", "red")
    assert red["status"] == "RUNNING"
    assert red["machineType"].endswith("/e2-medium")
    assert (red["labels"], red["tags"]["items"]) == ({"env": "test"}, ["web"])
    lab.delete("red", "blue")
    assert lab.gcloud("compute", "instances", "describe", "red", check=False).returncode == 1


def test_deletion_protection_refuses(lab: Lab, network: str) -> None:
    lab.create("kept", network=network, extra=("--deletion-protection",))
    refused = lab.gcloud("compute", "instances", "delete", "kept", check=False)
    assert refused.returncode == 1
    assert "Resource cannot be deleted if it's protected against deletion" in refused.stderr
    lab.gcloud("compute", "instances", "update", "kept", "--no-deletion-protection")
    lab.delete("kept")


def test_ssh_through_iap_with_strict_host_keys(lab: Lab, machine: str) -> None:
    done = lab.gcloud(
        *("compute", "ssh", f"tester@{machine}", "--tunnel-through-iap"),
        *("--strict-host-key-checking=yes", f"--ssh-key-file={lab.home / 'key'}"),
        "--command=cat /etc/debian_version",
    )
    assert done.stdout.startswith("12.")


def test_a_firewall_without_the_iap_range_answers_4003(
    lab: Lab, network: str, machine: str
) -> None:
    lab.gcloud("compute", "firewall-rules", "update", "lab-iap", "--source-ranges=10.0.0.0/8")
    try:
        tunnel = lab.gcloud(
            *("compute", "start-iap-tunnel", machine, "22", "--listen-on-stdin"), check=False
        )
        assert "4003: 'failed to connect to backend'" in tunnel.stderr
    finally:
        lab.gcloud(
            *("compute", "firewall-rules", "update", "lab-iap"), "--source-ranges=35.235.240.0/20"
        )


def test_a_port_that_no_rule_opens_answers_4003(lab: Lab, machine: str) -> None:
    tunnel = lab.gcloud(
        *("compute", "start-iap-tunnel", machine, "4200", "--listen-on-stdin"), check=False
    )
    assert "4003" in tunnel.stderr


def test_secrets(lab: Lab) -> None:
    value = lab.home / "value"
    value.write_text("s3cret")
    lab.gcloud("secrets", "create", "by-gcloud", f"--data-file={value}")
    read = lab.gcloud("secrets", "versions", "access", "latest", "--secret=by-gcloud")
    assert read.stdout == "s3cret"
    lab.gcloud("secrets", "delete", "by-gcloud")
