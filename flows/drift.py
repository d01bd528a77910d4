"""The flow check-drift: say how a server differs from its spec, and change nothing."""

from __future__ import annotations

from typing import Any

from prefect import State, flow

from blocks.secrets import read_secrets
from flows import report
from flows.catalog import Server
from flows.reach import Reach, reached, this_run
from flows.spec import ServerSpec
from flows.stages import settle, steps

SECONDS = 600


@flow(name="check-drift", flow_run_name="{server.name}", timeout_seconds=SECONDS)
def check_drift(server: ServerSpec, target: str = "gcp") -> State[Any]:
    """Compare the server with its spec.

    Args:
        server: What should be true of it.
        target: Name of the ServerTarget block that says how to reach Google Cloud and its machines.
    """
    secrets = read_secrets(server)
    with Reach(server, reached(target), secrets, this_run(), waits=False) as reach:
        todo = steps(Server(server, secrets), reach)
        done = list(settle(todo, apply=False))
    report.drift(server, report.rows(todo, done, secrets.redact))
    return report.drift_verdict(done, secrets.redact)
