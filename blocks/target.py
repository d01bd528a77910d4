"""ServerTarget: how to reach servers on Google Cloud, under one name.

The credentials open the Compute API and the IAP tunnel, the SSH key opens the machine. Which server,
and what it should be, is the spec's to say.
"""

import re
from contextlib import suppress
from functools import partial
from textwrap import fill
from threading import Lock

from cryptography.hazmat.primitives import serialization as ssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.auth.credentials import Credentials, with_scopes_if_required
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import Request
from prefect.blocks.core import Block
from prefect_gcp.credentials import GcpCredentials
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, field_validator

from blocks.compute import Compute, Run
from blocks.iap import SCOPE
from blocks.unreached import Tunnel
from flows.errors import BootstrapError, Final, Unreachable

_FIRST, _LAST = "-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----"
TOKEN_SECONDS = 20.0
"""For Google to give an access token."""
_WRITE = (
    "write an OpenSSH private key without a passphrase: "
    "ssh-keygen -t ed25519 -N '' -f key, then paste the content of the file key"
)


class ServerTarget(Block):
    """
    How to reach servers on Google Cloud: an account, and the key to log in with.

    Example:
        Load a target and see the key that a machine must let in:
        ```python
        from blocks.target import ServerTarget

        target = ServerTarget.load("BLOCK_NAME")
        print(target.public_key)
        ```
    """

    _block_type_name = "Server Target"
    _block_type_slug = "server-target"
    _logo_url = HttpUrl(
        "https://cdn.sanity.io/images/3ugk85nk/production/10424e311932e31c477ac2b9ef3d53cefbaad708-250x250.png"
    )
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/advanced/self-hosted")

    model_config = ConfigDict(hide_input_in_errors=True)

    credentials: GcpCredentials = Field(
        description="The account that makes servers and reaches them through IAP."
    )
    ssh_private_key: SecretStr = Field(
        title="SSH private key",
        description="An OpenSSH private key without a passphrase, ed25519 recommended.",
    )
    tunnel: Tunnel = Field(
        default="iap",
        description="What SSH goes through to a machine. iap: the tunnel that comes with these flows, "
        "as the account above. gcloud: gcloud compute start-iap-tunnel, as whom gcloud is logged in "
        "where the flows run (gcloud auth login); it gets no secret from here.",
    )
    _account: Credentials | None = PrivateAttr(default=None)
    _alone: Lock = PrivateAttr(default_factory=Lock)

    @field_validator("ssh_private_key")
    @classmethod
    def _usable(cls, key: SecretStr) -> SecretStr:
        """The key as ssh wants it: a form of one line may have taken its line breaks away."""
        try:
            found = re.fullmatch(f"{_FIRST}(.*){_LAST}", key.get_secret_value().strip(), re.DOTALL)
            body = fill("".join(found[1].split()), 64) if found else ""
            text = f"{_FIRST}\n{body}\n{_LAST}\n"
            ssh.load_ssh_private_key(text.encode(), password=None)
        except Exception:  # noqa: BLE001 - each kind of damage has its own; none may show the key
            raise ValueError(_WRITE) from None
        return SecretStr(text)

    @property
    def public_key(self) -> str:
        """As a line of authorized_keys has it, without a comment: ``ssh-ed25519 AAAA…``."""
        text = self.ssh_private_key.get_secret_value().encode()
        public = ssh.load_ssh_private_key(text, password=None).public_key()
        return public.public_bytes(ssh.Encoding.OpenSSH, ssh.PublicFormat.OpenSSH).decode()

    def compute(self, project: str, run: Run) -> Compute:
        """A client of the Compute API. ``run``: whom its request ids belong to."""
        with self._alone:
            first = self._account is None
            account = self.account()
            if first:  # or each of the threads would ask for a token
                with suppress(BootstrapError):  # whose requests try again, and say why
                    self.token()
        return Compute.connect(account, project, run)

    def account(self) -> Credentials:
        """The account, one for all clients, so that they share its token. Raises Final."""
        if self._account is None:
            try:
                account = self.credentials.get_credentials_from_service_account()
            except GoogleAuthError as error:
                raise _refused(error) from error
            # Application Default Credentials from a key file come without a scope.
            self._account = with_scopes_if_required(account, [SCOPE])  # type: ignore[no-untyped-call] # google-auth is half typed
        return self._account

    def token(self) -> str:
        """An OAuth access token for the IAP tunnel, valid for some minutes at least.

        Raises Unreachable when Google does not answer, Final when the credentials are refused.
        """
        account = self.account()
        try:
            if not account.valid:
                request = partial(Request(), timeout=TOKEN_SECONDS)
                account.refresh(request)  # type: ignore[no-untyped-call] # as above
        except GoogleAuthError as error:
            raise _refused(error) from error
        return str(account.token)


def _refused(error: GoogleAuthError) -> Unreachable | Final:
    """What an error of google-auth means."""
    said = f"Google gives no access token: {error}."
    if error.retryable or isinstance(error, TransportError):
        return Unreachable(said, repair="Check that this machine reaches oauth2.googleapis.com.")
    return Final(
        said,
        repair="Check that the key in the block of the credentials still exists: "
        "python -m blocks --key-file FILE puts in another.",
    )


def new_ssh_key() -> SecretStr:
    """A new ed25519 private key in OpenSSH's format."""
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        ssh.Encoding.PEM, ssh.PrivateFormat.OpenSSH, ssh.NoEncryption()
    ).decode()
    return SecretStr(text)
