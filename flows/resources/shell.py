"""A resource on a machine: three pure answers, and the adapter that runs them.

``probe`` is a command that changes nothing, ``parse`` turns its result into a state, ``commands``
closes a gap. All probes of a stage travel in one round trip, equal ones once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blocks.shell import Command, Result, Shell, check
from flows.reconcile import Batch, Batched, Change, Described, State


class MachineKind(Described, Protocol):
    """What a thing on a machine is."""

    def probe(self) -> Command: ...

    def parse(self, result: Result) -> State | None:
        """The state; None when it does not exist. Raises CommandFailed when it cannot be told."""
        ...

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]: ...


@dataclass(frozen=True)
class OnMachine(Batched[MachineKind]):
    """A kind, on a machine that a shell reaches."""

    shell: Shell

    def apply(self, changes: tuple[Change, ...]) -> None:
        """Close the gap, and look again in the same round trip."""
        *commands, look = *self.kind.commands(changes), self.kind.probe()
        try:
            results = self.shell.run([*commands, look])
        finally:
            # Also when a command fails, for those before it have done their work; and not sooner, for
            # what goes beside this may read everything anew meanwhile.
            self.batch.forget()
        for command, result in zip(commands, results, strict=False):
            check(command, result)
        self.batch.know(self.kind, _parsed(self.kind, results[-1]))


def on_machine(
    shell: Shell, *groups: Sequence[MachineKind], upon: Batch[Any] | None = None
) -> list[OnMachine]:
    """Resources that share their round trips; what a group changes may matter to later ones, and
    to what stands ``upon`` them."""

    def read(wanted: Sequence[MachineKind]) -> list[State | Exception | None]:
        probes = [kind.probe() for kind in wanted]
        distinct = list(dict.fromkeys(probes))
        results = dict(zip(distinct, shell.run(distinct, together=True), strict=True))
        return [_parsed(kind, results[probe]) for kind, probe in zip(wanted, probes, strict=True)]

    batch = Batch(groups, read, upon)
    return [OnMachine(kind, batch, shell) for group in groups for kind in group]


def _parsed(kind: MachineKind, result: Result) -> State | Exception | None:
    try:
        return kind.parse(result)
    except Exception as error:  # noqa: BLE001 - whatever it is, only this kind could not be read
        return error


def pairs(output: str) -> dict[str, str]:
    """Lines of ``name=value``."""
    return dict(line.partition("=")[::2] for line in output.splitlines() if "=" in line)
