"""A row of preflight's table, and what it is made from. Pure: questions are asked in flows.preflight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from blocks.unreached import Tunnel
from flows.errors import BootstrapError
from flows.reconcile import Outcome
from flows.spec import ServerSpec

Verdict = Literal["granted", "missing", "could not check"]
GRANTED: Verdict = "granted"
MISSING: Verdict = "missing"
UNCHECKED: Verdict = "could not check"


@dataclass(frozen=True)
class Row:
    """``needed``: a bootstrap without it would end half-way, or not begin."""

    what: str
    verdict: Verdict
    detail: str
    repair: str = ""
    needed: bool = True

    @property
    def stops(self) -> bool:
        return self.needed and self.verdict == MISSING


@dataclass(frozen=True)
class Asked:
    """What was asked of Google: by question, the answer, None for what does not exist, or an error.

    ``member``: who asks, as a policy names him; SSH goes through ``tunnel``. ``absent``: the
    resources that are not there; ``refused``: by their names, why a run would end at those.
    ``prefect``: the laptop's version. ``database``: what came of a look from the machine, None
    while there is no machine; ``inside``: whether that look got as far as the machine.
    """

    spec: ServerSpec
    member: str
    absent: tuple[str, ...]
    prefect: str
    answers: Mapping[str, Any]
    secrets: Mapping[str, BootstrapError | None] = field(default_factory=dict)
    database: Outcome | Exception | None = None
    inside: bool = False
    refused: Mapping[str, BootstrapError] = field(default_factory=dict)
    tunnel: Tunnel = "iap"

    def __getitem__(self, question: str) -> Any:
        answer = self.answers[question]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def kinds(self) -> list[str]:
        """Of what is to be made, such as "firewall rule"; one for each."""
        return [name.rpartition(" ")[0] for name in self.absent if name not in self.refused]

    @property
    def granted(self) -> set[str]:
        return {*self["permissions"]}

    def gcloud(self, command: str) -> str:
        return f"gcloud {command} --project={self.spec.project}"


Check = Callable[[Asked], Iterable[Row]]


def row(what: str, fine: object, detail: str, repair: str, *, needed: bool = True) -> Row:
    """Granted when it is ``fine``, and then without a repair; else missing."""
    return Row(what, GRANTED if fine else MISSING, detail, "" if fine else repair, needed)


def told(error: BootstrapError) -> str:
    """What it says, without the sentence that repairs it."""
    return str(error).removesuffix(error.repair).strip()
