"""Users, directories and files, and files that must not be there.

A file's content may be secret, so it is compared on the machine: it goes there on stdin, and what
comes back is whether it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blocks.shell import Command, Result, check
from flows.reconcile import Change, State
from flows.resources.shell import pairs

USER = """
entry=$(getent passwd "$1") || exit 0
IFS=: read -r _ _ uid gid _ home shell <<END
$entry
END
echo "home=$home"; echo "shell=$shell"; echo "group=$(id -gn "$1")"
"""
# A user who was there before may get another number: no process may keep the old one, nor a file.
# The group may have outlived its user.
ADD = """
set -e
systemctl stop "$1-*.service"
groupadd --force --system "$1"
useradd --system --gid "$1" --no-create-home --home-dir "$2" --shell "$3" "$1"
[ ! -d "$2" ] || chown --recursive --no-dereference "$1:$1" "$2"
"""
# usermod moves nobody's home while a process of theirs runs. What is stopped is started later on.
CHANGE = """
set -e
groupadd --force --system "$1"
[ "$(getent passwd "$1" | cut -d: -f6)" = "$2" ] || systemctl stop "$1-*.service"
usermod --gid "$1" --home "$2" --shell "$3" "$1"
"""
# Kind, mode, owner and group; for a file also whether it has the content that is on stdin.
PATH = """
[ -e "$1" ] || [ -L "$1" ] || exit 0
stat --printf 'kind=%F\\nmode=%a\\nowner=%U:%G\\n' "$1"
if [ -f "$1" ]; then cmp -s - "$1" && echo content=same || echo content=other; fi
"""
# Written beside it and moved over it, so that nobody ever reads half of it or with another mode.
WRITE = """
set -e
new=$(mktemp "$1.XXXXXX")
trap 'rm -f "$new"' EXIT
cat > "$new"
chown "$3" "$new"
chmod "$2" "$new"
mv -T "$new" "$1"
"""
OWING = "600"
"""The mode of a file for as long as something still has to follow its change."""
NOLOGIN = "/usr/sbin/nologin"
AS_IN_THE_SPEC = "as in the spec"


@dataclass(frozen=True)
class User:
    """A system user without login, with a group of the same name."""

    user: str
    home: str

    @property
    def name(self) -> str:
        return f"user {self.user}"

    def desired(self) -> State:
        return {"home": self.home, "shell": NOLOGIN, "group": self.user}

    def probe(self) -> Command:
        return Command(("sh", "-c", USER, "user", self.user))

    def parse(self, result: Result) -> State | None:
        return pairs(check(self.probe(), result).stdout) or None

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        script = ADD if changes[0].missing else CHANGE
        return [Command(("sh", "-c", script, "user", self.user, self.home, NOLOGIN))]


@dataclass(frozen=True)
class Directory:
    """A directory, with its own mode and owner; what is in it is not its business."""

    path: str
    mode: str = "755"
    owner: str = "root:root"

    @property
    def name(self) -> str:
        return f"directory {self.path}"

    def desired(self) -> State:
        return {"kind": "directory", "mode": self.mode, "owner": self.owner}

    def probe(self) -> Command:
        return Command(("sh", "-c", PATH, "path", self.path))

    def parse(self, result: Result) -> State | None:
        state = pairs(check(self.probe(), result).stdout)
        return _of_kind(state, self.desired()) if state else None

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        user, _, group = self.owner.partition(":")
        return [Command(("install", "-d", "-m", self.mode, "-o", user, "-g", group, self.path))]


@dataclass(frozen=True)
class File:
    """A file with just this content; a link there is replaced by the file."""

    path: str
    content: str = field(repr=False)
    mode: str = "644"
    owner: str = "root:root"
    then: tuple[tuple[str, ...], ...] = ()
    """What to run after a change."""
    valid: tuple[str, ...] = ()
    """What has to accept the content, on its stdin, before it is written."""

    @property
    def name(self) -> str:
        return f"file {self.path}"

    def desired(self) -> State:
        return {
            "kind": "regular file",
            "mode": self.mode,
            "owner": self.owner,
            "content": AS_IN_THE_SPEC,
        }

    def probe(self) -> Command:
        return Command(("sh", "-c", PATH, "path", self.path), stdin=self.content)

    def parse(self, result: Result) -> State | None:
        state = pairs(check(self.probe(), result).stdout)
        if not state:
            return None
        content = AS_IN_THE_SPEC if state.pop("content", "") == "same" else "differs"
        kind = state["kind"].replace("regular empty file", "regular file")
        return _of_kind({**state, "kind": kind, "content": content}, self.desired())

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        # Its own mode comes last: a file whose mode differs owes what follows it.
        mode = OWING if self.then else self.mode
        write = Command(("sh", "-c", WRITE, "write", self.path, mode, self.owner), self.content)
        first = [Command(self.valid, self.content)] if self.valid else []
        if not self.then:
            return [*first, write]
        return [*first, write, *map(Command, self.then), Command(("chmod", self.mode, self.path))]


@dataclass(frozen=True)
class Absent:
    """No file at a path where a program would read it and heed it more than ours."""

    path: str

    @property
    def name(self) -> str:
        return f"no file {self.path}"

    def desired(self) -> State:
        return {"exists": False}

    def probe(self) -> Command:
        return Command(("sh", "-c", PATH, "path", self.path))

    def parse(self, result: Result) -> State:
        kind = pairs(check(self.probe(), result).stdout).get("kind", "directory")
        return {"exists": kind != "directory"}

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        return [Command(("rm", "-f", self.path))]


def _of_kind(state: State, desired: State) -> State:
    """``state``; where a thing of another kind is there, nothing else of it is compared."""
    return state if state["kind"] == desired["kind"] else {**desired, "kind": state["kind"]}
