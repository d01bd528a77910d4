"""The laptop's notification block on the new server: copied, kept alike, and never shown."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.exceptions import PrefectHTTPStatusError

from flows.errors import Final
from flows.reconcile import reconcile
from flows.resources.automation import NotificationBlock
from tests.flows.two_servers import (
    SECRET,
    api,
    heals,
    heard,
    knows,
    laptop,
    new_server,
    saved,
)
from tests.prefect_server import prefect_api

__all__ = ["api", "heard", "laptop", "new_server", "prefect_api"]


@pytest.fixture
def block(laptop: SyncPrefectClient, api: SyncPrefectClient) -> NotificationBlock:
    """A block that is on the laptop's server only."""
    name = f"alerts-{uuid.uuid4()}"
    knows(str(laptop.api_url), CustomWebhookNotificationBlock)
    saved("http://127.0.0.1:1/", name)
    return NotificationBlock(lambda: api, lambda: laptop, f"custom-webhook/{name}")


def test_the_block_is_copied_and_follows_the_laptops(
    block: NotificationBlock, laptop: SyncPrefectClient, api: SyncPrefectClient
) -> None:
    heals(block, ["values"])
    name = block.block.partition("/")[2]
    saved("http://127.0.0.1:2/", name)
    heals(block, ["values"])
    copy = api.read_block_document_by_name(name, "custom-webhook")
    api.update_block_document(copy.id, BlockDocumentUpdate(data={"left": "by hand"}))
    heals(block, ["values"])
    here, there = (c.read_block_document_by_name(name, "custom-webhook") for c in (laptop, api))
    assert there.data == here.data
    assert there.data["secrets"] == {"token": SECRET}


def test_its_values_are_in_no_state_and_no_error(
    block: NotificationBlock, api: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(document: Any) -> None:
        body = document.model_dump_json()
        request = httpx.Request("POST", "http://127.0.0.1/api/block_documents/", content=body)
        response = httpx.Response(422, request=request, json={"request_body": body})
        raise PrefectHTTPStatusError(body, request=request, response=response)

    monkeypatch.setattr(api, "create_block_document", refuse)
    with pytest.raises(Final, match="HTTP 422") as caught:
        reconcile(block, apply=True)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    monkeypatch.undo()
    outcome = reconcile(block, apply=True)
    assert SECRET not in f"{caught.value} {block!r} {outcome!r} {block.read()!r}"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("custom-webhook/none", "There is no block custom-webhook/none on the laptop's server"),
        ("secret/quiet", "Block secret/quiet cannot notify"),
    ],
)
def test_a_block_that_is_not_there_or_cannot_notify_is_refused(
    laptop: SyncPrefectClient, api: SyncPrefectClient, name: str, says: str
) -> None:
    knows(str(laptop.api_url), Secret)
    Secret(value="x").save("quiet", overwrite=True)
    with pytest.raises(Final, match=says):
        reconcile(NotificationBlock(lambda: api, lambda: laptop, name), apply=True)


class Carrier(CustomWebhookNotificationBlock):
    """A block of a package that only the laptop has."""

    _block_type_slug = "carrier"


def test_a_block_of_a_type_that_the_new_server_lacks_is_refused(
    laptop: SyncPrefectClient, api: SyncPrefectClient
) -> None:
    knows(str(laptop.api_url), Carrier)
    Carrier(name="pigeon", url="http://127.0.0.1:1/").save("pigeon", overwrite=True)
    with pytest.raises(Final, match="does not know blocks of the type carrier"):
        reconcile(NotificationBlock(lambda: api, lambda: laptop, "carrier/pigeon"), apply=True)
