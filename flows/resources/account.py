"""The service account that the machine runs as."""

from __future__ import annotations

from typing import Any

from blocks.compute import Compute, DeadlinePassed, Json
from flows.errors import Final
from flows.reconcile import Change, State
from flows.resources.kind import Kind

DEFAULT = "prefect-vm"
IN_A_ROW, LOOKS, PAUSE = 3, 240, 0.5
"""A new account comes and goes for a while: it is there once it was seen so often in a row."""


class Account(Kind):
    """``prefect-vm`` of the project, made when it is absent; one that the spec names is a person's,
    and only looked at."""

    noun = "service account"

    @property
    def id(self) -> str:
        project = self.spec.project
        given = self.spec.machine.service_account
        return given or f"{DEFAULT}@{project}.iam.gserviceaccount.com"

    def desired(self) -> State:
        return {"disabled": False}

    def request(self, compute: Compute) -> Any:
        return self._api(compute).get(name=self._path)

    def parse(self, body: Json) -> State:
        return {"disabled": body.get("disabled", False)}

    def create(self, compute: Compute) -> None:
        """Make it, and wait until it stays to be seen, two minutes at most."""
        if self.spec.machine.service_account:
            raise Final(f"{self.name} does not exist.", repair="Create it, or name another one.")
        about = {"displayName": "Prefect server", "description": "Runs Prefect servers"}
        body = {"accountId": DEFAULT, "serviceAccount": about}
        name = f"projects/{self.spec.project}"
        compute.ask(self._api(compute).create(name=name, body=body))
        seen = 0
        for _ in range(LOOKS):
            seen = seen + 1 if self.fetch(compute) else 0
            if seen == IN_A_ROW:
                return
            compute.sleep(PAUSE)
        raise DeadlinePassed(
            f"{self.name} was made, but cannot be read.", repair="Run again in a minute."
        )

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        if not changes:
            return
        if self.spec.machine.service_account:
            enable = f"Enable it: gcloud iam service-accounts enable {self.id}"
            raise Final(f"{self.name} is disabled.", repair=enable)
        compute.ask(self._api(compute).enable(name=self._path, body={}))

    @property
    def _path(self) -> str:
        """With its own project: through ``projects/-`` an absent account is a forbidden one."""
        project = self.id.partition("@")[2].partition(".")[0]
        return f"projects/{project}/serviceAccounts/{self.id}"

    def _api(self, compute: Compute) -> Any:
        return compute.iam.projects().serviceAccounts()
