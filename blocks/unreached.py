"""Why there is no connection to a machine: a type, a sentence and a repair for each cause.

ssh does not tell its causes apart, and its words are not read: IAP has codes, and ``blocks/ssh.py``
knows which host key was shown, and so whether it came as far as that.

Unreachable
├── NotBooted        it is not running, or has not published its host keys
├── Closed           IAP finds nobody on its port [4003]: a firewall, or sshd
├── KeyRefused       its sshd does not know our key, or not yet
└── NoAnswer         anything else on the way
Final
├── HostKeyMismatch  it shows a key that it has not published
├── NotPermitted     IAP does not let us through [4033, HTTP 4xx]
├── NotThere         IAP knows no such instance [4047]
└── NoGcloud         the tunnel is gcloud's, and there is none
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Literal

from blocks import iap
from flows.errors import BootstrapError, Final, Unreachable

Tunnel = Literal["iap", "gcloud"]
"""Our own client, with a token of the account; or gcloud, as whom it is logged in."""
RUNNING = "RUNNING"
WHO = {
    "iap": "the account of the ServerTarget block",
    "gcloud": "the account that gcloud auth list marks as active",
}
BY_STATUS = {kind.status: kind for kind in iap.IapError.__subclasses__()}


class NotBooted(Unreachable):
    """It may be on its way."""

    def __init__(self, name: str, status: str) -> None:
        if status == RUNNING:
            super().__init__(
                f"{name} runs, but has not published its host keys.",
                repair="Look at its serial console: it still boots, or runs no guest agent.",
            )
        else:
            super().__init__(
                f"{name} has not booted: it is {status}.",
                repair="Run bootstrap-server, which starts it.",
            )


class Closed(Unreachable):
    """It may be on its way; when it is up, something is closed."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(
            f"{name} runs, but IAP finds nobody on its SSH port: {said}",
            repair="Run bootstrap-server, whose firewall rule allows tcp:22 from 35.235.240.0/20; if "
            "the rule is there, look at its serial console: it still boots, or its sshd has ended.",
        )


class KeyRefused(Unreachable):
    """Its guest agent may not have written our key yet."""

    def __init__(self, name: str, user: str, said: str) -> None:
        super().__init__(
            f"{name} does not let {user} in with the SSH key of the ServerTarget block: {said}.",
            repair="Run bootstrap-server, which puts the key into its metadata; if it is there, look "
            "at its serial console: its guest agent, which hands it to sshd, does not run.",
        )


class NoAnswer(Unreachable):
    """Something on the way."""


class HostKeyMismatch(Final):
    """Another machine may be in between: nothing was sent to it, and its key is not accepted.

    ``shown``: the key as ssh writes it, "type base64".
    """

    def __init__(self, name: str, shown: str) -> None:
        kind, key = shown.split()
        digest = base64.b64encode(hashlib.sha256(base64.b64decode(key)).digest()).decode()
        super().__init__(
            f"{name} shows a host key that it has not published, so it was refused: "
            f"{kind} SHA256:{digest.rstrip('=')}.",
            repair="Find out who answers in its place; if it is the machine itself, put the keys "
            f"back that gcloud compute instances get-guest-attributes {name} "
            "--query-path=hostkeys/ lists, or delete it and run bootstrap-server.",
        )


class NotPermitted(Final):
    """The account may not use the tunnel."""

    def __init__(self, name: str, tunnel: Tunnel, said: str) -> None:
        super().__init__(
            f"IAP does not let us through to {name}: {said}",
            repair=f"Grant {WHO[tunnel]} roles/iap.tunnelResourceAccessor, and check that its "
            "credentials are still valid.",
        )


class NotThere(Final):
    """No such instance."""


class NoGcloud(Final):
    """No such program."""

    def __init__(self) -> None:
        super().__init__(
            "The ServerTarget block says to use gcloud's tunnel, and there is no gcloud on PATH.",
            repair="Install the Google Cloud CLI, or set tunnel in the block to iap.",
        )


def by_tunnel(
    name: str, tunnel: Tunnel, code: int, stderr: str, status: Callable[[], str]
) -> BootstrapError | None:
    """What keeps the tunnel from opening, by its exit status ``code``; None when it opened.

    gcloud says the relay's close code in brackets, and its status is 0 nevertheless. ``status`` is
    asked for that of the machine, where that matters.
    """
    said = " ".join(stderr.split())
    close = re.search(r"\[(4\d{3})\b", said) if tunnel == "gcloud" else None
    if not (code or close):
        return None
    kind = iap.KINDS.get(int(close[1])) if close else BY_STATUS.get(code)
    repair = kind.repair if kind else ""
    said = said.removesuffix(repair).strip() or f"exit {code}"
    if kind is iap.BackendUnreachable:
        now = status()
        return Closed(name, said) if now == RUNNING else NotBooted(name, now)
    if kind is iap.NotAuthorized:
        return NotPermitted(name, tunnel, said)
    if kind is iap.NoSuchInstance:
        return NotThere(f"IAP: {said}", repair=repair)
    return NoAnswer(f"IAP: {said}", repair=repair)
