"""A whole server on paper: cloud, machine and database, in the order in which a run takes them.

What lives in the new server itself is left out: see test_orchestration.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from blocks.compute import Compute, Run
from blocks.secrets import Secrets
from blocks.ssh import SshShell
from blocks.target import ServerTarget
from flows.catalog import SERVER, STAGES, WORKER, Server
from flows.reach import Reach
from flows.reconcile import Outcome, Resource, reconcile
from flows.resources.shell import OnMachine
from flows.spec import ServerSpec
from flows.stages import steps
from tests.flows.paper_machine import PaperMachine
from tests.flows.test_compute_resources import KEY, Http, Lab, spec
from tests.paper import paper

AUTH, URL = (
    "admin:s3cret-enough",
    "postgresql+asyncpg://prefect:pa%24%24word@db.internal:5432/prefect",
)
SECRETS = Secrets(AUTH, URL)
SERVER_TOML, WORKER_TOML = f"{SERVER}/prefect.toml", f"{WORKER}/prefect.toml"
SERVER_UNIT, WORKER_UNIT = "prefect-server.service", "prefect-worker.service"
ROOT = Server(spec(), SECRETS).place.root
CLOUD, MACHINE = STAGES[:1], STAGES[1:]
Told = list[str]


@dataclass
class World:
    """Both on paper; a run is a process of its own, which knows nothing but the spec."""

    lab: Lab | None = None
    """The cloud; None where a test is about the machine only."""
    machine: PaperMachine = field(default_factory=PaperMachine)
    secrets: Secrets = SECRETS
    public_key: str = KEY

    def compute(self, _project: str, run: Run) -> Compute:
        return self.cloud.connect(run)

    @property
    def cloud(self) -> Lab:
        assert self.lab, "this world has no cloud"
        return self.lab

    def resources(
        self, wanted: ServerSpec | None = None, stages: tuple[str, ...] = STAGES
    ) -> list[Resource]:
        """As the stages order them, without those that live in the new server."""
        server, ways = Server(wanted or spec(), self.secrets), cast(ServerTarget, self)
        shell = cast(SshShell, self.machine)
        reach = Reach(server.spec, ways, self.secrets, Run(uuid.uuid4()), _ssh=shell)
        return [
            step.resource
            for step in steps(server, reach)
            if step.stage in stages
            and (step.stage == "cloud" or isinstance(step.resource, OnMachine))
        ]

    def run(
        self,
        wanted: ServerSpec | None = None,
        *,
        apply: bool = True,
        stages: tuple[str, ...] = STAGES,
    ) -> list[Outcome]:
        return [reconcile(each, apply=apply) for each in self.resources(wanted, stages)]

    def told(self, *, apply: bool) -> Told:
        """What a run of the machine's stages found different: "resource: attribute"."""
        outcomes = self.run(apply=apply, stages=MACHINE)
        return [f"{o.resource}: {change.attribute}" for o in outcomes for change in o.changes]


@functools.cache
def _finished() -> PaperMachine:
    world = World()
    world.run(stages=MACHINE)
    return world.machine


def finished() -> PaperMachine:
    """A machine that a run has brought to the spec; nothing in its log."""
    return _finished().copy()


@contextmanager
def empty() -> Iterator[World]:
    """A cloud in which nothing is, and a machine that nobody has touched."""
    with paper() as caller:
        http = Http(caller)
        yield World(Lab(caller, http))


def changed(outcomes: list[Outcome]) -> Told:
    return [outcome.resource for outcome in outcomes if outcome.changes]
