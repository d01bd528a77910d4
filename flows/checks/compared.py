"""What the catalog can compare: settings, schema, drift. The same resources, comparison and policy as
a drift check's, so a critical difference is unhealthy and any other one degraded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from flows.checks.check import Check, Verdict
from flows.findings import DIFFERS, UNCHECKED, Finding, Looked, cut, findings
from flows.reconcile import Outcome, Resource, reconcile
from flows.spec import Ignored


def compared(
    group: str,
    resources: Sequence[Resource],
    ignore: Sequence[Ignored],
    *,
    left: Sequence[str] = (),
) -> list[Check]:
    """A check for every difference and for what could not be read, or one that there is none.

    ``left``: what the service user cannot compare, by name; it is said, and not held against it.
    """
    looked = [Looked(group, each.name, tuple(each.desired()), _outcome(each)) for each in resources]
    found = findings(looked, ignore, "off", datetime.now(UTC), ())
    ignored = sum(each.kind == "ignored" for each in found)
    said = f"{len(resources)} resources are as in the spec"
    said += f", but for {ignored} ignored differences" if ignored else ""
    said += f"; not compared here: {', '.join(left)}" if left else ""
    bad = [_check(group, each) for each in found if each.kind in (*DIFFERS, UNCHECKED)]
    return bad or [Check(group, "healthy", said)]


def _outcome(resource: Resource) -> Outcome | Exception:
    try:
        return reconcile(resource, apply=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, this one could not be read
        return error


def _check(group: str, found: Finding) -> Check:
    verdict: Verdict = "unhealthy" if found.severity == "critical" else "degraded"
    if found.kind == UNCHECKED:
        verdict = "could not check"
    name = f"{group}: {found.resource}" + (f": {found.attribute}" if found.attribute else "")
    return Check(name, verdict, cut(found.actual), cut(found.desired), f"{found.action}.")
