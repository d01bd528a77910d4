"""The ways to a server: what Google says of its machine, and what SSH is told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self, cast

import httpx
import pytest
from pydantic import SecretStr

from blocks.compute import Run
from blocks.ssh import SshShell
from blocks.target import ServerTarget
from blocks.unreached import HostKeyMismatch, NotBooted
from flows.errors import BootstrapError, Unreachable
from flows.reach import Reach
from tests.flows.paper_world import CLOUD, SECRETS, World, empty
from tests.flows.test_compute_resources import VM, spec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDM331fCZRygCg4ljE9XynZwJNPQ3alO53ze0rMcdgjK"


@pytest.fixture
def world() -> Iterator[World]:
    with empty() as it:
        yield it


def reach(world: World, **more: Any) -> Reach:
    target = SimpleNamespace(
        compute=world.compute,
        ssh_private_key=SecretStr("key"),
        token=lambda: "token",
        tunnel="gcloud",
    )
    return Reach(spec(), cast(ServerTarget, target), SECRETS, Run(uuid.uuid4()), **more)


def test_the_status_is_googles_word_for_it(world: World) -> None:
    assert reach(world).status() == "not there"
    world.run(stages=CLOUD)
    assert reach(world).status() == "RUNNING"
    world.cloud.caller.change("POST", f"{VM}/stop")
    assert reach(world).status() == "TERMINATED"


def test_a_machine_that_has_not_booted_is_told_by_its_status(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.reach.IMPATIENCE", 0.0)
    with pytest.raises(NotBooted, match="it is not there"), reach(world, waits=False) as ways:
        ways.ssh()
    world.run(stages=CLOUD)
    with (
        pytest.raises(NotBooted, match="has not published its host keys"),
        reach(world, waits=False) as ways,
    ):
        ways.ssh()


def test_ssh_goes_through_the_tunnel_that_the_block_names(world: World) -> None:
    assert reach(world)._shell().tunnel == "gcloud"


@pytest.mark.parametrize(
    ("error", "waits", "times"),
    [
        (HostKeyMismatch("vm", KEY), False, 1),
        (NotBooted("vm", "STAGING"), False, 1),
        (NotBooted("vm", "STAGING"), True, 3),
    ],
)
def test_one_failure_to_connect_answers_for_all_unless_it_may_still_boot(
    error: BootstrapError, waits: bool, times: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def enter(shell: SshShell) -> SshShell:
        asked.append(shell)
        raise error

    monkeypatch.setattr(SshShell, "__enter__", enter)
    ways = reach(world, waits=waits)
    for _ in range(3):
        with pytest.raises(type(error)):
            ways.run([])
    assert len(asked) == times


class Deaf(SshShell):
    """A connection over which nothing answers on the server's port."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connection(self) -> int:
        return 1

    @contextmanager
    def forward(self, port: int, local: int = 0) -> Iterator[int]:
        yield 1  # nobody listens there


@pytest.mark.parametrize("waits", [False, True])
def test_a_server_that_does_not_answer_is_asked_once_unless_it_may_still_start(
    waits: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def get(url: str, **options: Any) -> httpx.Response:
        asked.append(url)
        return httpx.Client(trust_env=False).get(url, timeout=options["timeout"])

    monkeypatch.setattr("flows.reach.httpx.get", get)
    monkeypatch.setattr("flows.reach.SshShell", Deaf)
    with reach(world, waits=waits) as ways:
        for _ in range(3):
            if waits:
                ways.api()
            else:
                with pytest.raises(Unreachable, match=r"does not answer: .*journalctl"):
                    ways.api()
        assert len(asked) == (0 if waits else 1)
        ways.waits = True  # as when a plan is over, and the server is about to be started
        ways.api()


def test_threads_share_what_is_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Slow(Deaf):
        def __enter__(self) -> Self:
            opened.append("connection")
            time.sleep(0.2)  # as to dial takes
            return self

        @contextmanager
        def forward(self, port: int, local: int = 0) -> Iterator[int]:
            opened.append("port")
            time.sleep(0.2)
            yield 1

    monkeypatch.setattr("flows.reach.SshShell", Slow)
    with reach(world) as ways, ThreadPoolExecutor(4) as pool:
        assert len(set(map(id, pool.map(lambda _: ways.api(), range(4))))) == 1
        assert opened == ["connection", "port"]
        assert len(set(map(id, pool.map(lambda _: ways.compute(), range(4))))) == 1
