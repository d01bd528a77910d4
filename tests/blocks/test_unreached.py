"""Why a machine cannot be reached: what a tunnel says → type, sentence and repair."""

import re

import pytest

from blocks.unreached import (
    Closed,
    HostKeyMismatch,
    KeyRefused,
    NoAnswer,
    NotBooted,
    NotPermitted,
    NotThere,
    Tunnel,
    by_tunnel,
)
from flows.errors import BootstrapError, Final, Unreachable

GCLOUD = """\
WARNING: To increase the performance of the tunnel, consider installing NumPy.
ERROR: [0] Error during local connection to [stdin]: Error while connecting [{}].
"""
NO_LOGIN = "ERROR: (gcloud.compute.start-iap-tunnel) You do not currently have an active account.\n"
NATIVE = "{}. Check that the instance has booted, that sshd runs, and that a firewall rule allows tcp:22 from 35.235.240.0/20.\n"

CASES: dict[str, tuple[Tunnel, int, str, str, type[BootstrapError] | None, str]] = {
    "open": ("iap", 0, "", "RUNNING", None, ""),
    "firewall": ("iap", 44, NATIVE.format("no [4003]"), "RUNNING", Closed, "port: no [4003]. Run"),
    "still off": ("iap", 44, NATIVE.format("no [4003]"), "STAGING", NotBooted, "it is STAGING"),
    "permission": ("iap", 45, "no [4033].", "RUNNING", NotPermitted, "account of the ServerTarget"),
    "other name": ("iap", 46, "no [4047].", "RUNNING", NotThere, "Check the names of project"),
    "network": ("iap", 47, "timed out.", "RUNNING", NoAnswer, "tunnel.cloudproxy.app:443"),
    "lost": ("iap", 48, "no [4001].", "RUNNING", NoAnswer, "Connect again"),
    "crashed": ("iap", -9, "", "RUNNING", NoAnswer, "exit -9"),
    "gcloud: open": ("gcloud", 0, GCLOUD[:80], "RUNNING", None, ""),
    "gcloud: firewall": ("gcloud", 0, GCLOUD.format("4003: 'no'"), "RUNNING", Closed, "4003"),
    "gcloud: off": ("gcloud", 0, GCLOUD.format("4003: 'no'"), "STOPPING", NotBooted, "STOPPING"),
    "gcloud: permission": (
        "gcloud", 1, GCLOUD.format("4033: 'no'"), "RUNNING", NotPermitted, "gcloud auth list",
    ),
    "gcloud: other name": ("gcloud", 1, GCLOUD.format("4047: 'no'"), "RUNNING", NotThere, "4047"),
    "gcloud: no login": ("gcloud", 1, NO_LOGIN, "RUNNING", NoAnswer, "active account"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("tunnel", "code", "stderr", "status", "kind", "said"), CASES.values(), ids=list(CASES)
)
def test_what_a_tunnel_says_has_one_meaning(
    tunnel: Tunnel,
    code: int,
    stderr: str,
    status: str,
    kind: type[BootstrapError] | None,
    said: str,
) -> None:
    error = by_tunnel("vm", tunnel, code, stderr, lambda: status)
    assert type(error) is (kind or type(None))
    assert said in str(error or "")
    assert "\n" not in str(error)


def test_waiting_helps_only_where_the_machine_may_be_on_its_way() -> None:
    for kind in (NotBooted, Closed, KeyRefused, NoAnswer):
        assert issubclass(kind, Unreachable)
    for final in (HostKeyMismatch, NotPermitted, NotThere):
        assert issubclass(final, Final)


def test_no_two_causes_share_a_sentence_or_a_repair() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDM331fCZRygCg4ljE9XynZwJNPQ3alO53ze0rMcdgjK"
    errors: list[BootstrapError] = [
        NotBooted("vm", "RUNNING"),
        NotBooted("vm", "TERMINATED"),
        Closed("vm", "no [4003]."),
        KeyRefused("vm", "bootstrap", "Permission denied"),
        HostKeyMismatch("vm", key),
        NotPermitted("vm", "iap", "no [4033]."),
        NotPermitted("vm", "gcloud", "no [4033]."),
    ]
    assert len({str(error).removesuffix(error.repair) for error in errors}) == len(errors) - 1
    assert len({error.repair for error in errors}) == len(errors)
    assert re.search(r"ssh-ed25519 SHA256:[\w+/]{43}\.", str(errors[4]))
