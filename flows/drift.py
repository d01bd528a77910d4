"""The flow check-drift: say how a server differs from its spec, and change nothing.

    python -m flows.drift --server prefect-1 [--json FILE]

compares a server with its spec in prefect.yaml, now. It exits with 0 when they agree, with 2 when
they differ, and with 1 when anything could not be checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import httpx
from prefect import State, flow, get_client, get_run_logger

from blocks.secrets import secrets_or_error
from flows import report
from flows.catalog import Server
from flows.errors import BootstrapError
from flows.findings import CODES, DIFFERS
from flows.project import spec_in
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
        done = list(look(steps(Server(server, secrets), reach), unread))
    found = report.differences(server, done, secrets, key="drift", level=server.heal)
    if any(each.kind in DIFFERS for each in found):
        report.announce(server, found)
    state = report.drift_verdict(found, len(done), fail=fail_on_drift)
    get_run_logger().info("%s: %s", state.name, state.message)
    return state


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        "python -m flows.drift", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True, help="its name, such as prefect-1")
    parser.add_argument("--target", default="gcp", help="the ServerTarget block (default gcp)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    args = parser.parse_args()
    try:
        spec = spec_in(Path("prefect.yaml"), args.server)
        with get_client(sync_client=True) as client:
            client.api_version()
        state: State[Any] = check_drift(spec, args.target, return_state=True)
        if state.name not in CODES:
            raise BootstrapError(str(state.message))
        said = {"server": spec.name, "state": state.name, "message": state.message}
        if args.json:
            rows = state.result(raise_on_failure=False)
            args.json.write_text(json.dumps({**said, "rows": rows}, indent=2) + "\n")
    except httpx.HTTPError as error:
        print(f"Prefect does not answer ({error}): set PREFECT_API_URL", file=sys.stderr)
        return 1
    except (BootstrapError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{spec.name}: {state.name}: {state.message}")
    return CODES[state.name]


if __name__ == "__main__":
    sys.exit(main())
