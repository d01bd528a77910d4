"""What the rehearsal's command line says without a cloud."""

import subprocess
import sys

import pytest

from rehearsal import faults
from rehearsal.errors import OperationError
from rehearsal.faults import Fault
from tests.conftest import ROOT

COMMANDS = [
    "up",
    "run",
    "exec",
    "status",
    "database",
    "root",
    "fault",
    "link",
    "role",
    "log",
    "down",
]


def rehearsal(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rehearsal", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = rehearsal(command, "--help")
    assert done.returncode == 0
    assert f"python -m rehearsal {command}" in done.stdout


def test_help_lists_every_command() -> None:
    listed = rehearsal("--help").stdout
    assert [c for c in COMMANDS if f"\n    {c} " not in listed] == []


@pytest.mark.parametrize("reason", faults.KNOWN)
def test_every_known_fault_is_what_google_says(reason: str) -> None:
    fault = Fault("compute.instances.insert", reason=reason)
    error = fault.error()
    assert error is faults.KNOWN[reason]
    assert fault.operation is isinstance(error, OperationError)


def test_concurrent_operations_are_told_by_their_error_info() -> None:
    error = faults.KNOWN["CONCURRENT_OPERATIONS_QUOTA_EXCEEDED"]
    assert not isinstance(error, OperationError)
    body = error.body(classic=True)["error"]
    assert (body["code"], body["message"]) == (403, "Rate Limit Exceeded")
    assert body["details"][0]["reason"] == "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED"
