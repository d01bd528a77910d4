"""A cloud on paper: the real API with nothing behind it, for tests on any machine, without root.

Only the outermost edge is a stand-in: a namespace, a machine and a disk remember what they were
told. Everything a request passes on its way there, from gateway to ruleset, is the real code.
"""

import asyncio
import copy
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rehearsal import compute, disk, instances, storage  # noqa: F401 - compute registers all
from rehearsal.cgroups import DAEMON
from rehearsal.cloud import Cloud
from rehearsal.config import ACCOUNT, PROJECT, REGION, ZONE
from rehearsal.disk import Disk
from rehearsal.errors import Json
from rehearsal.gateway import Gateway
from rehearsal.machine import Machine
from rehearsal.network import Vpc
from rehearsal.store import PREFIX, link

COMPUTE = "compute.googleapis.com"
ZONAL, REGIONAL = f"zones/{ZONE}", f"regions/{REGION}"
FULL = f"projects/{PROJECT}"
"""What a path in a message begins with; a path in a call goes without."""
DEBIAN = "projects/debian-cloud/global/images/family/debian-12"


class PaperVpc(Vpc):
    """A namespace that remembers what it was told: addresses of its router, and rulesets."""

    def __init__(self, number: int) -> None:
        super().__init__(number, DAEMON)
        self.gateways: set[str] = set()
        self.rulesets: list[str] = []

    async def open(self) -> None:
        await asyncio.sleep(0)  # a real one takes time too

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def apply(self, gateways: set[str], rules: str) -> None:
        self.gateways = gateways
        self.rulesets.append(rules)


class PaperMachine(Machine):
    """A machine that remembers what was done to it, in ``past``."""

    async def create(self) -> None:
        await self._note("create")

    async def start(self) -> None:
        await self._note("start")

    async def stop(self) -> None:
        await self._note("stop")

    async def cut(self) -> None:
        await self._note("cut")

    async def delete(self) -> None:
        await self._note("delete")

    async def plug(self, file: Path, index: int, name: str) -> None:
        await self._note(f"plug {name}")

    async def unplug(self, index: int, name: str) -> None:
        await self._note(f"unplug {name}")

    @property
    def console(self) -> Path:
        return self.disk.file.with_suffix(".console")

    @property
    def past(self) -> list[str]:
        notes: list[str] = self.__dict__.setdefault("notes", [])
        return notes

    async def _note(self, what: str) -> None:
        self.past.append(what)
        await asyncio.sleep(0)


class PaperDisk(Disk):
    """An empty file, where a real disk has its size."""

    async def create(self, size_gb: int, source: Disk | None = None) -> None:
        assert source is None or source.file.exists()
        self.file.touch()

    async def resize(self, size_gb: int) -> None:
        assert self.file.exists()


class PaperCloud(Cloud):
    """A cloud whose networks are on paper; ``opened`` lists each one as it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.identities.grant(ACCOUNT, None)

    async def open_network(self, network: str) -> None:
        vpc = PaperVpc(next(self._numbers))
        await vpc.open()
        self.opened.append(network)
        self.vpcs[network] = vpc
        await self.network_changed(network)

    def vpc(self, name: str) -> PaperVpc:
        vpc = self.vpcs[link(f"{FULL}/global/networks/{name}")]
        assert isinstance(vpc, PaperVpc)
        return vpc

    def past(self, instance: Json) -> list[str]:
        """What was done to an instance's machine."""
        machine = self.machine(instance)
        assert isinstance(machine, PaperMachine)
        return machine.past


