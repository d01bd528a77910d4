"""Environments of Python's on paper, and uv, pip and wheels, which fill them.

An environment is a few of ``files``: a distribution is ``<environment>/lib/<name>``, with its version
as the content. Of a wheel in the wheelhouse, the content is its hash.
"""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from flows.probes import closure, package
from flows.resources import python
from tests.flows.paper_disk import Disk, Node, need


@dataclass
class Pythons(Disk):
    """A disk with programs, and whether they reach anything."""

    packages: set[str] = field(default_factory=set)
    """Debian's."""
    online: bool = True
    """Whether it reaches Debian's archive and the package index."""
    proofs: int = 0

    def installed(self, interpreter: str) -> dict[str, str]:
        """Name → version."""
        self.needs(interpreter)
        lib = interpreter.replace("/bin/python", "/lib/")
        return {p.removeprefix(lib): n.content for p, n in self.files.items() if p.startswith(lib)}

    def deviations(self, interpreter: str, stdin: str) -> str:
        lock = dict(line.split("==") for line in stdin.split())
        there = self.installed(interpreter)
        return "\n".join(closure.deviations(lock, there, {python.OURS}))

    def venv(self, env: str) -> None:
        self.remove(env)
        self._fill(env, {})

    def _fill(self, env: str, distributions: dict[str, str]) -> None:
        """Make an environment of just these."""
        self.remove(f"{env}/lib")
        self.files[f"{env}/bin/python"] = Node()
        for name, version in distributions.items():
            self.files[f"{env}/lib/{name}"] = Node(content=version)
            if name in ("uv", "prefect"):
                self.files[f"{env}/bin/{name}"] = Node(content=version)

    def pip(self, interpreter: str, pins: dict[str, str]) -> None:
        need(self.online, "pip: no route to host")
        need("python3-venv" in self.packages, "no pip in /usr/share/python-wheels", 2)
        self._fill(interpreter.removesuffix("/bin/python"), self.installed(interpreter) | pins)

    def wheels(self, path: str) -> str:
        """As the probe tells them; of a wheel on paper the content is its hash."""
        found = {p: n.content for p, n in self.files.items() if p.startswith(f"{path}/")}
        told = [f"{digest}  .{p.removeprefix(path)}" for p, digest in found.items()]
        return "\n".join(["here", *told] if path in self.files else [])

    def receive(self, path: str, archive: str) -> None:
        """An archive on paper has a line for each wheel: its hash and its name."""
        self.remove(path)
        self.mkdir(path, "755", "root:root")
        for digest, name in map(str.split, archive.splitlines()):
            self.put(f"{path}/{name}", Node(content=digest))

    def unpack(self, env: str, wheels: str, lock: str) -> None:
        [wheel] = [n for p, n in self.files.items() if p.startswith(f"{wheels}/uv-")]
        need(f"sha256:{wheel.content}" in lock, "not what the lock says")
        self._fill(env, python.pins(lock))

    def uv_sources(self, settings: dict[str, str]) -> None:
        """What uv may download: nothing, or what is among its wheels."""
        if settings.get("UV_OFFLINE") and settings.get("UV_NO_INDEX"):
            self.needs(settings["UV_FIND_LINKS"])
        else:
            need(self.online, "uv: no route to host")

    def uv_version(self, path: str) -> str:
        self.needs(path)
        return f"uv {self.files[path].content} (x86_64-unknown-linux-gnu)"

    def uv_venv(self, uv: str, env: str) -> None:
        self.needs(uv)
        self.files.setdefault(f"{env}/bin/python", Node())

    def uv_sync(self, uv: str, env: str, lock: str) -> None:
        """Just what the lock says: whatever else is there goes."""
        self.needs(uv, lock, f"{env}/bin/python")
        self._fill(env, python.pins(self.files[lock].content))

    def uv_tool(self, uv: str, tools: str, bins: str, lock: str, requirement: str) -> None:
        self.needs(uv, lock)
        name, _, version = requirement.partition("==")
        pins = python.pins(self.files[lock].content)
        need(pins[name] == version, f"{requirement} is not in the lock")
        self._fill(f"{tools}/{name}", pins)
        self.files[f"{bins}/{name}"] = Node(content=version)

    def uv_wheel(self, uv: str, env: str, wheel: str) -> None:
        self.needs(uv, wheel, f"{env}/bin/python")
        self.files[f"{env}/lib/{python.OURS}"] = Node(content=_digest(self.files[wheel].content))

    def same(self, root: str) -> None:
        tool = self.installed(f"{root}/tools/prefect/bin/python")
        need(tool == self.installed(f"{root}/worker/bin/python"), "Files differ")

    def smoke(self, root: str) -> None:
        self.needs(f"{root}/bin/prefect")
        self.proofs += 1
        self.files[f"{root}/proven"] = Node(content=str(self.proofs))


@cache
def _digest(wheel: str) -> str:
    """What the probe says of a wheel that is installed; ``wheel`` in base64."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(base64.b64decode(wheel))).extractall(folder)
        return package.digest(Path(folder))
