"""Many servers: their specs, and what a person makes for each of them first."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

from rehearsal import laptop
from rehearsal.config import DATABASE
from tests.conftest import Cloud

Json = dict[str, Any]
SAVE = """
import json, os
from google.cloud.secretmanager import SecretManagerServiceClient
from blocks.__main__ import main
client, project = SecretManagerServiceClient(transport="rest"), "projects/rehearsal"
for server in json.loads(os.environ["FLEET"]):
    for name, value in server.items():
        policy = {"replication": {"automatic": {}}}
        client.create_secret(parent=project, secret_id=name, secret=policy)
        version = {"data": value.encode()}
        client.add_secret_version(parent=f"{project}/secrets/{name}", payload=version)
    auth, url = server
    assert main(["--auth-secret", auth, "--database-url-secret", url]) == 0
"""


def spec_of(name: str, first: Json) -> Json:
    """Nine networks would be more than a project's quota, and ten self-checks every five minutes
    more than this machine's."""
    return {
        **first,
        "name": name,
        "auth_secret": {"block": f"{name}-auth"},
        "database_url_secret": {"block": f"{name}-database-url"},
        "network": {"name": "fleet", "cidr": f"10.10.{name.rpartition('-')[2]}.0/24"},
        "self_check": {"interval_seconds": 86400},
    }


def prepare(cloud: Cloud, url: str, names: Iterable[str]) -> None:
    """What a person makes for each server first: role, database, secrets, and their blocks on the
    laptop's Prefect at ``url``."""
    fleet: list[dict[str, str]] = []
    for name in names:
        password = secrets.token_hex(16)
        sql(
            cloud,
            f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'",
            f'CREATE DATABASE "{name}" OWNER "{name}"',
        )
        database = f"postgresql+asyncpg://{name}:{password}@{DATABASE}:5432/{name}?ssl=require"
        auth = f"admin:{secrets.token_hex(16)}"
        fleet.append({f"{name}-auth": auth, f"{name}-database-url": database})
    environment = {**laptop.settings(), "PREFECT_API_URL": f"{url}/api"}
    environment["FLEET"] = json.dumps(fleet)
    cloud.run("python", "-c", SAVE, env=environment, timeout=180)


def sql(cloud: Cloud, *commands: str) -> None:
    """psql's commands, one after the other, as the superuser."""
    each = [word for command in commands for word in ("-c", command)]
    cloud.ctl("database", "psql", "-qv", "ON_ERROR_STOP=1", *each)