class Caller:
    """A client of a paper cloud. Time passes only within its methods."""

    def __init__(self, cloud: PaperCloud, runner: asyncio.Runner) -> None:
        self.cloud, self.run = cloud, runner.run
        self.gateway = copy.copy(_gateway())
        self.gateway.cloud = cloud
        self.authorization = self.bearer(ACCOUNT)

    def bearer(self, email: str) -> str:
        return f"Bearer {self.cloud.identities.token(email)['access_token']}"

    async def asks(
        self,
        verb: str,
        path: str,
        body: Json | bytes | None = None,
        *,
        host: str = COMPUTE,
        **query: str,
    ) -> tuple[int, Json]:
        """The gateway's answer, as JSON carries it. ``path`` begins in the project, or with a
        slash; ``body`` is sent as JSON unless it is bytes."""
        url = path if path.startswith("/") else f"/compute/v1/{FULL}/{path}".rstrip("/")
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        status, answer = await self.gateway.answer(host, verb, url, query, raw, self.authorization)
        return status, json.loads(json.dumps(answer, allow_nan=False))

    def call(
        self, verb: str, path: str, body: Json | bytes | None = None, **query: Any
    ) -> tuple[int, Json]:
        return self.run(self.asks(verb, path, body, **query))

    def ok(self, verb: str, path: str, body: Json | bytes | None = None, **query: Any) -> Json:
        status, answer = self.call(verb, path, body, **query)
        assert status == 200, answer
        return answer

    def refused(
        self, verb: str, path: str, body: Json | bytes | None = None, **query: Any
    ) -> tuple[int, str, str]:
        """Status, reason and message of a call that has to fail."""
        status, answer = self.call(verb, path, body, **query)
        assert status != 200, answer
        [error] = answer["error"]["errors"]
        return status, error["reason"], error["message"]

    def done(self, operation: Json) -> Json:
        """The operation when it is DONE, by way of ``wait``."""
        path = operation["selfLink"].removeprefix(PREFIX)
        operation = self.ok("POST", f"/compute/v1/{path}/wait")
        assert operation["status"] == "DONE"
        return operation

    def change(self, verb: str, path: str, body: Json | bytes | None = None, **query: Any) -> Json:
        """A mutation that succeeds, to its end."""
        operation = self.done(self.ok(verb, path, body, **query))
        assert "error" not in operation, operation["error"]
        return operation

    def failed(self, verb: str, path: str, body: Json | bytes | None = None, **query: Any) -> Json:
        """The one error of a mutation whose request is answered 200."""
        operation = self.done(self.ok(verb, path, body, **query))
        [error] = operation["error"]["errors"]
        return {**error, "http": [operation[f"httpError{w}"] for w in ("StatusCode", "Message")]}

    # What most tests need

    def network(self, name: str = "net", ranges: str = "10.0.0.0/24") -> None:
        """A custom mode network with a subnetwork ``<name>-sub``."""
        self.change("POST", "global/networks", {"name": name, "autoCreateSubnetworks": False})
        subnet = {"name": f"{name}-sub", "network": f"global/networks/{name}"}
        self.change("POST", f"{REGIONAL}/subnetworks", {**subnet, "ipCidrRange": ranges})

    def instance(self, name: str = "vm", **members: Any) -> Json:
        """A running instance in ``net-sub``, as ``get`` shows it."""
        self.change("POST", f"{ZONAL}/instances", vm(name, **members))
        return self.ok("GET", f"{ZONAL}/instances/{name}")


def vm(name: str = "vm", **members: Any) -> Json:
    """The body of an insert."""
    return {
        "name": name,
        "machineType": f"{ZONAL}/machineTypes/e2-medium",
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": DEBIAN}}],
        "networkInterfaces": [{"subnetwork": f"{REGIONAL}/subnetworks/net-sub"}],
        **members,
    }


@functools.cache
def _gateway() -> Gateway:
    """Reading the discovery documents takes longer than a test: once is enough."""
    return Gateway(PaperCloud(), io.StringIO())


@contextmanager
def paper() -> Iterator[Caller]:
    """An empty cloud for the length of a test, which drains what is still under way."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner() as runner,
    ):
        patch.setattr(disk, "DISKS", Path(folder))
        for module in (storage, instances):
            patch.setattr(module, "Disk", PaperDisk)
        patch.setattr(instances, "Machine", PaperMachine)
        patch.setattr(instances, "join", _joined)
        patch.setattr(instances, "part", _joined)
        cloud = PaperCloud()
        yield Caller(cloud, runner)
        runner.run(cloud.operations.drain())


async def _joined(*_: str, **__: int) -> None:
    """A port that nobody looks at."""
