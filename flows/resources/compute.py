"""The cloud stage: what a server is made of on Google Cloud, in the order in which it is made.

``cloud_resources`` is pure. ``bound`` puts clients behind it: the first read of any resource reads
all of them side by side, and after a change only the changed one is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blocks.compute import Compute
from flows.errors import BootstrapError, NeedsReplacement
from flows.reconcile import SIDE_BY_SIDE, Batch, Batched, Change, Resource, State
from flows.resources.account import Account
from flows.resources.disk import Disk
from flows.resources.exposure import Exposure
from flows.resources.firewall import firewalls
from flows.resources.instance import Instance
from flows.resources.kind import Kind
from flows.resources.network import Network, Subnet
from flows.resources.router import routers
from flows.spec import ServerSpec


def cloud_resources(spec: ServerSpec, public_key: str) -> list[Kind]:
    """Everything in the cloud, in order; ``public_key`` as in ``ssh-ed25519 AAAA...``."""
    return [
        Network(spec),
        Subnet(spec),
        *routers(spec),
        *firewalls(spec),
        Exposure(spec),
        Account(spec),
        Instance(spec, public_key),
        Disk(spec),
    ]


def bound(
    kinds: Sequence[Kind], connect: Callable[[], Compute], upon: Batch[Any] | None = None
) -> list[Resource]:
    """The kinds as resources that can be reconciled. ``connect`` gives the client, when it is needed;
    ``upon``: what stands on them, and is to be read again after a change."""
    pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="cloud")

    def read(kind: Kind) -> State | BootstrapError | None:
        try:
            return kind.read(connect())
        except BootstrapError as error:
            return error

    batch = Batch([kinds], lambda wanted: list(pool.map(read, wanted)), upon)
    return [_Bound(kind, batch, connect) for kind in kinds]


@dataclass(frozen=True)
class _Bound(Batched[Kind]):
    connect: Callable[[], Compute]

    def replaced(self, change: Change) -> NeedsReplacement | None:
        """What keeps a change from being made in place; None when nothing does. Asks nobody."""
        return self.kind.replaced(change)

    def refused(self, change: Change) -> BootstrapError | None:
        """What a run would end with that tries to make a change; None when it can. Asks nobody."""
        return self.kind.refused(change)

    def apply(self, changes: tuple[Change, ...]) -> None:
        try:
            self.kind.apply(self.connect(), changes)
        finally:
            for touched in (self.kind, *self.kind.brings):
                self.batch.forget(touched)
