"""The machine image: Debian 12 as mmdebstrap makes it, with Google's guest agent from Debian.

Built once and kept in the cache under a name that says what it was built from. ``database`` is a
second layer on it, with PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from rehearsal.config import CACHE, DISKS

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "google-guest-agent", "python3",
    "python3-venv", "ca-certificates", "curl", "iproute2", "iputils-ping", "procps", "less",
    "locales", "apt-utils", "netbase", "e2fsprogs", "kmod",
    # Google's image has it, switched on: cloud.google.com/compute/docs/images/os-details#debian
    "unattended-upgrades",
)  # fmt: skip
HOST_CERTIFICATES = Path("/usr/local/share/ca-certificates")
"""Authorities this host trusts beyond Debian's, such as a company proxy's: the machines have to
reach the same package indexes through the same proxy."""
CUSTOMIZE = """
set -e
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname "$1"/etc/resolv.conf
: > "$1"/etc/machine-id
echo 'nameserver 169.254.169.254' > "$1"/etc/resolv.conf
if [ -d "$2" ]; then
  cp -r "$2"/. "$1"/usr/local/share/ca-certificates/
  chroot "$1" update-ca-certificates >/dev/null 2>&1
fi
"""
DATABASE = """
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get update -qq
apt-get install -qq --no-install-recommends -y postgresql-15 >/dev/null
rm /usr/sbin/policy-rc.d
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
"""
BUILD_SECONDS = 900.0


class ImageFailed(Exception):
    """The image could not be built; the message has the end of the builder's output."""


def key() -> str:
    """What the image is made from, as a short digest."""
    digest = hashlib.sha256(repr((PACKAGES, CUSTOMIZE, DATABASE)).encode())
    for file in sorted(HOST_CERTIFICATES.rglob("*.crt")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def image() -> Path:
    return CACHE / key()


def database() -> Path:
    return CACHE / f"{key()}-database"


def built() -> bool:
    return image().exists() and database().exists()


def build() -> None:
    """Build what is missing. An interrupted build leaves nothing under the final names."""
    CACHE.mkdir(parents=True, exist_ok=True)
    cache = os.open(CACHE, os.O_RDONLY)
    try:
        fcntl.flock(cache, fcntl.LOCK_EX)  # another cloud may be about to build it, too
        if not built():
            _build()
    finally:
        os.close(cache)


def _build() -> None:
    if not image().exists():
        part = _part(image())
        include = ",".join(PACKAGES)
        _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}",
             "bookworm", str(part))  # fmt: skip
        _run("sh", "-c", CUSTOMIZE, "sh", str(part), str(HOST_CERTIFICATES))
        part.rename(image())
    if not database().exists():
        part, work = _part(database()), _part(CACHE / "work")
        work.mkdir()
        part.mkdir()
        DISKS.mkdir(parents=True, exist_ok=True)
        root = DISKS / "image.root"
        root.mkdir(exist_ok=True)
        options = f"lowerdir={image()},upperdir={part},workdir={work}"
        _run("mount", "-t", "overlay", "overlay", "-o", options, str(root))
        try:
            _run("mount", "--bind", "/etc/resolv.conf", str(root / "etc/resolv.conf"))
            _run("mount", "-t", "proc", "proc", str(root / "proc"))
            _run("chroot", str(root), "sh", "-c", DATABASE)
        finally:
            _run("umount", "-R", str(root))
            root.rmdir()
            shutil.rmtree(work)
        part.rename(database())
    for folder in CACHE.iterdir():
        if folder not in (image(), database()):
            shutil.rmtree(folder)


def remove() -> None:
    """Remove every image, of this recipe and of others."""
    shutil.rmtree(CACHE, ignore_errors=True)


def _part(final: Path) -> Path:
    part = final.with_name(final.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    return part


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise ImageFailed(f"{argv[0]} did not end in {BUILD_SECONDS:.0f} s") from None
    if done.returncode:
        tail = (done.stderr + done.stdout).strip()[-2000:]
        raise ImageFailed(f"{argv[0]} ended with {done.returncode}: {tail}")
