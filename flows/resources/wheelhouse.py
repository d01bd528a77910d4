"""The wheels of a server's locks, on the machine: downloaded by the laptop, and sent over SSH.

For a machine that reaches no package index. pip downloads just the files that the locks have a hash
of, for the machine's platform whatever the laptop's is; they are kept as one archive in the user's
cache, by the digest of the locks, and travel on standard input. The machine's files are compared
with the locks by their hashes, and uv requires the hashes again when it installs them.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from blocks.shell import Command, Result, check
from flows.errors import CommandFailed
from flows.reconcile import Change, State

# As Makefile has it for the locks: Debian 12 on x86-64, with its own Python.
PYTHON, MACHINE, GLIBC = "3.11", "x86_64", 36
FILES = """
[ -d "$1" ] || exit 0
cd "$1"
echo here
find . -type f -exec sha256sum {} +
"""
# Unpacked beside it and moved over it: half an archive changes nothing.
RECEIVE = """
set -e
new=$(mktemp -d "$1.XXXXXX")
trap 'rm -rf "$new"' EXIT
tar -x --no-same-owner -C "$new"
chmod 755 "$new"
rm -rf "$1"
mv -T "$new" "$1"
"""
BUILD, SEND = 900.0, 900.0
"""Seconds for pip to download 60 MB, and to send them."""
TOLD = 5
"""How many deviations are told; the rest is counted."""


@dataclass(frozen=True)
class Wheelhouse:
    """A directory with the wheels of all ``locks``, and nothing else."""

    path: str
    locks: tuple[str, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return "wheels"

    def desired(self) -> State:
        return {"other than locked": ()}

    def probe(self) -> Command:
        return Command(("sh", "-c", FILES, "files", self.path))

    def parse(self, result: Result) -> State | None:
        if not (said := check(self.probe(), result).stdout.splitlines()):
            return None
        found = {path: digest for digest, path in (line.split("  ./", 1) for line in said[1:])}
        return {"other than locked": deviations(self.locks, found)}

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        receive = ("sh", "-c", RECEIVE, "receive", self.path)
        return [Command(receive, seconds=SEND, file=archive(self.locks))]


def hashes(locks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Requirement, such as ``uv==0.13.9``, and SHA-256, of each file that the locks allow."""
    for lock in locks:
        requirement = ""
        for line in lock.splitlines():
            if pin := re.match(r"[a-z0-9][a-z0-9-]*==\S+", line):
                requirement = pin[0]
            for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", line):
                yield requirement, digest


def deviations(locks: Sequence[str], found: Mapping[str, str]) -> tuple[str, ...]:
    """How files, path → SHA-256, differ from one wheel of each requirement."""
    allowed = {digest: requirement for requirement, digest in hashes(locks)}
    there = {allowed[digest] for digest in found.values() if digest in allowed}
    missing = [f"{name} missing" for name in sorted(set(allowed.values()) - there)]
    others = [f"{path} (not in the lock)" for path, d in sorted(found.items()) if d not in allowed]
    told = missing + others
    more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
    return tuple(told[:TOLD] + more)


def archive(locks: Sequence[str]) -> Path:
    """A tar file with the wheels; out of the cache where it is as the locks say. Raises
    CommandFailed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prefect-bootstrap"
    digest = hashlib.sha256("".join(locks).encode()).hexdigest()[:16]
    path = cache / f"wheels-{digest}.tar"
    if _sound(path, locks):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
        download(locks, Path(folder) / "wheels")
        new = Path(folder) / path.name
        with tarfile.open(new, "w") as tar:
            for wheel in sorted((Path(folder) / "wheels").iterdir()):
                tar.add(wheel, wheel.name)
        new.replace(path)
    return path


def _sound(path: Path, locks: Sequence[str]) -> bool:
    """Whether an archive has what the locks say: a full disk or a power cut may have spoilt it."""
    with suppress(OSError, tarfile.TarError), tarfile.open(path) as tar:
        found = {}
        for member in tar:
            content = tar.extractfile(member)
            found[member.name] = hashlib.sha256(content.read() if content else b"").hexdigest()
        return not deviations(locks, found)
    return False


def download(locks: Sequence[str], folder: Path) -> None:
    """Have pip download the wheels for the machine, from the index that it is set to use."""
    glibc = [f"manylinux_2_{minor}_{MACHINE}" for minor in range(GLIBC, 4, -1)]
    older = [f"{name}_{MACHINE}" for name in ("manylinux2014", "manylinux2010", "manylinux1")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write("\n".join(locks))
        lock.flush()
        argv = [
            *(sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"),
            *("download", "--require-hashes", "--no-deps", "--only-binary=:all:"),
            *("--timeout=20", "--retries=3", f"--dest={folder}", f"--requirement={lock.name}"),
            *("--implementation=cp", f"--python-version={PYTHON}"),
            *(f"--platform={platform}" for platform in [*glibc, *older, f"linux_{MACHINE}"]),
        ]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD)
        except subprocess.TimeoutExpired:
            raise _failed(124, f"not done after {BUILD:.0f} s") from None
    if done.returncode:
        raise _failed(done.returncode, done.stderr)


def _failed(code: int, said: str) -> CommandFailed:
    return CommandFailed(
        ["pip", "download"],
        code,
        said,
        repair="Check that this machine reaches the package index that pip is set to use "
        "(python -m pip config list), and that make setup has installed pip.",
    )
