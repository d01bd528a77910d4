"""The service account that the machine runs as."""

from __future__ import annotations

from typing import Any

from blocks.compute import ApiError, Compute, DeadlinePassed, Json, Remedy
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
    def lent(self) -> bool:
        return bool(self.spec.machine.service_account)

    @property
    def id(self) -> str:
        project = self.spec.project
        given = self.spec.machine.service_account
        return given or f"{DEFAULT}@{project}.iam.gserviceaccount.com"

    def desired(self) -> State:
        return {"disabled": False}

    def request(self, compute: Compute) -> Any:
        return self._api(compute).get(name=self.path)

    def parse(self, body: Json) -> State:
        return {"disabled": body.get("disabled", False)}

    def create(self, compute: Compute) -> None:
        """Make it, and wait until it stays to be seen, two minutes at most."""
        about = {"displayName": "Prefect server", "description": "Runs Prefect servers"}
        body = {"accountId": DEFAULT, "serviceAccount": about}
        name = f"projects/{self.spec.project}"
        compute.run.made.add(self.id)
        try:
            compute.ask(self._api(compute).create(name=name, body=body))
        except ApiError as error:  # IAM knows no request ids: an earlier try has made it
            if error.remedy is not Remedy.ADOPT:
                raise
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
        compute.ask(self._api(compute).enable(name=self.path, body={}))

    def by_hand(self, change: Change) -> str:
        if change.missing:
            return super().by_hand(change)
        return f"Enable it: gcloud iam service-accounts enable {self.id}"

    @property
    def path(self) -> str:
        """With its own project: through ``projects/-`` an absent account is a forbidden one."""
        project = self.id.partition("@")[2].partition(".")[0]
        return f"projects/{project}/serviceAccounts/{self.id}"

    def _api(self, compute: Compute) -> Any:
        return compute.iam.projects().serviceAccounts()
