"""What a check leaves behind in the server: a table each, and its own runs; both are kept few."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, Artifact
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.checks.check import Row

BATCH = 20
"""As many of each kind as one run deletes; a run makes one of each."""


def before(client: SyncPrefectClient, key: str) -> list[Row]:
    """The table of the last check; empty at the first one."""
    last = _tables(client, key, 0, 1)
    rows = json.loads(str(last[0].data)) if last and last[0].data else []
    return rows if isinstance(rows, list) else []


def trim(client: SyncPrefectClient, deployment: UUID, key: str, keep: int) -> int:
    """Delete the oldest runs of the deployment and the oldest tables, all but ``keep`` of each.
    Returns how many went."""
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*TERMINAL_STATES])),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        offset=keep,
        limit=BATCH,
    )
    tables = _tables(client, key, keep, BATCH)
    return _delete(runs, client.delete_flow_run) + _delete(tables, client.delete_artifact)


def _delete(things: Sequence[Any], delete: Callable[[UUID], None]) -> int:
    for each in things:
        with suppress(ObjectNotFound):  # the server's own clean-up, or a person, was first
            delete(each.id)
    return len(things)


def _tables(client: SyncPrefectClient, key: str, offset: int, limit: int) -> list[Artifact]:
    """Of that key, the newest first."""
    return client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
        sort=ArtifactSort.CREATED_DESC,
        offset=offset,
        limit=limit,
    )
