"""Packages, services, uv and Prefect: recorded outputs → states, changes → commands."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from blocks.shell import OUT_OF_TIME, Command, LocalShell, Result
from flows.errors import CommandFailed
from flows.probes.closure import deviations
from flows.reconcile import diff, reconcile
from flows.resources.apt import Packages
from flows.resources.files import File
from flows.resources.filesystem import FILE_SYSTEM, PARTITION, RootFileSystem
from flows.resources.python import Installation, Tool, Uv, WorkerEnvironment, pins
from flows.resources.shell import MachineKind, on_machine, pairs
from flows.resources.sshd import Sshd
from flows.resources.systemd import CLEAR, OTHERS, UNITS, Service
from flows.resources.systemd import SERVICE as PROBE

LOCK = """\
prefect==3.8.8 \\
    --hash=sha256:00
sqlalchemy==2.0.58 \\
    --hash=sha256:11
"""
ROOT = RootFileSystem()
UV = Uv("0.13.9", "/opt/prefect/uv-0.13.9", "uv==0.13.9 --hash=sha256:22")
PLACE = Installation("3.8.8", "/opt/prefect/3.8.8-ab", LOCK, UV, "/opt/prefect/cache")
SERVICE = Service("prefect-server.service", "http://127.0.0.1:4200/api/health")
RUNS = """\
NeedDaemonReload=no
FragmentPath=/etc/systemd/system/prefect-server.service
DropIns=
Variables=PREFECT_HOME
UnitFileState=enabled
ActiveState=active
SubState=running
DropInPaths=
configuration=current
"""
KEYS_ONLY = Sshd("# Ours\nPasswordAuthentication no\nAllowTcpForwarding local\n")
SSHD_DOES = """\
port 22
hostkey /etc/ssh/ssh_host_rsa_key
hostkey /etc/ssh/ssh_host_ed25519_key
passwordauthentication no
allowtcpforwarding local
"""
STOPPED = RUNS.replace("=active", "=inactive").replace("=running", "=dead").replace("=current", "=")


@pytest.mark.parametrize(
    ("kind", "code", "output", "differs"),
    [
        (Packages(("a", "b")), 0, "installed\ninstalled\n", []),
        (Packages(("a", "b")), 0, "installed\nmissing\n", ["b"]),
        (ROOT, 0, "", []),
        (ROOT, 0, "partition=1048576\nfilesystem=0\n", []),
        (ROOT, 0, "partition=1074790400\nfilesystem=0\n", [PARTITION]),
        (ROOT, 0, "partition=16896\nfilesystem=1074773504\n", [FILE_SYSTEM]),
        (ROOT, 0, "filesystem=1074773504\n", [FILE_SYSTEM]),
        (UV, 0, "uv 0.13.9 (x86_64-unknown-linux-gnu)\n", []),
        (UV, 0, "uv 0.13.8\n", ["version"]),
        (UV, 127, "", ["version"]),
        (UV, 1, "", ["version"]),
        (UV, -11, "uv", ["version"]),
        (WorkerEnvironment(PLACE), 0, "", []),
        (WorkerEnvironment(PLACE), 0, "sqlalchemy 2.1.9\n", ["other than locked"]),
        (WorkerEnvironment(PLACE), 127, "", ["other than locked"]),
        (Tool(PLACE), 0, "proven\n", []),
        (Tool(PLACE), 0, "", ["smoke test"]),
        (Tool(PLACE), 0, "proven\nfastapi 0.165.0\n", ["other than locked"]),
        (Tool(PLACE), 127, "", ["other than locked", "smoke test"]),
        (KEYS_ONLY, 0, SSHD_DOES, []),
        (KEYS_ONLY, 0, SSHD_DOES.replace("cation no", "cation yes"), ["passwordauthentication"]),
        (KEYS_ONLY, 0, SSHD_DOES.replace(" local", " yes"), ["allowtcpforwarding"]),
        (SERVICE, 0, RUNS, []),
        (SERVICE, 0, RUNS.replace("configuration=current\n", ""), ["configuration"]),
        (SERVICE, 0, RUNS.replace("Reload=no", "Reload=yes"), ["configuration"]),
        (SERVICE, 0, RUNS.replace("=enabled", "=disabled"), ["at boot"]),
        (SERVICE, 0, RUNS.replace("=enabled", "=masked"), ["at boot"]),
        (SERVICE, 0, RUNS.replace("=enabled", "=masked").replace("=current", "="), ["at boot"]),
        (SERVICE, 0, RUNS.replace("=running", "=auto-restart"), ["state"]),
        (SERVICE, 0, STOPPED, ["state"]),
        (SERVICE, 0, RUNS.replace("=no", "=yes").replace("Ins=", "Ins=/x.conf"), ["overrides"]),
        (SERVICE, 0, RUNS.replace("/etc/systemd", "/run/systemd"), ["overrides"]),
        (SERVICE, 0, RUNS.replace("_HOME", "_HOME PREFECT_X"), ["settings from the environment"]),
        (SERVICE, 0, RUNS.replace("Paths=", "Paths=/etc/systemd/system/x.d/o.conf"), ["overrides"]),
    ],
)
def test_what_a_probe_says(kind: MachineKind, code: int, output: str, differs: list[str]) -> None:
    changes = diff(kind.desired(), kind.parse(Result(code, output, "")))
    assert [change.attribute for change in changes] == differs


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UV, OUT_OF_TIME),
        (WorkerEnvironment(PLACE), 1),
        (Tool(PLACE), 1),
        (KEYS_ONLY, 255),
        (SERVICE, 1),
    ],
)
def test_a_probe_that_fails_is_an_error_and_no_state(kind: MachineKind, code: int) -> None:
    with pytest.raises(CommandFailed, match="cause"):
        kind.parse(Result(code, "", "cause"))


def applied(kind: MachineKind, output: str, code: int = 0) -> list[str]:
    """The commands that close the gap, each as one line."""
    changes = diff(kind.desired(), kind.parse(Result(code, output, "")))
    return [" ".join(command.argv) for command in kind.commands(changes)]


# What the probe asks systemd, answered as it would for a process of ours.
SYSTEMCTL = """\
#!/bin/sh
case $1 in
show) printf 'ActiveState=active\\nMainPID=%s\\n' "$PID";;
show-environment) printf 'PATH=/bin\\nPREFECT_NEXT=s3cret\\nLONG=x PREFECT_NO=1\\n';;
unset-environment) echo "$*" > "$0.unset";;
esac
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_service_whose_directory_was_made_anew_runs_an_older_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "systemctl", SYSTEMCTL)
    program(tmp_path / "sha256sum", "#!/bin/sh\n")  # the files are as they were
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    directory = tmp_path / "directory"
    directory.mkdir()
    with subprocess.Popen(["/bin/sleep", "60"], cwd=directory) as process:
        monkeypatch.setenv("PID", str(process.pid))
        before = LocalShell().run([SERVICE.probe()])[0].stdout
        directory.rmdir()
        directory.mkdir()
        after = LocalShell().run([SERVICE.probe()])[0].stdout
        process.kill()
    assert pairs(before)["configuration"] == "current"
    assert "configuration" not in pairs(after)


