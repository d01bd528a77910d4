"""The server's two secrets, out of the blocks that the spec names.

They are read once, before all else, judged, and from then on only ever written to a machine's stdin.
What is about to be said where a program's output is part of it goes through ``redact`` first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.exceptions import ObjectNotFound

from flows.errors import BootstrapError, Final, Unreachable
from flows.spec import SecretRef, ServerSpec, check_auth_string, check_database_url

HIDDEN = "********"
SHORTEST = 4
"""Characters of the shortest part that is hidden: a shorter one would black out ordinary words."""

B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Secrets:
    """The values, valid as ``flows.spec`` checks them; ``repr`` shows neither."""

    auth_string: str = field(repr=False)
    database_url: str = field(repr=False)

    def redact(self, text: str) -> str:
        """``text`` without the secrets and their passwords, as they are and percent-encoded."""
        password = urlsplit(self.database_url).password or ""
        parts = {self.auth_string, self.auth_string.partition(":")[2]}
        parts |= {self.database_url, password, unquote(password)}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= SHORTEST:
                text = text.replace(part, HIDDEN)
        return text


def read_secrets(spec: ServerSpec) -> Secrets:
    """Both secrets. Raises Unreachable when Secret Manager does not answer, Final for what only a
    person can repair; neither says any part of a secret."""
    return Secrets(
        _read(spec.auth_secret, check_auth_string),
        _read(spec.database_url_secret, check_database_url),
    )


def secrets_or_error(spec: ServerSpec) -> tuple[Secrets, BootstrapError | None]:
    """The secrets, or what keeps them from being read: then only the cloud can be looked at."""
    try:
        return read_secrets(spec), None
    except BootstrapError as error:
        return Secrets("", ""), error


def unreadable(spec: ServerSpec) -> dict[str, BootstrapError | None]:
    """By the name of its block, what keeps each secret from being read; None when nothing does."""
    refs = ((spec.auth_secret, check_auth_string), (spec.database_url_secret, check_database_url))
    return {ref.block: _error(ref, check) for ref, check in refs}


def _error(ref: SecretRef, check: Callable[[str], str]) -> BootstrapError | None:
    try:
        _read(ref, check)
    except BootstrapError as error:
        return error
    return None


def _read(ref: SecretRef, check: Callable[[str], str]) -> str:
    value, repair = (_from_google if ref.kind == "gcp-secret" else _from_prefect)(ref.block)
    try:
        return check(value)
    except ValueError as error:
        raise Final(f"{ref.kind} block {ref.block}: {error}.", repair=repair) from None


def load_block(kind: type[B], name: str, repair: str) -> B:
    """A block. ``repair``: how to make it where it does not exist."""
    what = f"{kind.get_block_type_name()} block {name}"
    try:
        return kind.load(name)  # type: ignore[return-value] # awaitable only in a coroutine
    except (ValueError, RuntimeError) as error:  # its cause may show what is in the block
        if isinstance(error.__cause__, ObjectNotFound):
            raise Final(f"There is no {what}.", repair=repair) from None
        raise Final(f"The {what} is not valid.", repair="Edit it in the UI.") from None


def _from_prefect(name: str) -> tuple[str, str]:
    """The value of a Secret block, and how to repair it."""
    value = load_block(
        Secret, name, f"Make it in the UI: Blocks, +, Secret, with the name {name}."
    ).get()
    text = value if isinstance(value, str) else ""  # JSON is taken apart; no check accepts ""
    return text, f"Edit the Secret block {name} in the UI."


def _from_google(name: str) -> tuple[str, str]:
    """The value of a GcpSecret block, and how to repair it."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError
    from prefect_gcp.secret_manager import GcpSecret

    block = load_block(GcpSecret, name, "Make it: python -m blocks")
    try:
        value: bytes = block.read_secret()  # type: ignore[assignment] # as above
    except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
        raise _unread(name, block.secret_name, error) from error
    text = value.decode(errors="replace")  # no check accepts a replacement character
    return text, f"Add a version: gcloud secrets versions add {block.secret_name} --data-file=FILE"


def _unread(name: str, secret: str, error: Exception) -> BootstrapError:
    """What an error of Secret Manager, or of the account, means: by its type."""
    from google.api_core import exceptions as api
    from google.auth.exceptions import GoogleAuthError, TransportError

    what = f"The secret of GcpSecret block {name} cannot be read: {error}."
    passing = (api.ServerError, api.TooManyRequests, api.RetryError, TransportError)
    if isinstance(error, passing) or getattr(error, "retryable", False):
        return Unreachable(what, repair="Check that secretmanager.googleapis.com can be reached.")
    account = "Put an account that works into the block: python -m blocks --key-file FILE"
    repairs: dict[type[Exception], str] = {
        api.NotFound: f"Make it: gcloud secrets create {secret} --data-file=FILE",
        api.FailedPrecondition: f"Add a version: gcloud secrets versions add {secret} --data-file=FILE",
        api.Forbidden: "Enable the API: gcloud services enable secretmanager.googleapis.com, and "
        f"grant the account its use: gcloud secrets add-iam-policy-binding {secret} "
        "--member=MEMBER --role=roles/secretmanager.secretAccessor",
        api.Unauthorized: account,
        GoogleAuthError: account,
    }
    found = [repair for kind, repair in repairs.items() if isinstance(error, kind)]
    return Final(what, repair=found[0] if found else "Check the block's fields in the UI.")
