"""Commands on a machine: here, this one."""

import time
from contextlib import suppress
from pathlib import Path

import pytest

from blocks.shell import Command, LocalShell, Result, check
from flows.errors import CommandFailed, Unreachable

FAILS = Command(("sh", "-c", "echo partly; echo because >&2; exit 3"))


def alive(group: int) -> list[list[str]]:
    """The processes of a group that still run."""
    stats = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats.append(file.read_text().rpartition(") ")[2].split())
    return [fields for fields in stats if fields[2] == str(group) and fields[0] != "Z"]


@pytest.fixture
def shell() -> LocalShell:
    return LocalShell()


def test_results_come_in_order_with_all_three_parts(shell: LocalShell) -> None:
    told = shell.run([Command(("echo", "a 'b' $c\n\nd")), Command(("cat",), stdin="ä\n"), FAILS])
    assert told == [
        Result(0, "a 'b' $c\n\nd\n", ""),
        Result(0, "ä\n", ""),
        Result(3, "partly\n", "because\n"),
    ]


def test_the_first_failure_ends_a_sequence(shell: LocalShell) -> None:
    assert len(shell.run([Command(("true",)), FAILS, Command(("true",))])) == 2


def test_together_they_overlap_and_none_is_left_out(shell: LocalShell) -> None:
    began = time.monotonic()
    told = shell.run([Command(("sleep", "1"))] * 4 + [FAILS, Command(("true",))], together=True)
    assert [result.code for result in told] == [0, 0, 0, 0, 3, 0]
    assert time.monotonic() - began < 3.5


def test_out_of_time_ends_a_command_and_its_children(shell: LocalShell) -> None:
    [told] = shell.run([Command(("sh", "-c", "echo $$; sleep 60 & sleep 60"), seconds=0.5)])
    assert (told.code, told.stderr) == (124, "\nnot done after 0.5 s")
    assert not alive(int(told.stdout))


def test_a_command_that_does_not_exist_is_told_apart(shell: LocalShell) -> None:
    [told] = shell.run([Command(("no-such-command",))])
    assert told.code == 127


def test_a_command_runs_where_it_says(shell: LocalShell) -> None:
    assert shell.run([Command(("pwd",), cwd="/tmp")])[0].stdout == "/tmp\n"  # noqa: S108


def test_no_output_is_too_long_and_its_end_counts(shell: LocalShell) -> None:
    [told] = shell.run([Command(("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo end"))])
    assert told.stdout.endswith("xend\n")
    assert len(told.stdout) == 1_000_000


def test_a_failure_names_the_command_the_status_and_the_cause() -> None:
    with pytest.raises(CommandFailed) as error:
        check(Command(("sh", "-c", "\nset -e\nfalse\n", "word")), Result(3, "", "because\n"))
    assert str(error.value) == "sh -c set -e … word: exit 3: because"


def test_what_is_on_stdin_shows_nowhere(shell: LocalShell) -> None:
    secret = Command(
        ("sh", "-c", "cat /proc/$PPID/cmdline /proc/$$/environ"), stdin="hunter2-hunter2"
    )
    assert "hunter2" not in shell.run([secret])[0].stdout
    assert "hunter2" not in repr(secret)


def test_a_lost_connection_is_not_the_commands_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/sh")
    monkeypatch.setattr("blocks.shell.RUNNER", ("-c", "echo Connection reset >&2; exit 255"))
    with pytest.raises(Unreachable, match="Connection reset"):
        LocalShell().run([Command(("true",))])
