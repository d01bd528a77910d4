"""What can go wrong. The type says what to do about it; messages are for people only.

BootstrapError
├── Transient            may be gone in a moment: tried again, within a deadline
│   └── Unreachable      the machine or the API did not answer
└── Final                another try would fail the same way
    ├── CommandFailed    a command ended with an error
    ├── DidNotConverge   applied, read again, and still different
    ├── NeedsReplacement cannot be changed in place
    └── NotOurs          has our name, but not our label
"""

from __future__ import annotations

from collections.abc import Sequence

STDERR_CHARACTERS = 2000
"""As much of the end of stderr as an error keeps."""


class BootstrapError(Exception):
    """``repair`` is one sentence that says what to do; empty when the message says it."""

    def __init__(self, message: str, *, repair: str = "") -> None:
        super().__init__(f"{message} {repair}".strip())
        self.repair = repair


class Transient(BootstrapError):
    """May be gone in a moment."""


class Unreachable(Transient):
    """Nobody answered: the other side may be starting, or the way to it may be closed."""


class Final(BootstrapError):
    """Another try would fail the same way."""


class CommandFailed(Final):
    """``argv`` ended with ``code``; ``stderr`` is the end of what it said.

    Secrets travel on standard input, so neither argv nor message can hold one.
    """

    def __init__(self, argv: Sequence[str], code: int, stderr: str, *, repair: str = "") -> None:
        self.argv, self.code, self.stderr = tuple(argv), code, stderr.strip()[-STDERR_CHARACTERS:]
        super().__init__(f"{' '.join(argv)}: exit {code}: {self.stderr}", repair=repair)


class DidNotConverge(Final):
    """What was applied did not hold: a second read still differs."""

    def __init__(self, resource: str, remaining: Sequence[object]) -> None:
        self.resource, self.remaining = resource, tuple(remaining)
        differs = "; ".join(map(str, remaining))
        super().__init__(f"{resource} did not become what it should be: {differs}.")


class NeedsReplacement(Final):
    """Only a new one could be what is wanted, and nothing is deleted without being asked.

    ``change`` is what was wanted, for people.
    """

    def __init__(
        self, resource: str, attribute: str, why: str, *, change: object = "", repair: str = ""
    ) -> None:
        self.resource, self.attribute, self.why = resource, attribute, why
        said = f"{change} ({why})" if change else why
        super().__init__(
            f"{resource}: {attribute} cannot be changed in place: {said}.",
            repair=repair
            or f"Put {attribute} back in the spec, or delete {resource} and run again.",
        )


class NotOurs(Final):
    """A stranger's resource is refused, never adopted in silence; ``adopt`` says how a person does."""

    def __init__(self, resource: str, label: str, adopt: str) -> None:
        self.resource = resource
        super().__init__(
            f"{resource} exists, but does not carry the label {label}.",
            repair=f"Choose another name in the spec, or {adopt}",
        )
