"""The flow bootstrap-server: make it so. A rerun changes nothing but what differs from the spec.

    python -m flows.bootstrap --server prefect-1 [--dry-run]

does so now, with the spec in prefect.yaml. It exits with 0 when the server is as it should be, and
with 1 when it could not be made so; a dry run as flows.drift does.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect import State, flow, get_run_logger

from blocks.secrets import Secrets, secrets_or_error
from flows import preflight, report
from flows.catalog import Server
from flows.command import ended, explained, parser, status
from flows.findings import CODES, Finding
from flows.policy import Level, attribute_of, may_change
from flows.reach import Reach, reached, this_run
from flows.reconcile import Change
from flows.spec import ServerSpec
from flows.stages import Done, Leave, Step, look, replaced, settle, steps, unsettled

SECONDS = 1800


@flow(name="bootstrap-server", flow_run_name="{server.name}", timeout_seconds=SECONDS)
def bootstrap_server(
    server: ServerSpec, target: str = "gcp", dry_run: bool = False, healing: bool = False
) -> State[Any]:
    """Create the server, or bring it to what the spec says.

    Args:
        server: What is to be true of it.
        target: Name of the ServerTarget block that says how to reach Google Cloud and its machines.
        dry_run: Only say what would be changed, as check-drift does.
        healing: Nobody watches: make only the changes that the spec's heal allows.
    """
    level: Level = server.heal if healing else "hand"
    secrets, unread = secrets_or_error(server)
    with Reach(server, reached(target), secrets, this_run(), waits=False) as reach:
        todo = steps(Server(server, secrets), reach)
        looked = list(look(todo, unread, reach.ssh))
        if not dry_run and (unread or preflight.due(looked)):
            preflight.check(reach, looked, unread)
        if unread:
            raise unread
        found = report.differences(server, looked, secrets, key="plan", level=level)
        if dry_run:
            return report.drift_verdict(found, len(looked), fail=False)
        back = report.fought(server, found) if healing else []
        leave = partial(_leave, server, level, back)
        if unsettled(looked, leave):
            reach.waits = True  # what the plan could not reach may be on its way
            done = _settle(server, todo, leave, secrets)
        else:
            done = looked
        report.resources(server, report.rows(todo, done, secrets.redact))
        state = report.verdict(done, back, secrets.redact)
        if state.is_completed():
            report.connect(server)
        return state


def _settle(server: ServerSpec, todo: list[Step], leave: Leave, secrets: Secrets) -> list[Done]:
    """Take all steps, and show how far they are."""
    log, progress = get_run_logger(), report.Progress(server, len(todo))
    done: list[Done] = []
    for each in settle(todo, leave):
        done.append(each)
        log.info("%s", secrets.redact(str(each)))
        progress.advance(len(done))
    return done


def _leave(
    server: ServerSpec, level: Level, back: list[Finding], step: Step, change: Change
) -> bool:
    """Whether this run leaves a change to others: see flows.policy."""
    name, attribute = step.resource.name, attribute_of(change)
    if (step.stage, name, attribute) in {each.key for each in back}:
        return True
    if level != "hand" and replaced(step.resource, change):
        return True
    return not may_change(name, change, level, server.ignore, datetime.now(UTC).date())


def main() -> int:
    """The exit status."""
    options = parser("python -m flows.bootstrap", __doc__)
    options.add_argument("--dry-run", action="store_true", help="only say what would be changed")
    args = options.parse_args()
    found = ended(bootstrap_server, args.server, args.target, dry_run=args.dry_run)
    return status(found, CODES if args.dry_run else {"Changed": 0, "Unchanged": 0})


if __name__ == "__main__":
    sys.exit(explained(main))
