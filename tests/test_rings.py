"""The gates in conftest.py, seen from outside: pytest runs in pytest, with this project's settings."""

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

HOST = """
def missing():
    return {missing!r}
"""

# A stand-in for `python -m rehearsal` that writes down what it was asked.
COMMAND = """
import json, os, sys
from pathlib import Path

state = Path("up")
args = sys.argv[1:]
with open("asked", "a") as asked:
    print(*args, file=asked)
if args[0] == "status":
    instances = [{"name": "vm"}] if os.environ.get("USED") else []
    print(json.dumps({"up": state.exists(), "instances": instances}))
elif args[0] == "up":
    if os.environ.get("BREAK"):
        sys.exit("no room on the disk")
    state.touch()
elif args[0] == "down":
    state.unlink(missing_ok=True)
elif args[0] == "exec":
    print(*args[2:], os.environ.get("GREETING", ""))
"""

TESTS = """
import pytest

@pytest.mark.rehearsal
def test_on_a_machine():
    pass

def test_pure():
    pass
"""

CLOUD_TESTS = """
import pytest

pytestmark = pytest.mark.rehearsal

def test_run(cloud):
    assert cloud.run("say", "hello", env={"GREETING": "you"}).stdout == "say hello you\\n"

def test_ctl(cloud):
    assert cloud.is_up()
"""


