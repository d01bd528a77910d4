"""A machine of the rehearsal cloud really is one."""

from __future__ import annotations

import pytest

from tests.rehearsal.conftest import Lab

pytestmark = [pytest.mark.rehearsal, pytest.mark.gcloud]


def test_it_boots_debian_12_to_running(lab: Lab, machine: str) -> None:
    done = lab.ssh(machine, "systemctl is-system-running --wait; python3 -V; id -u; sudo id -u")
    state, python, user, root = done.stdout.split("\n")[:4]
    assert state == "running"
    assert python.startswith("Python 3.11")
    assert (user != "0", root) == (True, "0")


def test_it_has_the_declared_disk_and_memory(lab: Lab, machine: str) -> None:
    disk = int(lab.ssh(machine, "df --output=size -B1G / | tail -1").stdout)
    assert 9 <= disk <= 10
    eat = "python3 -c 'x = bytearray(3 << 30)'; echo $?"  # an e2-small has 2 GiB
    assert lab.ssh(machine, eat).stdout == "137\n"
    assert lab.ssh(machine, "systemctl is-system-running").stdout == "running\n"


def test_a_full_disk_is_the_machines_alone(lab: Lab, machine: str) -> None:
    fill = "fallocate -l 20G fill; echo $?; rm -f fill"
    assert lab.ssh(machine, fill).stdout == "1\n"


def test_without_nat_there_is_no_way_out_and_with_it_there_is(
    lab: Lab, network: str, machine: str
) -> None:
    update = "sudo timeout 8 apt-get update -o Acquire::Retries=0"
    assert lab.ssh(machine, update, check=False).returncode == 124
    lab.gcloud("compute", "routers", "create", "lab", f"--network={network}")
    lab.gcloud(
        *("compute", "routers", "nats", "create", "lab", "--router=lab"),
        *("--auto-allocate-nat-external-ips", "--nat-all-subnet-ip-ranges"),
    )
    try:
        install = "sudo apt-get -qq update && sudo apt-get -qq install -y tree && tree --version"
        assert "tree v2" in lab.ssh(machine, install).stdout
        # Somebody's private network is never a way out.
        private = "curl -sS -m 3 http://10.0.0.1/"
        assert lab.ssh(machine, private, check=False).returncode == 28
    finally:
        lab.gcloud("compute", "routers", "delete", "lab")


def test_the_guest_agent_follows_the_metadata(lab: Lab, machine: str) -> None:
    key = (lab.home / "key.pub").read_text().strip()
    keys = f"tester:{key}\nsecond:{key}"
    file = lab.home / "keys"
    file.write_text(keys)
    lab.gcloud(
        *("compute", "instances", "add-metadata", machine, f"--metadata-from-file=ssh-keys={file}")
    )
    wait = "for i in $(seq 100); do id -un second && exit; sleep 0.1; done"
    assert lab.ssh(machine, wait).stdout == "second\n"


def test_a_reboot_keeps_files_and_runs_the_startup_script(lab: Lab, machine: str) -> None:
    lab.ssh(machine, "echo kept | sudo tee /srv/file; cat /proc/sys/kernel/random/boot_id")
    lab.gcloud("compute", "instances", "reset", machine)
    assert lab.ssh(machine, "cat /srv/file").stdout == "kept\n"
    wait = "for i in $(seq 100); do cat /var/startup 2>/dev/null && exit; sleep 0.1; done"
    assert lab.ssh(machine, wait).stdout == "made at boot\n"
    lab.gcloud("compute", "instances", "stop", machine)
    lab.gcloud("compute", "instances", "start", machine)
    assert lab.ssh(machine, "cat /srv/file").stdout == "kept\n"
    serial = lab.gcloud("compute", "instances", "get-serial-port-output", machine).stdout
    assert "Debian GNU/Linux 12" in serial


def test_a_reboot_from_inside_comes_back(lab: Lab, machine: str) -> None:
    first = lab.ssh(machine, "stat -c %Z /proc/1").stdout
    lab.ssh(machine, "sudo systemctl reboot", check=False)
    for _ in range(30):
        again = lab.ssh(machine, "stat -c %Z /proc/1", check=False)
        if again.returncode == 0 and again.stdout != first:
            break
    assert again.returncode == 0
    assert again.stdout != first


def test_a_data_disk_appears_and_keeps_its_content(lab: Lab, machine: str) -> None:
    lab.gcloud("compute", "disks", "create", "data", "--size=10GB")
    lab.gcloud(
        *("compute", "instances", "attach-disk", machine, "--disk=data", "--device-name=data")
    )
    device = "/dev/disk/by-id/google-data"
    made = lab.ssh(machine, f"sudo mkfs.ext4 -q {device} && sudo blkid -o value -s TYPE {device}")
    assert made.stdout == "ext4\n"
    lab.gcloud("compute", "disks", "snapshot", "data", "--snapshot-names=copy")
    lab.gcloud("compute", "instances", "detach-disk", machine, "--disk=data")
    assert lab.ssh(machine, f"ls {device}", check=False).returncode == 2
    lab.gcloud("compute", "disks", "create", "restored", "--source-snapshot=copy")
    lab.gcloud("compute", "instances", "attach-disk", machine, "--disk=restored")
    restored = "/dev/disk/by-id/google-persistent-disk-1"
    assert lab.ssh(machine, f"sudo blkid -o value -s TYPE {restored}").stdout == "ext4\n"
    lab.gcloud("compute", "instances", "detach-disk", machine, "--disk=restored")
    lab.gcloud("compute", "disks", "delete", "data", "restored")
    lab.gcloud("compute", "snapshots", "delete", "copy")
