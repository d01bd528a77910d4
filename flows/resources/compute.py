"""The cloud stage: what a server is made of on Google Cloud, in the order in which it is made.

``cloud_resources`` is pure. ``bound`` puts clients behind it: the first read of any resource reads
all of them side by side, and after a change only the changed one is read again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blocks.compute import Compute
from flows.errors import BootstrapError
from flows.reconcile import Batch, Batched, Change, Resource, State
from flows.resources.account import Account
from flows.resources.disk import Disk
from flows.resources.exposure import Exposure
from flows.resources.instance import Instance
from flows.resources.kind import Kind
from flows.resources.network import Network, Router, Subnet, firewalls
from flows.spec import ServerSpec

SIDE_BY_SIDE = 4
"""Reads at once; each has a client, which is a connection, of its own."""


def cloud_resources(spec: ServerSpec, public_key: str) -> list[Kind]:
    """Everything in the cloud, in order; ``public_key`` as in ``ssh-ed25519 AAAA...``."""
    return [
        Network(spec),
        Subnet(spec),
        Router(spec),
        *firewalls(spec),
        Exposure(spec),
        Account(spec),
        Disk(spec),
        Instance(spec, public_key),
    ]


def bound(
    kinds: Sequence[Kind], connect: Callable[[], Compute], upon: Batch[Any] | None = None
) -> list[Resource]:
    """The kinds as resources that can be reconciled. ``connect`` makes a client for one thread;
    ``upon``: what stands on them, and is to be read again after a change."""
    local = threading.local()
    pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="cloud")

    def client() -> Compute:
        if not hasattr(local, "compute"):
            local.compute = connect()
        compute: Compute = local.compute
        return compute

    def read(kind: Kind) -> State | BootstrapError | None:
        try:
            return kind.read(client())
        except BootstrapError as error:
            return error

    batch = Batch([kinds], lambda wanted: list(pool.map(read, wanted)), upon)
    return [_Bound(kind, batch, client) for kind in kinds]


@dataclass(frozen=True)
class _Bound(Batched[Kind]):
    client: Callable[[], Compute]

    def replaced(self, change: Change) -> str:
        """Why a change needs a new resource; empty when it can be made in place. Asks nobody."""
        return self.kind.replaced(change)

    def apply(self, changes: tuple[Change, ...]) -> None:
        try:
            self.kind.apply(self.client(), changes)
        finally:
            self.batch.forget(self.kind)
