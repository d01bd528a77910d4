"""All prerequisites as rows, from what Google answered, and what may be said of them all.

An answer that is an error, or not as Google documents it, is a row that could not be checked; it is
never taken for a yes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from packaging.version import Version

from flows.errors import BootstrapError
from flows.prerequisites import network, place, project
from flows.prerequisites.asked import GRANTED, MISSING, UNCHECKED, Asked, Check, Row, row, told

Word = Literal["Ready", "Missing", "Unknown"]


def refused(asked: Asked) -> Iterator[Row]:
    """What has our name and is not ours, is only looked at, or cannot become what is wanted."""
    for name, error in asked.refused.items():
        yield Row(name, MISSING, told(error), error.repair)


def version(asked: Asked) -> Iterator[Row]:
    """A client that is newer than its server may ask for what the server does not have."""
    here, there = asked.prefect, asked.spec.prefect.version
    detail = f"{here}, and the server's is {there}"
    repair = (
        f'Write {{version: "{here}"}} under prefect in the spec, or: pip install prefect=={there}'
    )
    older = Version(here) <= Version(there)
    yield row("the laptop's Prefect", older, detail, repair, needed=False)


CHECKS: dict[str, Check] = {
    "APIs": project.services,
    "permissions": project.permissions,
    "permissions in the shared VPC": project.shared,
    "running the machine as its account": project.act_as,
    "IAP access": project.iap,
    "secrets": project.secrets,
    "what is there": refused,
    "zone": place.zone,
    "machine type": place.machine_type,
    "image family debian-12": place.image,
    "quotas": place.quotas,
    "range": network.address_range,
    "way out without an external address": network.way_out,
    "PostgreSQL, from the machine": network.database,
    "the laptop's Prefect": version,
    "monthly cost": place.cost,
}
ADVICE = ("the laptop's Prefect", "monthly cost")
"""Nothing depends on these."""


def rows(asked: Asked) -> list[Row]:
    """Everything that was looked at, in the order in which it is needed."""
    return [each for what, check in CHECKS.items() for each in _rows(what, check, asked)]


def word(found: Iterable[Row]) -> Word:
    """The verdict. What could not be checked is never green, but where nothing depends on it."""
    verdicts = {each.verdict for each in found if each.needed}
    return "Missing" if MISSING in verdicts else "Unknown" if UNCHECKED in verdicts else "Ready"


def summary(found: Sequence[Row]) -> str:
    """A line on all of them, and one for each that is not granted, with what repairs it."""
    said = lines(found)
    if not said:
        return f"All {len(found)} prerequisites are granted."
    return "\n".join([f"{len(said)} of {len(found)} prerequisites are not granted.", *said])


def lines(found: Iterable[Row]) -> list[str]:
    """What is not granted, each with what repairs it; what stops a run first."""
    return [
        f"{each.what}: {each.verdict}: {each.detail.rstrip('.')}. {each.repair}".rstrip()
        for each in sorted(found, key=lambda each: not each.stops)
        if each.verdict != GRANTED
    ]


def _rows(what: str, check: Check, asked: Asked) -> list[Row]:
    try:
        return list(check(asked))
    except BootstrapError as error:
        return [Row(what, UNCHECKED, told(error), error.repair, what not in ADVICE)]
    except Exception as error:  # noqa: BLE001 - whatever is wrong with an answer, it is no yes
        said = f"Google's answer is not as documented: {type(error).__name__}: {error}"
        return [Row(what, UNCHECKED, said, "See the log of the run.", what not in ADVICE)]
