"""The laptop's Prefect server and a new one, both real, and a webhook that remembers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED,
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED,
    temporary_settings,
)

from flows import reconcile as engine
from flows.reconcile import reconcile
from tests.prefect_server import _migrated, prefect_api

__all__ = ["prefect_api"]

SECRET = "a-token-that-nobody-may-see"
BLOCK = "custom-webhook/alerts"


@pytest.fixture
def laptop(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(request.getfixturevalue("prefect_api")) as client:
        yield client


@pytest.fixture(scope="module")
def new_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Another one; the URL of its API."""
    request.getfixturevalue("prefect_api")
    cache = request.config.cache
    assert cache
    file = tmp_path_factory.mktemp("new") / "prefect.db"
    shutil.copy(_migrated(cache.mkdir("prefect-server")), file)
    settings = {
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{file}",
        # SQLite bears one writer at a time, and these two only write down what is not asked here.
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED: False,
        PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED: False,
    }
    with temporary_settings(settings):
        server = SubprocessASGIServer(port=SubprocessASGIServer().find_available_port())
        server.start(timeout=60)
    try:
        knows(server.api_url, CustomWebhookNotificationBlock)
        yield server.api_url
    finally:
        server.stop()


@pytest.fixture
def api(new_server: str) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(new_server) as client:
        yield client


def knows(url: str, *kinds: type[Block]) -> None:
    """As a server that registers Prefect's own blocks when it starts."""
    with temporary_settings({PREFECT_API_URL: url}):
        for kind in kinds:
            kind.register_type_and_schema()


@pytest.fixture
def heard() -> Iterator[tuple[str, list[str]]]:
    """The URL of a webhook, and what it was told."""
    told: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append(f"{json.loads(body)['text']} [{self.headers['Authorization']}]")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", told
        server.shutdown()


def saved(url: str, name: str = "alerts") -> None:
    """The laptop's block, as somebody has made it in the UI."""
    CustomWebhookNotificationBlock(
        name="prefect",
        url=url,
        json_data={"text": "{{subject}}: {{body}}"},
        headers={"Authorization": "{{token}}"},
        secrets={"token": SECRET},
    ).save(name, overwrite=True)


def named(resource: engine.Resource) -> list[str]:
    return [change.attribute for change in reconcile(resource, apply=False).changes]


def heals(resource: engine.Resource, attributes: list[str]) -> None:
    assert named(resource) == attributes
    assert reconcile(resource, apply=True).word == "changed"
    assert reconcile(resource, apply=True).word == "unchanged"


def wait(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s"
        time.sleep(0.5)
