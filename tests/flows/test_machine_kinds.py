"""Packages, services, uv and Prefect: recorded outputs → states, changes → commands."""

from typing import Any

import pytest

from blocks.shell import Result
from flows.errors import CommandFailed
from flows.probes.closure import deviations
from flows.reconcile import diff
from flows.resources.apt import Packages
from flows.resources.python import Installation, Tool, Uv, WorkerEnvironment, pins
from flows.resources.shell import MachineKind
from flows.resources.systemd import Service

LOCK = """\
prefect==3.8.8 \\
    --hash=sha256:00
sqlalchemy==2.0.58 \\
    --hash=sha256:11
"""
UV = Uv("0.13.9", "/opt/prefect/uv-0.13.9", "uv==0.13.9 --hash=sha256:22")
PLACE = Installation("3.8.8", "/opt/prefect/3.8.8-ab", LOCK, UV, "/opt/prefect/cache")
SERVICE = Service("prefect-server.service", "http://127.0.0.1:4200/api/health")
RUNS = """\
NeedDaemonReload=no
UnitFileState=enabled
ActiveState=active
SubState=running
DropInPaths=
configuration=current
"""


@pytest.mark.parametrize(
    ("kind", "code", "output", "differs"),
    [
        (Packages(("a", "b")), 0, "installed\ninstalled\n", []),
        (Packages(("a", "b")), 0, "installed\nmissing\n", ["b"]),
        (UV, 0, "uv 0.13.9 (x86_64-unknown-linux-gnu)\n", []),
        (UV, 0, "uv 0.13.8\n", ["version"]),
        (UV, 127, "", ["version"]),
        (WorkerEnvironment(PLACE), 0, "", []),
        (WorkerEnvironment(PLACE), 0, "sqlalchemy 2.1.9\n", ["other than locked"]),
        (WorkerEnvironment(PLACE), 127, "", ["other than locked"]),
        (Tool(PLACE), 0, "proven\n", []),
        (Tool(PLACE), 0, "", ["smoke test"]),
        (Tool(PLACE), 0, "proven\nfastapi 0.165.0\n", ["other than locked"]),
        (Tool(PLACE), 127, "", ["other than locked", "smoke test"]),
        (SERVICE, 0, RUNS, []),
        (SERVICE, 0, RUNS.replace("configuration=current\n", ""), ["configuration"]),
        (SERVICE, 0, RUNS.replace("Reload=no", "Reload=yes"), ["configuration"]),
        (SERVICE, 0, RUNS.replace("=enabled", "=disabled"), ["at boot"]),
        (SERVICE, 0, RUNS.replace("=enabled", "=masked"), ["at boot"]),
        (SERVICE, 0, RUNS.replace("=running", "=auto-restart"), ["state"]),
        (SERVICE, 0, RUNS.replace("Paths=", "Paths=/etc/systemd/system/x.d/o.conf"), ["overrides"]),
    ],
)
def test_what_a_probe_says(kind: MachineKind, code: int, output: str, differs: list[str]) -> None:
    changes = diff(kind.desired(), kind.parse(Result(code, output, "")))
    assert [change.attribute for change in changes] == differs


@pytest.mark.parametrize("kind", [UV, WorkerEnvironment(PLACE), Tool(PLACE), SERVICE])
def test_a_probe_that_fails_is_an_error_and_no_state(kind: MachineKind) -> None:
    with pytest.raises(CommandFailed, match="cause"):
        kind.parse(Result(1, "", "cause"))


def applied(kind: MachineKind, output: str, code: int = 0) -> list[str]:
    """The commands that close the gap, each as one line."""
    changes = diff(kind.desired(), kind.parse(Result(code, output, "")))
    return [" ".join(command.argv) for command in kind.commands(changes)]


def test_only_what_is_missing_is_installed() -> None:
    update, install = applied(Packages(("a", "b")), "installed\nmissing\n")
    assert update.endswith(" update")
    assert install.endswith("install --yes --no-install-recommends b")


def test_a_service_at_boot_is_enabled_without_a_restart() -> None:
    commands = applied(SERVICE, RUNS.replace("=enabled", "=disabled"))
    assert commands[-1] == "systemctl enable --quiet prefect-server.service"
    assert not [command for command in commands if "restart" in command]


def test_a_service_with_an_older_configuration_is_restarted_and_waited_for() -> None:
    *_, restart, wait = applied(SERVICE, RUNS.replace("configuration=current\n", ""))
    assert restart == "systemctl restart prefect-server.service"
    assert wait.endswith(f"prefect-server.service {SERVICE.url} 120.0")


def test_the_tool_is_made_of_files_whose_hashes_were_verified() -> None:
    lines = applied(Tool(PLACE), "", 127)
    sync = next(i for i, line in enumerate(lines) if "pip sync --require-hashes" in line)
    make = next(i for i, line in enumerate(lines) if "tool install" in line)
    same = next(i for i, line in enumerate(lines) if "diff --recursive" in line)
    assert sync < make < same < len(lines) - 1
    assert "prefect.server.api.server" in lines[-1]


def test_a_lock_is_read() -> None:
    assert pins(LOCK) == {"prefect": "3.8.8", "sqlalchemy": "2.0.58"}


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"a": "1", "b": "2"}, []),
        ({"a": "1", "b": "3"}, ["b 3"]),
        ({"a": "1"}, ["b missing"]),
        ({"a": "1", "b": "2", "c": "9"}, ["c 9"]),
        ({"a": "1", "b": "2", "ours": "0"}, []),
    ],
)
def test_deviations_from_a_lock(installed: dict[str, Any], told: list[str]) -> None:
    assert deviations({"a": "1", "b": "2"}, installed, {"ours"}) == told
