"""The flow bootstrap-server: make it so. A rerun changes nothing but what differs from the spec."""

from __future__ import annotations

from typing import Any

from prefect import State, flow, get_run_logger

from blocks.secrets import read_secrets
from flows import report
from flows.catalog import Server
from flows.reach import Reach, reached, this_run
from flows.spec import ServerSpec
from flows.stages import Done, settle, steps

SECONDS = 1800


@flow(name="bootstrap-server", flow_run_name="{server.name}", timeout_seconds=SECONDS)
def bootstrap_server(server: ServerSpec, target: str = "gcp") -> State[Any]:
    """Create the server, or bring it to what the spec says.

    Args:
        server: What is to be true of it.
        target: Name of the ServerTarget block that says how to reach Google Cloud and its machines.
    """
    log = get_run_logger()
    secrets = read_secrets(server)
    with Reach(server, reached(target), secrets, this_run()) as reach:
        todo = steps(Server(server, secrets), reach)
        progress = report.Progress(server, len(todo))
        done: list[Done] = []
        for each in settle(todo, apply=True):
            done.append(each)
            log.info("%s", each)
            progress.advance(len(done))
        report.resources(server, report.rows(todo, done, secrets.redact))
        state = report.verdict(done, secrets.redact)
        if state.is_completed():
            report.connect(server)
        return state