class Project:
    """A copy of this project's test settings, in a directory with nothing else of ours."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        (self.path / "tests").mkdir()
        shutil.copy(ROOT / "pyproject.toml", self.path)
        shutil.copy(ROOT / "tests" / "conftest.py", self.path / "tests")
        self.write("tests/__init__.py", "")
        self.write("rehearsal/__init__.py", "")
        self.write("rehearsal/__main__.py", COMMAND)
        self.lacks()

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def lacks(self, *missing: str) -> None:
        self.write("rehearsal/host.py", HOST.format(missing=list(missing)))

    def pytest(self, *args: str) -> tuple[int, list[str]]:
        """The exit status and the lines on the terminal."""
        plugins = ("-p", "timeout", "-p", "no:cacheprovider")
        done = self.pytester.runpytest_subprocess(*plugins, *args, timeout=60)
        return int(done.ret), [line for line in done.outlines if line]

    def asked(self) -> list[str]:
        return (self.path / "asked").read_text().splitlines()


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a third of the time
    return Project(pytester)


NO_NSPAWN = "systemd-nspawn is missing: apt-get install systemd-container."


def test_everything_runs_where_nothing_is_missing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    project.write("tests/test_it.py", TESTS)
    status, lines = project.pytest()
    assert status == 0
    assert "2 passed" in lines[-1]


def test_a_ring_that_cannot_run_is_skipped_and_the_last_line_says_why(project: Project) -> None:
    project.lacks(NO_NSPAWN, "Not root.")
    project.write("tests/test_it.py", TESTS)
    status, lines = project.pytest()
    assert status == 0
    assert "1 passed, 1 skipped" in lines[-2]
    assert lines[-1] == f"NOT RUN: ring 3 (the rehearsal cloud): {NO_NSPAWN} Not root."


def test_a_ring_that_cannot_run_fails_ci(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    project.lacks(NO_NSPAWN)
    project.write("tests/test_it.py", TESTS)
    status, lines = project.pytest()
    assert status == pytest.ExitCode.TESTS_FAILED
    assert lines[-1] == f"FAILED, NOT RUN: ring 3 (the rehearsal cloud): {NO_NSPAWN}"
    assert any("tests/test_it.py::test_on_a_machine" in line for line in lines[-3:])


def test_a_ring_nobody_asked_for_is_not_mentioned(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    project.write("rehearsal/host.py", "raise ImportError('asked without need')")
    project.write("tests/test_it.py", TESTS)
    status, lines = project.pytest("-m", "not rehearsal")
    assert status == 0
    assert "1 passed, 1 deselected" in lines[-1]


def test_a_check_that_breaks_is_an_error_and_not_a_skip(project: Project) -> None:
    project.write("rehearsal/host.py", "raise ImportError('broken')")
    project.write("tests/test_it.py", TESTS)
    status, _ = project.pytest()
    assert status != 0


def test_gcloud_that_is_not_on_path_is_said_last(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(project.path / "empty"))
    project.write("tests/test_it.py", TESTS.replace("mark.rehearsal", "mark.gcloud"))
    status, lines = project.pytest()
    assert status == 0
    assert lines[-1].startswith("NOT RUN: the gcloud checks: gcloud is not on PATH")


def test_two_missing_rings_share_the_last_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(project.path / "empty"))
    project.lacks(NO_NSPAWN)
    project.write("tests/test_it.py", TESTS)
    project.write("tests/test_cli.py", TESTS.replace("mark.rehearsal", "mark.gcloud"))
    _, lines = project.pytest()
    assert "ring 3 (the rehearsal cloud)" in lines[-1]
    assert "the gcloud checks" in lines[-1]


SKIPPING = {
    "mark": "@pytest.mark.skip(reason='too slow')\ndef test_it(): pass",
    "condition": "@pytest.mark.skipif(True, reason='too slow')\ndef test_it(): pass",
    "inside": "def test_it(): pytest.skip('too slow')",
    "module": "pytest.skip('too slow', allow_module_level=True)",
    "import": "pytest.importorskip('not_there', reason='too slow')",
}


def test_any_skip_fails_ci_by_name(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for way, body in SKIPPING.items():
        project.write(f"tests/test_{way}.py", f"import pytest\n\n{body}\n")
    project.write("tests/test_pure.py", "def test_pure(): pass\n")

    status, lines = project.pytest()
    assert status == 0
    assert "1 passed, 5 skipped" in lines[-1]

    monkeypatch.setenv("CI", "true")
    status, lines = project.pytest()
    assert status == pytest.ExitCode.TESTS_FAILED
    for way in SKIPPING:
        assert any(f"tests/test_{way}.py" in line and "too slow" in line for line in lines[-6:-1])
        assert f"tests/test_{way}.py" in lines[-1]


def test_an_expected_failure_is_no_skip(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    body = "@pytest.mark.xfail(reason='known')\ndef test_it(): assert False"
    project.write("tests/test_it.py", f"import pytest\n\n{body}\n")
    status, lines = project.pytest()
    assert status == 0
    assert "1 xfailed" in lines[-1]


def test_the_cloud_is_brought_up_once_and_taken_down(project: Project) -> None:
    project.write("tests/test_it.py", CLOUD_TESTS)
    status, lines = project.pytest()
    assert status == 0, lines
    assert project.asked() == [
        "status --json",
        "down",
        "up",
        "exec -- say hello",
        "status --json",
        "down",
    ]


def test_a_cloud_that_somebody_uses_is_not_taken(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USED", "1")
    project.write("up", "")
    project.write("tests/test_it.py", CLOUD_TESTS)
    status, lines = project.pytest()
    assert status == pytest.ExitCode.TESTS_FAILED
    assert any("the rehearsal cloud is in use: make down" in line for line in lines)
    assert project.asked() == ["status --json"]


def test_a_cloud_that_does_not_come_up_says_so_in_its_own_words(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAK", "1")
    project.write("tests/test_it.py", CLOUD_TESTS)
    status, lines = project.pytest()
    assert status == pytest.ExitCode.TESTS_FAILED
    assert any("no room on the disk" in line for line in lines)


def test_the_time_to_bring_the_cloud_up_is_not_the_first_tests(project: Project) -> None:
    slow_up = COMMAND.replace("    state.touch()", "    import time; time.sleep(2); state.touch()")
    project.write("rehearsal/__main__.py", slow_up)
    project.write("tests/test_it.py", CLOUD_TESTS)
    status, lines = project.pytest("-o", "timeout=1")
    assert status == 0, lines


def test_a_test_that_hangs_is_stopped(project: Project) -> None:
    project.write("tests/test_it.py", "import time\n\ndef test_it(): time.sleep(30)\n")
    status, lines = project.pytest("-o", "timeout=1")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert any("Timeout" in line for line in lines)


def test_a_warning_is_an_error(project: Project) -> None:
    body = "import warnings\n\ndef test_it(): warnings.warn('old', DeprecationWarning)\n"
    project.write("tests/test_it.py", body)
    status, _ = project.pytest()
    assert status == pytest.ExitCode.TESTS_FAILED


def test_the_copies_here_are_not_the_real_rehearsal(project: Project) -> None:
    """Guards these tests: the stub must win over the package of the same name on sys.path."""
    project.write(
        "tests/test_it.py",
        "import rehearsal\n\ndef test_it(): assert rehearsal.__file__.startswith("
        f"{os.fspath(project.path)!r})\n",
    )
    status, _ = project.pytest()
    assert status == 0
    assert Path(ROOT) != project.path
