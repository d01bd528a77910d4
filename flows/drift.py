"""The flow check-drift: say how a server differs from its spec, and change nothing.

    python -m flows.drift --server prefect-1 [--json FILE]

compares a server with its spec in prefect.yaml, now; of several, side by side, FILE gets a list. It
exits with 0 when they agree, with 2 when they differ, and with 1 when anything could not be checked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger

from blocks.secrets import secrets_or_error
from flows import report
from flows.catalog import Server
from flows.command import ended, explained, parser, status
from flows.findings import CODES, DIFFERS
from flows.reach import Reach, reached, this_run
from flows.spec import ServerSpec
from flows.stages import look, steps

SECONDS = 600


@flow(name="check-drift", flow_run_name="{server.name}", timeout_seconds=SECONDS)
def check_drift(
    server: ServerSpec, target: str = "gcp", fail_on_drift: bool = False
) -> State[list[dict[str, Any]]]:
    """Compare the server with its spec.

    Args:
        server: What should be true of it.
        target: Name of the ServerTarget block that says how to reach Google Cloud and its machines.
        fail_on_drift: End as failed when it has drifted.
    """
    secrets, unread = secrets_or_error(server)
    with Reach(server, reached(target), secrets, this_run(), waits=False) as reach:
        todo = steps(Server(server, secrets), reach)
        done = list(look(todo, unread, reach.ssh))
    found = report.differences(server, done, secrets, key="drift", level=server.heal)
    if any(each.kind in DIFFERS for each in found):
        report.announce(server, found)
    state = report.drift_verdict(found, len(done), fail=fail_on_drift)
    get_run_logger().info("%s: %s", state.name, state.message)
    return state


def main() -> int:
    """The exit status."""
    options = parser("python -m flows.drift", __doc__)
    options.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    args = options.parse_args()
    found = ended(check_drift, args.server, args.target)
    if args.json:
        reports = [_report(spec, state) for spec, state in found]
        report = reports[0] if len(reports) == 1 else reports
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return status(found, CODES)


def _report(spec: ServerSpec, state: State[Any]) -> dict[str, Any]:
    rows = state.result(raise_on_failure=False)
    return {
        "server": spec.name,
        "state": state.name,
        "message": state.message,
        "rows": rows if state.name in CODES else [],
    }


if __name__ == "__main__":
    sys.exit(explained(main))
