"""What a drift check found: a row for every attribute that differs, and what may be said of them all.

Pure: what was looked at, the ignore list, the time and the rows of the report before come in; rows,
a word, a line and an exit status come out. Nothing here knows a secret, for no state holds one; only
the message of an error may, and whoever shows rows has to redact it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from flows.errors import BootstrapError, NeedsReplacement
from flows.policy import Level, Severity, attribute_of, expired, matching, policy, reaches
from flows.reconcile import Change, Outcome, shown
from flows.spec import Ignored

Kind = Literal[
    "drift", "missing", "needs replacement", "ignored", "could not check", "unused ignore"
]
Word = Literal["Unknown", "Drifted", "Unchanged"]
Row = dict[str, Any]
"""As in the table and in JSON, with COLUMNS as keys."""

COLUMNS = (
    "stage", "resource", "attribute", "desired", "actual", "severity", "class", "first seen", "action",
)  # fmt: skip
DIFFERS: tuple[Kind, ...] = ("drift", "missing", "needs replacement")
UNCHECKED: Kind = "could not check"
CODES: dict[str, int] = {"Unchanged": 0, "Drifted": 2, "Unknown": 1}
"""The exit status of each verdict."""
NAMED = 5
"""As many differences as a summary names."""
CELL = 200
"""The longest text in a cell of the table, in characters."""
LAST = "it differed when it could last be checked"


@dataclass(frozen=True)
class Finding:
    """One row of the report; the fields are in the order of COLUMNS."""

    stage: str
    resource: str
    attribute: str
    """Empty: the resource as a whole."""
    desired: str
    actual: str
    severity: Severity
    kind: Kind
    first_seen: str
    """As in 2026-11-22T13:00:00Z."""
    action: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, self.resource, self.attribute

    @property
    def of(self) -> tuple[str, str]:
        """The resource that it is about."""
        return self.stage, self.resource


@dataclass(frozen=True)
class Looked:
    """A resource that was looked at, and what came of it.

    ``attributes`` are those that it should have; ``replaced`` says what keeps a change from being
    made in place, and None when nothing does.
    """

    stage: str
    resource: str
    attributes: tuple[str, ...]
    outcome: Outcome | Exception
    replaced: Callable[[Change], NeedsReplacement | None] = lambda change: None

    @property
    def of(self) -> tuple[str, str]:
        return self.stage, self.resource


# From what was looked at to findings


def findings(
    looked: Sequence[Looked],
    ignore: Sequence[Ignored],
    heal: Level,
    now: datetime,
    before: Iterable[Row],
) -> list[Finding]:
    """A row for every difference, for what could not be checked, and for what ignores nothing.

    ``now`` with its zone; ``before``: the rows of the last report, from which ``first seen`` comes.
    """
    at = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    past = {old.key: old for row in before if (old := from_row(row))}
    found: list[Finding] = []
    for each in looked:
        if isinstance(each.outcome, Exception):
            open_still = [old for old in past.values() if _open_still(old, each)]
            found.append(_unchecked(each, each.outcome, at))
            found += [
                replace(old, kind=UNCHECKED, action=LAST, first_seen=at) for old in open_still
            ]
        else:
            found += _differences(each, each.outcome, ignore, heal, at)
    found += [_unused(entry, at) for entry in ignore if not _used(entry, looked)]
    return [_since(each, past.get(each.key)) for each in found]


def _differences(
    looked: Looked, outcome: Outcome, ignore: Sequence[Ignored], heal: Level, at: str
) -> list[Finding]:
    """In the order of the attributes; of a missing resource only that it is missing."""
    left = [change for change in outcome.changes if change not in outcome.applied]
    changes = {attribute_of(change): change for change in left}.values()
    return [_difference(looked, change, ignore, heal, at) for change in changes]


def _difference(
    looked: Looked, change: Change, ignore: Sequence[Ignored], heal: Level, at: str
) -> Finding:
    attribute = attribute_of(change)
    severity, by, action = policy(looked.resource, attribute)
    kind, desired, actual = _seen(change)
    if kind == "drift" and (needed := looked.replaced(change)):
        kind, action = "needs replacement", f"{needed.repair.rstrip('.')} ({needed.why})"
    elif reaches(heal, by):
        action = f"heals by itself ({by})"
    else:
        action = action or "run bootstrap-server"
    entries, today = matching(ignore, looked.resource, attribute), date.fromisoformat(at[:10])
    if valid := [entry for entry in entries if not expired(entry, today)]:
        kind, severity, action = "ignored", "info", valid[0].reason
    elif entries:
        over = max(entry.until for entry in entries)
        action = f"ignored until {over}, which is over; {action}"
    return Finding(*looked.of, attribute, desired, actual, severity, kind, at, action)


def _seen(change: Change) -> tuple[Kind, str, str]:
    """Kind, desired and actual, for people."""
    if change.missing:
        return "missing", "exists", "does not exist"
    return "drift", shown(change.desired), shown(change.actual)


def _unchecked(looked: Looked, error: Exception, at: str) -> Finding:
    repair = error.repair if isinstance(error, BootstrapError) else ""
    said = str(error).removesuffix(repair).strip() if repair else str(error)
    message = (
        said
        if isinstance(error, BootstrapError)
        else f"{type(error).__name__}: {said}".rstrip(": ")
    )
    action = repair or "see the log of the run"
    return Finding(*looked.of, "", "", message, "warning", UNCHECKED, at, action)


def _open_still(old: Finding, looked: Looked) -> bool:
    """Whether it differed when the resource could last be checked."""
    here = old.of == looked.of and old.attribute in looked.attributes
    return here and old.kind in (*DIFFERS, UNCHECKED)


def _unused(entry: Ignored, at: str) -> Finding:
    action = "correct its patterns, or take it off the ignore list"
    where = ("spec", entry.resource, entry.attribute)
    return Finding(*where, "", "matches nothing", "warning", "unused ignore", at, action)


def _used(entry: Ignored, looked: Sequence[Looked]) -> bool:
    return any(
        matching((entry,), each.resource, attribute)
        for each in looked
        for attribute in ("", *each.attributes)
    )


def _since(found: Finding, old: Finding | None) -> Finding:
    """With the time at which it was first seen, when it is the same episode."""
    if old is None or _episode(old) != _episode(found):
        return found
    return replace(found, first_seen=min(old.first_seen, found.first_seen))


def _episode(each: Finding) -> str:
    """That it differs outlasts a check that failed, and an ignore list."""
    differs = each.kind in (*DIFFERS, "ignored") or (each.kind == UNCHECKED and each.attribute)
    return "differs" if differs else each.kind


# What is said of them all


def word(found: Iterable[Finding]) -> Word:
    """The verdict. What could not be checked is never green; what is ignored does not count."""
    kinds = {each.kind for each in found}
    if UNCHECKED in kinds:
        return "Unknown"
    return "Drifted" if kinds & set(DIFFERS) else "Unchanged"


def code(found: Iterable[Finding]) -> int:
    """The exit status of the verdict."""
    return CODES[word(found)]


def summary(found: Sequence[Finding], total: int) -> str:
    """A line of bounded length about ``total`` resources: the worst by name, each error once."""
    differ = [each for each in found if each.kind in DIFFERS]
    failed = [each for each in found if each.kind == UNCHECKED and not each.attribute]
    worst = sorted(differ, key=lambda each: get_args(Severity).index(each.severity))
    parts = []
    if differ:
        some = _some([_named(each) for each in worst])
        parts.append(f"{_resources(differ)} of {total} resources differ: {some}")
    if failed:
        some = _some(list(dict.fromkeys(each.actual.rstrip(".") for each in failed)))
        parts.append(f"{_resources(failed)} could not be checked: {some}")
    if not parts:
        parts.append(f"{total} resources are as in the spec")
    kinds = [each.kind for each in found]
    if ignored := kinds.count("ignored"):
        parts.append(f"{ignored} ignored")
    if unused := kinds.count("unused ignore"):
        parts.append(f"{unused} on the ignore list that match nothing")
    return f"{'; '.join(parts)}."


def _named(each: Finding) -> str:
    what = f"{each.resource}: {each.attribute}" if each.attribute else f"{each.resource}: missing"
    return f"{what} ({each.severity})"


def _resources(found: Iterable[Finding]) -> int:
    return len({each.of for each in found})


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(map(cut, texts[:NAMED])) + more


def to_row(found: Finding) -> Row:
    """For JSON: everything."""
    return dict(zip(COLUMNS, astuple(found), strict=True))


def to_cells(found: Finding) -> Row:
    """For a table: what is long is cut."""
    row, long = to_row(found), ("desired", "actual", "action")
    return row | {column: cut(row[column]) for column in long}


def from_row(row: Row) -> Finding | None:
    """What ``to_row`` or ``to_cells`` made; None for a row of another table."""
    return Finding(*(row[column] for column in COLUMNS)) if {*COLUMNS} <= {*row} else None


def cut(text: str) -> str:
    """A line of CELL characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= CELL else f"{line[: CELL - 1]}…"
