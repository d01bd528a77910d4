"""``python -m rehearsal run``: the cloud and the laptop's Prefect come up, and the story is told."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from rehearsal import control, laptop, story
from rehearsal.control import Failed, out
from rehearsal.errors import Json

CHECKOUT = Path(__file__).parent.parent


def rehearse(report: Path | None, checkout: Path = CHECKOUT) -> None:
    """Rehearse what ``checkout`` deploys; ``report`` gets what came of it, as JSON.

    Raises Failed, and leaves everything running, at the first thing that is not as it should be.
    """
    if report and not report.absolute().parent.is_dir():
        raise Failed(f"{report} cannot be written: make its directory first")
    found = _told(checkout)
    if report:
        report.write_text(json.dumps(found, indent=2) + "\n")
    _summary(found)
    if found["drift"]["state"] != "Unchanged":
        raise Failed(
            f"the drift check says {found['drift']['state']} right after the bootstrap: "
            f"see its run at {found['urls']['laptop']}"
        )


def _told(checkout: Path) -> Json:
    """What came of it: the content of the report."""
    began = time.monotonic()
    with control.alone():
        if control.is_up():
            laptop.serve()
        else:
            control.start(beside=laptop.serve)
    laptop.enter()
    found = story.tell(laptop.served(), checkout)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _summary(found: Json) -> None:
    columns = ("stage", "name", "outcome", "seconds")
    table = Table("stage", "resource", "outcome", "seconds", box=None)
    for row in found["bootstrap"]["resources"]:
        table.add_row(*(escape(str(row[column])) for column in columns))
    out.print(table)
    bootstrap, urls = found["bootstrap"], found["urls"]
    out.print(
        f"bootstrap {bootstrap['state']} in {bootstrap['seconds']} s, "
        f"self-check {found['self_check']['state']}, drift check {found['drift']['state']}, "
        f"all in {found['seconds']} s"
    )
    out.print(f"the laptop's Prefect: {urls['laptop']}")
    out.print(f"the new server:       {urls['server']} (its login is the secret prefect-auth:")
    login = "gcloud secrets versions access latest --secret=prefect-auth"
    out.print(f"    python -m rehearsal exec -- {login})")
    out.print("end all of it with: make down")
