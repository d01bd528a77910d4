"""Who calls, and what they may do.

A caller proves itself with a token of our OAuth endpoint or with a JWT signed by its own key (which
google-cloud-compute sends without asking anybody). What a method needs follows from its name;
``EXTRA`` and ``RENAMED`` list the exceptions.
Source of the names: the "IAM Permissions" sections of Google's REST reference.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from rehearsal.errors import ApiError, Json

TOKEN_SECONDS = 3600
TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address

RENAMED = {
    "secretmanager.projects.secrets.addVersion": "secretmanager.versions.add",
    "secretmanager.projects.secrets.patch": "secretmanager.secrets.update",
    "cloudresourcemanager.projects.get": "resourcemanager.projects.get",
    "cloudresourcemanager.projects.getIamPolicy": "resourcemanager.projects.getIamPolicy",
    "iam.projects.serviceAccounts.patch": "iam.serviceAccounts.update",
}
EXTRA = {
    "compute.instances.insert": ("compute.disks.create", "compute.subnetworks.use"),
    "compute.subnetworks.insert": ("compute.networks.updatePolicy",),
    "compute.firewalls.insert": ("compute.networks.updatePolicy",),
    "compute.firewalls.patch": ("compute.networks.updatePolicy",),
    "compute.firewalls.update": ("compute.networks.updatePolicy",),
    "compute.firewalls.delete": ("compute.networks.updatePolicy",),
    "compute.routers.insert": ("compute.networks.updatePolicy",),
    "compute.disks.createSnapshot": ("compute.snapshots.create",),
    "compute.instances.attachDisk": ("compute.disks.use",),
}
TUNNEL = "iap.tunnelInstances.accessViaIAP"
ACT_AS = "iam.serviceAccounts.actAs"


def permissions(method: str) -> tuple[str, ...]:
    """Permissions a method needs, by discovery id; empty for questions about oneself."""
    service, *_, collection, action = method.split(".")
    if action == "testIamPermissions" or service == "iamcredentials":
        return ()
    action = {"insert": "create", "patch": "update", "aggregatedList": "list", "wait": "get"}.get(
        action, action
    )
    name = RENAMED.get(method, f"{service}.{collection}.{action}")
    return (name, *EXTRA.get(method, ()))


class Identities:
    """The accounts that have keys here, their tokens and their grants."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._keys: dict[str, rsa.RSAPublicKey] = {}
        self._tokens: dict[str, tuple[str, float]] = {}
        self._grants: dict[str, frozenset[str] | None] = {}

    def create_key(self, email: str) -> Json:
        """A service account key file; the account may do everything until ``grant`` says less."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._keys[email] = key.public_key()
        self._grants.setdefault(email, None)
        return {
            "type": "service_account",
            "project_id": self._project,
            "private_key_id": secrets.token_hex(20),
            "private_key": pem.decode(),
            "client_email": email,
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": TOKEN_URI,
            "universe_domain": "googleapis.com",
        }

    def grant(self, email: str, names: Iterable[str] | None) -> None:
        """Let the account do just these permissions; None means everything."""
        self._grants[email] = None if names is None else frozenset(names)

    def may(self, email: str, permission: str) -> bool:
        granted = self._grants.get(email, frozenset())
        return granted is None or permission in granted

    def token(self, email: str) -> Json:
        """An access token answer as the OAuth endpoint and the metadata server give it."""
        token = f"ya29.{secrets.token_urlsafe(32)}"
        self._tokens[token] = (email, time.time() + TOKEN_SECONDS)
        return {"access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"}

    def exchange(self, form: dict[str, str]) -> Json:
        """Answer a JWT bearer grant (RFC 7523)."""
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            raise ApiError(400, "unsupported_grant_type", "Only service account keys work here.")
        email = self._signer(form.get("assertion", ""))
        if email is None:
            raise ApiError(400, "invalid_grant", "Invalid JWT Signature.")
        return self.token(email)

    def caller(self, authorization: str) -> str | None:
        """The account behind an Authorization header; None when it proves nothing."""
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer":
            return None
        email, expires = self._tokens.get(token, (None, 0.0))
        if email:
            return email if expires > time.time() else None
        return self._signer(token)

    def _signer(self, jwt: str) -> str | None:
        if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", jwt):
            return None
        signed, _, signature = jwt.rpartition(".")
        try:
            claims = json.loads(_decode(signed.partition(".")[2]))
            email = claims["iss"]
            self._keys[email].verify(
                _decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            return str(email) if claims["exp"] > time.time() else None
        except (ValueError, KeyError, TypeError, InvalidSignature):
            return None


def _decode(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))
