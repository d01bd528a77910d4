"""Disks: sparse files with ext4, mounted through the loop device.

A boot disk holds what differs from the machine image, as the upper layer of an overlay; so it is as
large as declared, and made in no time.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

from rehearsal.config import DISKS
from rehearsal.process import CommandFailed, run

GIB = 1 << 30


class Disk:
    """One disk by resource id."""

    def __init__(self, id_: str) -> None:
        self.file = DISKS / f"{id_}.img"
        self.mount_point = DISKS / f"{id_}.mnt"

    async def create(self, size_gb: int, source: Disk | None = None) -> None:
        """Make the file; with ``source`` (a disk or a snapshot) as a copy of it."""
        if source:
            await source.sync()
            await run("cp", "--sparse=always", str(source.file), str(self.file), seconds=600)
            await self.resize(size_gb)
        else:
            self.file.touch(mode=0o600)
            os.truncate(self.file, size_gb * GIB)
            options = ("-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-m", "0")
            await run("mkfs.ext4", "-q", *options, str(self.file))

    async def resize(self, size_gb: int) -> None:
        """Grow the disk, and its file system: while it is used if the kernel lets us, else before it
        is used again. The guest's root is an overlay on it, which the guest cannot grow."""
        os.truncate(self.file, max(size_gb * GIB, self.file.stat().st_size))
        if not self.mounted:
            await self._fill()
            return
        loop = (await run("findmnt", "-no", "SOURCE", str(self.mount_point))).strip()
        await run("losetup", "--set-capacity", loop)
        with suppress(CommandFailed):
            await run("resize2fs", loop, seconds=600)

    async def _fill(self) -> None:
        """Make the file system as large as its file."""
        await run("e2fsck", "-pf", str(self.file), seconds=600)
        await run("resize2fs", str(self.file), seconds=600)

    @property
    def _has_room(self) -> bool:
        """Whether the file system, by its superblock, is smaller than its file."""
        with self.file.open("rb") as file:
            file.seek(1024)
            blocks, log_size = struct.unpack("<4xI16xI", file.read(28))
        return int(blocks << (10 + log_size)) + GIB <= self.file.stat().st_size

    async def mount(self) -> Path:
        if not self.mounted:
            if self._has_room:
                await self._fill()
            self.mount_point.mkdir(exist_ok=True)
            await run("mount", "-o", "loop", str(self.file), str(self.mount_point))
        return self.mount_point

    async def unmount(self) -> None:
        if self.mounted:
            await run("umount", str(self.mount_point))
            self.mount_point.rmdir()

    async def sync(self) -> None:
        if self.mounted:
            await run("sync", "-f", str(self.mount_point))

    async def delete(self) -> None:
        await self.unmount()
        self.file.unlink(missing_ok=True)

    @property
    def mounted(self) -> bool:
        return self.mount_point.is_mount()
