"""Control groups: what a machine may use, and the list of processes that belong to the rehearsal.

Version 1 (a hierarchy for every controller) and version 2 (one for all) both occur. Everything
started here is in a group named after its cloud, so that ``end_all`` finds it after any crash.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from rehearsal.config import NAME

ROOT = Path("/sys/fs/cgroup")
_V1 = ("unified", "systemd", "memory", "cpu", "cpu,cpuacct", "pids")
_ENTER = 'while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift; exec "$@"'
END_SECONDS = 20.0


def hierarchies() -> list[Path]:
    """Mount points a group has to be made in."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [p for name in _V1 if not (p := ROOT / name).is_symlink() and (p / "tasks").exists()] + [
        p for p in [ROOT / "unified"] if (p / "cgroup.controllers").exists()
    ]


@dataclass(frozen=True)
class Cgroup:
    """A group ``<cloud>/<name>`` in every hierarchy."""

    name: str

    def create(self, *, cpus: float = 0, memory: int = 0) -> list[str]:
        """Make the group; ``memory`` in bytes, 0 for no bound. Returns what could not be bounded."""
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)
            # Version 2 hands controllers down only when told to.
            for parent in (folder.parent.parent, folder.parent):
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text("+cpu +memory +pids")
        unbounded = []
        period = 100_000
        quota = int(cpus * period)
        limits = {
            "memory": (memory, {"memory.limit_in_bytes": f"{memory}", "memory.max": f"{memory}"}),
            "cpu": (cpus, {"cpu.cfs_quota_us": f"{quota}", "cpu.max": f"{quota} {period}"}),
        }
        for what, (wanted, files) in limits.items():
            present = [f / name for f in self._folders() for name in files if (f / name).exists()]
            try:
                for file in present:
                    file.write_text(files[file.name] if wanted else _unbounded(file.name))
            except OSError:
                present = []
            if wanted and not present:
                unbounded.append(what)
        return unbounded

    def enter(self) -> tuple[str, ...]:
        """argv that a command is prefixed with to be born in the group."""
        files = [str(folder / "cgroup.procs") for folder in self._folders()]
        return ("sh", "-c", _ENTER, "sh", *files, "--")

    def processes(self) -> set[int]:
        return {pid for folder in self._folders() for pid in _processes(folder)}

    def end(self) -> None:
        """Kill every process of the group and remove it. Raises TimeoutError when one stays."""
        deadline = time.monotonic() + END_SECONDS
        while pids := self.processes() - {os.getpid()}:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of {self.name} do not end: {sorted(pids)}")
            time.sleep(0.02)
        for top in self._folders():
            for folder in sorted([top, *top.rglob("*/")], reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _folders(self) -> list[Path]:
        return [root / NAME / self.name for root in hierarchies()]


ALL = Cgroup("")
"""The group of all groups."""
DAEMON = Cgroup("daemon")
"""The group of the daemon and of what it runs beside the machines."""


def _unbounded(file: str) -> str:
    return "max" if file.endswith(".max") else "-1"


def _processes(folder: Path) -> set[int]:
    pids: set[int] = set()
    for file in folder.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            pids |= {int(line) for line in file.read_text().split()}
    return pids
