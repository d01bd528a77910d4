"""A Prefect server for the tests: on a copy of a migrated SQLite file, which is up in seconds."""

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import prefect
import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_RESULTS_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_DATABASE_MIGRATE_ON_START,
    PREFECT_SERVER_REGISTER_BLOCKS_ON_START,
    temporary_settings,
)
from prefect.utilities.asyncutils import run_coro_as_sync


@pytest.fixture(scope="session")
def prefect_api(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a running server's API, which this process uses from then on."""
    cache = pytestconfig.cache
    assert cache, "the migrated file is kept in pytest's cache"
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(_migrated(cache.mkdir("prefect-server")), home / "prefect.db")
    settings = {
        PREFECT_HOME: home,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "storage",
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{home}/prefect.db",
        PREFECT_SERVER_DATABASE_MIGRATE_ON_START: False,
        PREFECT_SERVER_REGISTER_BLOCKS_ON_START: False,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread costs each flow run a second
    }
    with temporary_settings(settings):
        server = SubprocessASGIServer()
        server.start(timeout=60)
        try:
            with temporary_settings({PREFECT_API_URL: server.api_url}):
                yield server.api_url
                run_coro_as_sync(_drain())
        finally:
            server.stop()


def _migrated(cache: Path) -> Path:
    """A migrated, empty database of this version of Prefect; made once."""
    template = cache / f"prefect-{prefect.__version__}.db"
    if not template.exists():
        new = template.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
            env=os.environ
            | {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{new}",
                "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
            },
            check=True,
            capture_output=True,
            timeout=100,
        )
        new.replace(template)
    return template


async def _drain() -> None:
    """Send what is queued: this process would wait for a server that is gone to take it."""
    for drain in (lambda: APILogWorker.instance().drain(), EventsWorker.drain_all):
        with suppress(RuntimeError):  # there is no such worker
            if inspect.isawaitable(done := drain()):
                await done
