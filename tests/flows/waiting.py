"""A flow that waits as a bootstrap does, in the place that it is told, for an answer that never comes."""

from __future__ import annotations

import uuid

from googleapiclient.discovery import build
from googleapiclient.http import build_http
from prefect import flow, task

from blocks.compute import Compute, Run
from blocks.iap import IapTarget
from blocks.shell import Command
from blocks.ssh import SshShell
from flows.reconcile import reconcile
from flows.resources.compute import bound, cloud_resources
from flows.stages import RETRIES, may_pass
from tests.flows.test_compute_resources import KEY, spec


def google(url: str) -> Compute:
    service = build(
        "compute",
        "v1",
        http=build_http(),
        client_options={"api_endpoint": f"{url}/compute/v1/"},
        cache_discovery=False,
    )
    return Compute("rehearsal", service, Run(uuid.uuid4()), build_http)


def reading(url: str) -> None:
    """All resources of the cloud, side by side."""
    compute = google(url)
    for resource in bound(cloud_resources(spec(), KEY), lambda: compute):
        reconcile(resource, apply=True)


def operation(url: str) -> None:
    """The end of an operation, or the next try of it."""
    insert = google(url).service.networks().insert
    google(url).change(insert, "create network", body={"name": "net"})


def shell(user: str, retries: int) -> None:
    """A command on the machine, over a connection that the flow has opened; perhaps beside others,
    and tried again as a step is."""
    there = IapTarget("rehearsal", "us-central1-a", "prefect-1")
    keys = ["ssh-ed25519 AAAA"]
    with SshShell(there, user, "key", lambda: keys, lambda: "RUNNING", lambda: "token") as ssh:

        @task(
            name="wait",
            retries=retries,
            retry_delay_seconds=list(RETRIES),
            retry_condition_fn=may_pass,
        )
        def wait() -> None:
            ssh.run([Command(("sleep", "600"), seconds=600)])

        wait.submit().result() if retries else wait()


@flow(name="waiting")
def waiting(where: str, url: str) -> None:
    if where == "reading":
        task(reading)(url)
    elif where == "operation":
        task(operation)(url)
    else:
        shell(where, retries=len(RETRIES) * (where == "beside"))
