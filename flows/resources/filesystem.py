"""The root's partition and file system, which follow their disk when it grows, in use.

With what every Debian has: sfdisk moves a partition's end (and GPT's second table, which is no more at
the disk's end), partx tells the kernel, resize2fs grows ext4. A root that is on no disk of the
machine's own, or that is no ext4, has nothing here to grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blocks.shell import Command, Result, check
from flows.reconcile import Change, State
from flows.resources.shell import pairs

SLACK = 64 << 20
"""Bytes that may be left over: disks grow by whole GB."""
PARTITION, FILE_SYSTEM = "partition fills the disk", "file system fills the partition"
_WHERE = """
set -eu
PATH=$PATH:/usr/sbin:/sbin
device=$(readlink -f "$(findmnt -no SOURCE "$1")")
block=/sys/class/block/${device##*/}
"""
ROOM = f"""
# how much room there is behind the root's partition and its file system
{_WHERE}
[ -b "$device" ] && [ "$(findmnt -no FSTYPE "$1")" = ext4 ] || exit 0
if [ -e "$block/partition" ]; then
    end=$(($(cat "$block/start") + $(cat "$block/size")))
    echo "partition=$((($(cat "$(readlink -f "$block")/../size") - end) * 512))"
fi
dumpe2fs -h "$device" 2>/dev/null | awk -v size="$(cat "$block/size")" -F: '
    $1 == "Block count" {{ count = $2 }}
    $1 == "Block size" {{ printf "filesystem=%.0f\\n", size * 512 - count * $2 }}'
"""
GROW_PARTITION = f"""
# grow the root's partition
{_WHERE}
disk=$(readlink -f "$block")
disk=/dev/$(basename "${{disk%/*}}")
number=$(cat "$block/partition")
echo ', +' | sfdisk --quiet --no-reread --force -N "$number" "$disk"
partx --update --nr "$number" "$disk"
"""
GROW_FILE_SYSTEM = f"""
# grow the root's file system
{_WHERE}
resize2fs "$device"
"""


@dataclass(frozen=True)
class RootFileSystem:
    """As large as the disk under it."""

    mount_point: str = "/"
    name = "root file system"

    def desired(self) -> State:
        return {PARTITION: True, FILE_SYSTEM: True}

    def probe(self) -> Command:
        return self._script(ROOM)

    def parse(self, result: Result) -> State:
        room = pairs(check(self.probe(), result).stdout)
        return {
            PARTITION: int(room.get("partition", 0)) < SLACK,
            FILE_SYSTEM: int(room.get("filesystem", 0)) < SLACK,
        }

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        """The file system follows its partition: what it lacks then shows only after that."""
        grows = any(change.attribute == PARTITION for change in changes)
        return [*[self._script(GROW_PARTITION)] * grows, self._script(GROW_FILE_SYSTEM)]

    def _script(self, script: str) -> Command:
        return Command(("sh", "-c", script, "sh", self.mount_point), seconds=300)
