"""A machine: real Debian 12 with its own systemd, in systemd-nspawn on an overlay of the image.

Its namespace lives as long as the instance, its processes from start to stop, its disk until it is
deleted. The serial port is the console's output in a file.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from rehearsal.cgroups import Cgroup
from rehearsal.config import DISKS, NAMESPACE, STATE
from rehearsal.disk import Disk
from rehearsal.network import add_namespace, remove_namespace
from rehearsal.process import CommandFailed, run

logger = logging.getLogger(__name__)

STOP_SECONDS = 90.0
"""What a guest gets to shut down before its power is cut, as on Google."""
_PLUG = 'mkdir -p /dev/disk/by-id && mknod -m 660 "$1" b "$2" "$3" && ln -sf "$1" "$4"'


@dataclass
class Machine:
    """``name`` is unique in the cloud; ``layers`` are the read-only trees below the disk, the
    uppermost first. ``seed`` writes into the root before the first start."""

    name: str
    hostname: str
    disk: Disk
    layers: list[Path]
    cpus: float
    memory: int
    seed: Callable[[Path], None]
    ended: Callable[[int], Awaitable[None]]
    unbounded: list[str] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None
    _watch: asyncio.Task[None] | None = None
    _wanted: bool = False
    _plugged: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return NAMESPACE + self.name

    @property
    def console(self) -> Path:
        return STATE / f"{self.name}.console"

    @property
    def root(self) -> Path:
        return DISKS / f"{self.name}.root"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def leader(self) -> int | None:
        """The guest's init, as the host numbers it."""
        if not (self._process and self.running):
            return None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            return int(children.read_text().split()[0])
        except (OSError, IndexError):
            return None

    @property
    def cgroup(self) -> Cgroup:
        return Cgroup(self.name)

    async def create(self) -> None:
        """The namespace; the caller joins it to a network."""
        await add_namespace(self.namespace)

    async def start(self) -> None:
        """Power on. Returns when the machine's init runs, not when it has booted."""
        upper = await self.disk.mount()
        fresh = not (upper / "upper").exists()
        for folder in (self.root, upper / "upper", upper / "work"):
            folder.mkdir(exist_ok=True)
        lower = ":".join(map(str, self.layers))
        options = f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work"
        await run("mount", "-t", "overlay", "overlay", "-o", options, str(self.root))
        if fresh:  # later the tree is the guest's, who could lead our writes astray by a link
            self.seed(self.root)
        self.unbounded = self.cgroup.create(cpus=self.cpus, memory=self.memory)
        with self.console.open("ab") as console:
            self._process = await asyncio.create_subprocess_exec(
                *self.cgroup.enter(),
                *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--boot"),
                *(f"--directory={self.root}", f"--machine={self.name}"),
                *(f"--hostname={self.hostname}", "--resolv-conf=off", "--timezone=off"),
                *("--link-journal=no", "--console=read-only"),
                f"--network-namespace-path=/run/netns/{self.namespace}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self._wanted = True
        self._watch = asyncio.create_task(self._watched(self._process))

    async def stop(self) -> None:
        """Power off in order; the power is cut when the guest does not follow."""
        self._wanted = False
        if self._process and self.running:
            self._process.send_signal(signal.SIGTERM)  # systemd-nspawn: an orderly power-off
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                pass
        await self.cut()

    async def cut(self) -> None:
        """Cut the power: nothing in the guest gets to say goodbye."""
        self._wanted = False
        await asyncio.to_thread(self.cgroup.end)
        if self._process:
            await self._process.wait()
        for loop in self._plugged.values():
            await run("losetup", "--detach", loop)
        self._plugged.clear()
        if self.root.is_mount():
            await run("umount", "-R", str(self.root))
            self.root.rmdir()
        await self.disk.unmount()

    async def plug(self, file: Path, index: int, name: str) -> None:
        """Show a data disk to the running guest as Google does: /dev/disk/by-id/google-NAME."""
        loop = (await run("losetup", "--find", "--show", str(file))).strip()
        self._plugged[name] = loop
        numbers = (await run("stat", "--format=%Hr %Lr", loop)).split()
        device = f"/dev/sd{chr(ord('a') + index)}"
        await self.inside(
            "sh", "-c", _PLUG, "sh", device, *numbers, f"/dev/disk/by-id/google-{name}"
        )

    async def unplug(self, index: int, name: str) -> None:
        device = f"/dev/sd{chr(ord('a') + index)}"
        await self.inside("rm", "-f", device, f"/dev/disk/by-id/google-{name}")
        await run("losetup", "--detach", self._plugged.pop(name))

    async def inside(self, *argv: str, stdin: str = "", seconds: float = 60) -> str:
        """Run a command in the guest's namespaces, as its root; output as of ``run``."""
        if self.leader is None:
            raise CommandFailed(f"{self.name} is off")
        enter = (
            "nsenter",
            f"--target={self.leader}",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
        )
        return await run(*enter, "--", *argv, stdin=stdin, seconds=seconds)

    async def delete(self) -> None:
        """Cut the power and remove the namespace; the disk is its owner's to delete."""
        await self.cut()
        await remove_namespace(self.namespace)
        self.console.unlink(missing_ok=True)

    async def _watched(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        if self._wanted:
            try:
                await self.cut()
                await self.ended(code)
            except Exception:  # nobody awaits this task
                logger.exception("%s ended with %s and could not be dealt with", self.name, code)