def test_of_variables_only_the_names_are_told_and_what_beats_a_unit_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = program(tmp_path / "systemctl", SYSTEMCTL)
    (tmp_path / "no-such.service").symlink_to("/dev/null")
    variables = {"PREFECT_HOME": "/x", "prefect_now": "s3cret\nPREFECT_NOT=1", "MY_PREFECT_": "1"}
    with subprocess.Popen(["/bin/sleep", "60"], env=variables) as process:
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("PID", str(process.pid))
        clear = Command(("sh", "-c", CLEAR, "clear", "no-such.service", str(tmp_path)))
        probe, cleared = LocalShell().run([Service("no-such.service").probe(), clear])
        process.kill()
    assert (probe.code, cleared.code) == (0, 0), probe.stderr
    told = pairs(probe.stdout)["Variables"].split()
    assert sorted(told) == ["PREFECT_HOME", "PREFECT_NEXT", "prefect_now"]
    assert "s3cret" not in f"{probe}{cleared}"
    assert not (tmp_path / "no-such.service").is_symlink()
    assert Path(f"{systemctl}.unset").read_text() == "unset-environment PREFECT_NEXT\n"


@pytest.mark.parametrize("folder", [UNITS, *OTHERS])
def test_a_drop_in_is_told_in_whichever_folder_it_lies(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have no folder for it."""
    program(tmp_path / "systemctl", SYSTEMCTL)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PID", "0")
    drop_in = Path(f"{tmp_path}{folder}/a.service.d/by-hand.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.touch()
    script = PROBE.replace("/etc/systemd", f"{tmp_path}/etc/systemd")
    script = script.replace("/run/systemd", f"{tmp_path}/run/systemd")
    [probe] = LocalShell().run([Command(("sh", "-c", script, "service", "a.service"))])
    assert pairs(probe.stdout)["DropIns"].split() == [str(drop_in)], probe.stderr


def test_only_what_is_missing_is_installed() -> None:
    update, install = applied(Packages(("a", "b")), "installed\nmissing\n")
    assert update.endswith(" update")
    assert install.endswith("install --yes --no-install-recommends b")


def test_a_file_that_its_program_refuses_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file.conf"
    refused = File(str(path), "Ours no\n", then=(("touch", f"{path}.then"),), valid=("grep", "yes"))
    with pytest.raises(CommandFailed, match="grep yes"):
        reconcile(on_machine(LocalShell(), [refused])[0], apply=True)
    assert list(tmp_path.iterdir()) == []


def test_a_service_at_boot_is_enabled_without_a_restart() -> None:
    commands = applied(SERVICE, RUNS.replace("=enabled", "=disabled"))
    assert commands[-1] == "systemctl enable --quiet prefect-server.service"
    assert not [command for command in commands if "restart" in command]


def test_a_masked_service_is_started_anew_for_what_runs_may_be_old() -> None:
    lines = applied(SERVICE, RUNS.replace("=enabled", "=masked"))
    assert lines.index("systemctl enable --quiet prefect-server.service") < lines.index(
        "systemctl restart prefect-server.service"
    )


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


def test_of_many_deviations_the_first_are_told_and_the_rest_counted() -> None:
    told = deviations({f"d{n}": "1" for n in range(9)}, {}, set())
    assert told[0] == "d0 missing (locked: 1)"
    assert told[-1] == f"and {10 - len(told)} more"


def test_a_lock_is_read() -> None:
    assert pins(LOCK) == {"prefect": "3.8.8", "sqlalchemy": "2.0.58"}


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"a": "1", "b": "2"}, []),
        ({"a": "1", "b": "3"}, ["b 3 (locked: 2)"]),
        ({"a": "1"}, ["b missing (locked: 2)"]),
        ({"a": "1", "b": "2", "c": "9"}, ["c 9 (not in the lock)"]),
        ({"a": "1", "b": "2", "ours": "0"}, []),
    ],
)
def test_deviations_from_a_lock(installed: dict[str, Any], told: list[str]) -> None:
    assert deviations({"a": "1", "b": "2"}, installed, {"ours"}) == told
