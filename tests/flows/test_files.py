"""Users, directories and files: as data, and the last two for real in a folder of ours."""

import grp
import os
import pwd
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.shell import Command, LocalShell, Result
from flows.errors import CommandFailed
from flows.reconcile import Outcome, reconcile
from flows.resources.files import Absent, Directory, File, User
from flows.resources.shell import MachineKind, OnMachine, on_machine

OWNER = f"{pwd.getpwuid(os.geteuid()).pw_name}:{grp.getgrgid(os.getegid()).gr_name}"
PREFECT = User("prefect", "/var/lib/prefect")


def settle(kind: MachineKind, *, apply: bool = True) -> Outcome:
    return reconcile(on_machine(LocalShell(), [kind])[0], apply=apply)


def differs(kind: MachineKind) -> list[str]:
    """The attributes that a check names, which are none after the next settling."""
    found = [change.attribute for change in settle(kind, apply=False).changes]
    assert settle(kind).word == "changed"
    assert settle(kind).word == "unchanged"
    return found


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(str(tmp_path / "prefect.toml"), 'auth = "s3cret"\n', "600", OWNER)


def test_a_file_is_made_whole(file: File) -> None:
    assert settle(file).word == "changed"
    path = Path(file.path)
    assert (path.read_text(), path.stat().st_mode & 0o777) == (file.content, 0o600)
    assert list(path.parent.iterdir()) == [path]
    assert settle(file).word == "unchanged"


def test_a_file_that_differs_is_named_and_healed(file: File, tmp_path: Path) -> None:
    settle(file)
    path = Path(file.path)
    path.chmod(0o644)
    assert differs(file) == ["mode"]
    path.write_text("something else")
    assert differs(file) == ["content"]
    path.write_text("")
    assert differs(file) == ["content"]
    path.unlink()
    path.symlink_to("/dev/null")
    assert differs(file) == ["kind"]  # a link's own mode is nobody's fault
    assert path.read_text() == file.content


def test_a_files_content_is_in_no_state_and_no_argument(file: File) -> None:
    Path(file.path).write_text("other")
    outcome = settle(file, apply=False)
    commands = [file.probe(), *file.commands(outcome.changes)]
    assert "s3cret" not in f"{outcome} {file} {commands}"


def test_what_follows_a_change_does_not_follow_its_absence(file: File, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    marking = File(file.path, "new", "600", OWNER, then=(("touch", str(mark)),))
    settle(marking)
    assert mark.exists()
    mark.unlink()
    settle(marking)
    assert not mark.exists()


def test_a_file_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"no/such.*No such file or directory"):
        settle(File(str(tmp_path / "no/such"), "text", "600", OWNER))


def test_a_directory_has_its_mode_and_owner(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "a"), "700", OWNER)
    assert settle(directory).word == "changed"
    (tmp_path / "a" / "inside").touch()
    (tmp_path / "a").chmod(0o755)
    assert differs(directory) == ["mode"]
    assert (tmp_path / "a" / "inside").exists()


def test_a_file_that_must_not_be_there_is_removed_and_a_directory_is_not(tmp_path: Path) -> None:
    stray = tmp_path / ".env"
    assert settle(Absent(str(stray))).word == "unchanged"
    stray.write_text("PREFECT_SERVER_API_PORT=4300")
    assert differs(Absent(str(stray))) == ["exists"]
    assert not stray.exists()
    stray.mkdir()  # a virtual environment, which no program reads settings from
    assert settle(Absent(str(stray))).word == "unchanged"


@pytest.mark.parametrize(
    ("output", "differs"),
    [
        ("home=/var/lib/prefect\nshell=/usr/sbin/nologin\ngroup=prefect\n", []),
        ("home=/home/prefect\nshell=/bin/bash\ngroup=prefect\n", ["home", "shell"]),
        ("", ["home", "shell", "group"]),
    ],
)
def test_a_user_is_compared(output: str, differs: list[str]) -> None:
    state = PREFECT.parse(Result(0, output, ""))
    found = [name for name, value in PREFECT.desired().items() if not state or state[name] != value]
    assert found == differs


def test_a_user_is_looked_up() -> None:
    shell = LocalShell()
    nobody = shell.run([User("no-such-user", "/x").probe()])[0]
    assert User("no-such-user", "/x").parse(nobody) is None
    root = shell.run([User("root", "/root").probe()])[0]
    assert User("root", "/root").parse(root) == {
        "home": "/root",
        "shell": "/bin/bash",
        "group": "root",
    }


def test_a_probe_that_fails_is_not_an_absence() -> None:
    with pytest.raises(CommandFailed):
        PREFECT.parse(Result(2, "", "getent: no such database"))


def test_what_was_read_beside_a_change_is_read_again(file: File) -> None:
    """As when a step that goes beside the others looks while this one's file is not yet written."""
    besides: list[OnMachine] = []

    class Busy(LocalShell):
        def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
            if not together:  # this is the change
                assert [each.read() for each in besides] == [None, None]
            return super().run(commands, together=together)

    changed, same = on_machine(Busy(), [file, replace(file, then=(("true",),))])
    besides += [changed, same]
    assert reconcile(changed, apply=True).word == "changed"
    assert reconcile(same, apply=True).word == "unchanged"
