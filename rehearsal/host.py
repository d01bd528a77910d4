"""The host: what it must have, entering the cloud's view of it, and leaving it as it was."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rehearsal import cgroups
from rehearsal.config import (
    DISKS,
    HOSTS,
    NAMESPACE,
    PROJECT,
    REGION,
    STATE,
    ZONE,
)  # fmt: skip

TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "slirp4netns": "slirp4netns",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
    "nsenter": "util-linux",
}
"""Command → the Debian package that has it."""
BUNDLE = STATE / "ca-bundle.crt"
CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
)
_NEWNS, _BIND, _REC, _SLAVE = 0x20000, 4096, 16384, 1 << 19


def missing() -> list[str]:
    """What this host lacks to run the rehearsal cloud, each with how to get it."""
    if sys.platform != "linux":
        return ["the rehearsal cloud needs Linux: run it in a virtual machine with Debian 12"]
    lacks = []
    if os.geteuid() != 0:
        lacks.append("it needs root for namespaces and mounts: run it with sudo")
    packages = sorted({p for tool, p in TOOLS.items() if not shutil.which(tool)})
    if packages:
        lacks.append(f"tools are missing: apt-get install {' '.join(packages)}")
    lacks += [
        f"{device} is missing: load its kernel module (tun, loop)"
        for device in ("/dev/net/tun", "/dev/loop-control")
        if not Path(device).exists()
    ]
    if not cgroups.hierarchies():
        lacks.append("no control groups: mount them under /sys/fs/cgroup")
    return lacks


def environment() -> dict[str, str]:
    """The environment of a command in the cloud: its credentials, project and authority, and
    nothing of the caller's own Google settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLOUDSDK_", "GOOGLE_"))}
    key = str(STATE / "gcloud/application_default_credentials.json")
    unproxied = ",".join(["127.0.0.1", *HOSTS])
    return {
        **kept,
        **dict.fromkeys(CA_VARIABLES, str(BUNDLE)),
        "NO_PROXY": ",".join(filter(None, [kept.get("NO_PROXY"), unproxied])),
        "GOOGLE_APPLICATION_CREDENTIALS": key,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "CLOUDSDK_CONFIG": str(STATE / "gcloud"),
        "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE": key,
        "CLOUDSDK_CORE_PROJECT": PROJECT,
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
        "CLOUDSDK_COMPUTE_REGION": REGION,
        "CLOUDSDK_COMPUTE_ZONE": ZONE,
    }


def enter() -> None:
    """Give this process a mount namespace of its own, in which Google's hosts are the cloud's."""
    hosts = STATE / "hosts"
    lines = [f"{address} {name}" for name, address in HOSTS.items()]
    own = Path("/etc/hosts").read_text()
    hosts.write_text(own.rstrip("\n") + "\n" + "\n".join(lines) + "\n")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(libc, None, "/", _REC | _SLAVE)  # our mounts stay here; the host's still show
    _mount(libc, hosts, "/etc/hosts", _BIND)
    system = Path("/etc/ssl/certs/ca-certificates.crt")
    if system.exists():
        _mount(libc, BUNDLE, system, _BIND)


def _mount(libc: ctypes.CDLL, source: Path | None, target: str | Path, flags: int) -> None:
    origin = str(source).encode() if source else None
    if libc.mount(origin, str(target).encode(), None, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), f"mount on {target}")


def clean() -> None:
    """Remove whatever a cloud has left on the host, running or crashed."""
    cgroups.ALL.end()
    for point in sorted(_mounts(), reverse=True):
        _run("umount", "-l", point)
    for line in _run(
        "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"
    ).splitlines():
        device, _, file = line.partition(" ")
        if file.strip().startswith(f"{DISKS}/"):
            _run("losetup", "--detach", device)
    for namespace in Path("/run/netns").glob(f"{NAMESPACE}*"):
        _run("ip", "netns", "delete", namespace.name)
    for folder in (STATE, DISKS):
        shutil.rmtree(folder, ignore_errors=True)


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [p for p in points if p.startswith((f"{DISKS}/", f"{STATE}/"))]


def _run(*argv: str) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout
    return ""
