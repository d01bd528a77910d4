"""A disk on paper, with the users to whom its files belong."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from flows.resources.systemd import UNITS


class Failed(Exception):
    """The command ends with ``code`` and says ``stderr``."""

    def __init__(self, stderr: str, code: int = 1) -> None:
        super().__init__(stderr)
        self.stderr, self.code = stderr, code


def need(condition: object, otherwise: str, code: int = 1) -> None:
    if not condition:
        raise Failed(otherwise, code)


@dataclass
class Node:
    """What lies at a path; ``kind`` as ``stat`` says it."""

    kind: str = "regular file"
    content: str = ""
    mode: str = "644"
    owner: str = "root:root"


_directory = partial(Node, "directory", mode="755")
DEBIANS = (UNITS, "/etc/apt/apt.conf.d", "/etc/ssh/sshd_config.d")


@dataclass
class Disk:
    """Freshly made."""

    users: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, Node] = field(default_factory=lambda: {p: _directory() for p in DEBIANS})

    def stat(self, path: str, content: str) -> str:
        node = self.files.get(path)
        if node is None:
            return ""
        shown = lines({"kind": node.kind, "mode": node.mode, "owner": node.owner})
        if node.kind != "regular file":
            return shown
        return f"{shown}\ncontent={'same' if node.content == content else 'other'}"

    def put(self, path: str, node: Node) -> None:
        parent = self.files.get(str(PurePosixPath(path).parent))
        need(parent and parent.kind == "directory", f"{path}: No such file or directory")
        user = node.owner.partition(":")[0]
        need(user in {"root", *self.users}, f"invalid user: {user}")
        there = self.files.get(path)
        need(not there or there.kind != "directory", f"{path}: Is a directory")
        self.files[path] = node

    def mkdir(self, path: str, mode: str, owner: str) -> None:
        user, there = owner.partition(":")[0], self.files.get(path)
        need(user in {"root", *self.users}, f"invalid user: {user}")
        need(there is None or there.kind == "directory", f"{path} exists but is not a directory")
        for parent in PurePosixPath(path).parents:
            self.files.setdefault(str(parent), _directory())
        self.files[path] = Node("directory", "", mode, owner)

    def remove(self, *paths: str) -> None:
        for path in paths:
            for there in [p for p in self.files if f"{p}/".startswith(f"{path}/")]:
                del self.files[there]

    def needs(self, *paths: str) -> None:
        for path in paths:
            need(path in self.files, f"{path}: No such file or directory", 127)


def lines(values: dict[str, str]) -> str:
    return "\n".join(f"{name}={value}" for name, value in values.items())
