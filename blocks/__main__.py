"""Save the blocks that the deployments need, as often as you like: an SSH key is made only once.

The blocks are a GcpCredentials and a ServerTarget of one name, and a GcpSecret for each secret.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from pydantic import TypeAdapter, ValidationError

from flows.errors import Final
from flows.spec import BlockName

if TYPE_CHECKING:
    from prefect.blocks.core import Block
    from prefect_gcp.credentials import GcpCredentials

Values = dict[str, Any]


def block_name(text: str) -> str:
    """An argument that can name a block. Raises ValueError, as argparse wants it."""
    return TypeAdapter(BlockName).validate_python(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Save the blocks, one line each. Returns the exit status."""
    parser = argparse.ArgumentParser("python -m blocks", description=__doc__)
    add = parser.add_argument
    add(
        "--target",
        type=block_name,
        default="gcp",
        help="name of the ServerTarget block and its credentials",
    )
    add("--key-file", type=Path, help="service account key; else Application Default Credentials")
    add("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT"), help="$GOOGLE_CLOUD_PROJECT")
    for name, default in (("auth", "prefect-auth"), ("database-url", "prefect-database-url")):
        what = "name in Secret Manager, and of the block"
        add(f"--{name}-secret", type=block_name, default=default, help=f"{what}: {default}")
    try:
        save_blocks(parser.parse_args(argv))
    except Final as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def save_blocks(args: argparse.Namespace) -> None:
    """Save all blocks. Raises Final."""
    if not args.project:
        raise Final("There is no project.", repair="Pass --project, or set GOOGLE_CLOUD_PROJECT.")
    url = PREFECT_API_URL.value()
    start = (
        "Start prefect server start, and set PREFECT_API_URL, such as to http://127.0.0.1:4200/api."
    )
    if not url:
        raise Final("There is no Prefect API.", repair=start)
    try:
        with get_client(sync_client=True) as client:
            client.api_version()  # before the imports, which take seconds
            _save_all(client, args)
    except (httpx.HTTPStatusError, json.JSONDecodeError) as error:
        raise Final(
            f"The Prefect API at {url} cannot be used: {str(error).splitlines()[0]}.",
            repair="Check PREFECT_API_URL, which ends in /api, and PREFECT_API_AUTH_STRING.",
        ) from error
    except httpx.HTTPError as error:
        raise Final(f"The Prefect API at {url} does not answer: {error}.", repair=start) from error


def _save_all(client: SyncPrefectClient, args: argparse.Namespace) -> None:
    from prefect_gcp.secret_manager import GcpSecret

    from blocks.target import ServerTarget, new_ssh_key

    credentials = _credentials(args.key_file, args.project)
    _save(client, credentials, args.target)
    saved = _values(client, ServerTarget, args.target)
    key = saved["ssh_private_key"] if saved else new_ssh_key()
    try:
        tunnel = (saved or {}).get("tunnel", "iap")
        target = ServerTarget(credentials=credentials, ssh_private_key=key, tunnel=tunnel)
    except ValidationError as error:  # the UI saves what it is given
        raise Final(
            f"The key saved in server-target/{args.target} cannot be used.",
            repair="Delete that block and run this again, which makes a new key, or correct it.",
        ) from error
    _save(client, target, args.target)
    for name in (args.auth_secret, args.database_url_secret):
        _save(client, GcpSecret(gcp_credentials=credentials, secret_name=name), name)


def _credentials(key_file: Path | None, project: str) -> GcpCredentials:
    from google.auth.exceptions import GoogleAuthError
    from prefect_gcp.credentials import GcpCredentials

    try:
        key = key_file.read_text() if key_file else None
        return GcpCredentials(service_account_info=key, project=project)
    except (ValueError, GoogleAuthError) as error:
        if key_file:
            raise Final(
                f"{key_file} is not a service account's key.",
                repair="Make one: gcloud iam service-accounts keys create FILE --iam-account=EMAIL",
            ) from None  # the cause may show the key
        raise Final(
            f"There are no Application Default Credentials: {error}",
            repair="Pass --key-file, or run gcloud auth application-default login.",
        ) from error
    except OSError as error:
        raise Final(f"{key_file}: {error.strerror}.", repair="Pass another --key-file.") from error


def _save(client: SyncPrefectClient, block: Block, name: str) -> None:
    """Register the block's type, save it, and say what has become of the one saved before."""
    before = _values(client, type(block), name)
    block.save(name, overwrite=True)
    after = _values(client, type(block), name)
    word = "saved" if before is None else "kept" if before == after else "updated"
    print(f"{word} {block.get_block_type_slug()}/{name}")


def _values(client: SyncPrefectClient, kind: type[Block], name: str) -> Values | None:
    """What is saved under a name; None when nothing is."""
    try:
        return client.read_block_document_by_name(name, kind.get_block_type_slug()).data
    except ObjectNotFound:
        return None


if __name__ == "__main__":
    sys.exit(main())
