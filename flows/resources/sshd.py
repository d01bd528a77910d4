"""What sshd does in effect. It takes the first value it finds, and another file may be before ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blocks.shell import Command, Result, check
from flows.errors import Final
from flows.reconcile import Change, State

SSHD = "/usr/sbin/sshd"
VALID = (SSHD, "-t", "-f", "/dev/stdin")
"""Fails for a configuration on stdin with which sshd would not start."""
RELOAD = ("systemctl", "try-reload-or-restart", "ssh.service")
"""Debian's unit tries the whole configuration first. Connections stay. Where a socket starts an sshd
for each of them, there is nothing to reload."""
# The self-check may not read the host's keys, without which sshd says nothing: it brings one.
EFFECTIVE = f"""
set -e
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
{SSHD} -T -h "$folder/key"
"""


@dataclass(frozen=True)
class Sshd:
    """Every setting of ``drop_in``, the content of our file, is in effect."""

    drop_in: str

    @property
    def name(self) -> str:
        return "sshd"

    def desired(self) -> State:
        """Keywords in lower case, as sshd says them."""
        return _settings(self.drop_in)

    def probe(self) -> Command:
        return Command(("sh", "-c", EFFECTIVE))

    def parse(self, result: Result) -> State:
        return _settings(check(self.probe(), result).stdout)

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        """Raises Final: which of a stranger's files is wrong, only a person can say."""
        raise Final(
            f"Another file of sshd's comes before ours: {'; '.join(map(str, changes))}.",
            repair="Take that back in /etc/ssh/sshd_config or /etc/ssh/sshd_config.d.",
        )


def _settings(text: str) -> dict[str, str]:
    lines = (line.partition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {keyword.lower(): value for keyword, _, value in lines}
