"""The secrets that a person makes before the first bootstrap, in the rehearsal's Secret Manager."""

from __future__ import annotations

import contextlib
import secrets
from urllib.parse import quote

from google.api_core.exceptions import AlreadyExists, GoogleAPIError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud import secretmanager

from rehearsal.config import DATABASE, DATABASE_NAME, DATABASE_ROLE, PROJECT
from rehearsal.control import Failed
from rehearsal.database import PASSWORD

CALL_SECONDS = 15.0


def seed() -> str:
    """Make the two secrets, unless they are there. Returns the new server's auth string.

    Called in the cloud's view, with its credentials.
    """
    password = quote(PASSWORD.read_text(), safe="")
    place = f"{DATABASE_ROLE}:{password}@{DATABASE}:5432/{DATABASE_NAME}"
    try:
        client = secretmanager.SecretManagerServiceClient(transport="rest")
        _secret(client, "prefect-database-url", f"postgresql+asyncpg://{place}?ssl=require")
        return _secret(client, "prefect-auth", f"admin:{secrets.token_urlsafe(24)}")
    except (GoogleAPIError, GoogleAuthError) as error:
        raise Failed(
            f"the secrets could not be made ({error}): python -m rehearsal log tells why"
        ) from error


def _secret(client: secretmanager.SecretManagerServiceClient, name: str, value: str) -> str:
    """The latest version of a secret, which is ``value`` when it had none."""
    path = f"projects/{PROJECT}/secrets/{name}"
    with contextlib.suppress(NotFound):
        found = client.access_secret_version(
            name=f"{path}/versions/latest", timeout=CALL_SECONDS
        ).payload.data
        return bytes(found).decode()
    with contextlib.suppress(AlreadyExists):
        client.create_secret(
            parent=f"projects/{PROJECT}",
            secret_id=name,
            secret=secretmanager.Secret(replication={"automatic": {}}),
            timeout=CALL_SECONDS,
        )
    payload = secretmanager.SecretPayload(data=value.encode())
    client.add_secret_version(parent=path, payload=payload, timeout=CALL_SECONDS)
    return value
