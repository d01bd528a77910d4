"""A heal that does not stick: how often a difference has been healed, and when that is enough.

An episode begins when a difference is first seen and ends when a check finds it gone, so a heal that
something else undoes before the next check is another heal in the same episode.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flows.findings import DIFFERS, Finding, Row
from flows.policy import Level, policy, reaches

HEALS = 2
"""So often a difference is healed; when it comes back once more, something else is at work."""
FOUGHT = "healed twice and back again: find what else changes it, or put it on the ignore list"


def healable(found: Iterable[Finding], level: Level) -> list[Finding]:
    """What a run of this level would heal: see ``may_change``."""
    in_place = (each for each in found if each.kind in ("drift", "missing"))
    return [each for each in in_place if reaches(level, policy(each.resource, each.attribute).heal)]


def record(healing: Iterable[Finding], before: Iterable[Row]) -> list[Row]:
    """How often each difference has been healed in one episode, with what is to be healed now.

    ``before`` is the last record: rows of resource, attribute, first_seen and heals. What is not
    healed now keeps its row: it would otherwise be healed again as if it were new.
    """
    rows = {(old["resource"], old["attribute"]): old for old in before}
    for each in healing:
        key = each.resource, each.attribute
        times = 1 + _heals(each, rows.get(key))
        names = ("resource", "attribute", "first_seen", "heals")
        rows[key] = dict(zip(names, (*key, each.first_seen, times), strict=True))
    return list(rows.values())


def stuck(found: Iterable[Finding], healed: Iterable[Row]) -> list[Finding]:
    """Those that were healed twice and are back; their action says so. ``healed``: see record."""
    rows = {(old["resource"], old["attribute"]): old for old in healed}
    again = (each for each in found if each.kind in DIFFERS)
    return [
        replace(each, action=FOUGHT)
        for each in again
        if _heals(each, rows.get((each.resource, each.attribute))) >= HEALS
    ]


def _heals(each: Finding, old: Row | None) -> int:
    """How often it was healed without having been seen clean since."""
    same = old is not None and old["first_seen"] == each.first_seen
    return int(old["heals"]) if old and same else 0
