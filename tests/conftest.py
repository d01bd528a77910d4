"""Which rings run on this machine, and the rehearsal cloud as a fixture.

A test names what it needs with a marker. Where that is missing the test is skipped, and the very
last line of the run says which ring did not run and why. Where ``CI`` is true, any skipped test
fails the run: a ring that nobody missed is a ring that nobody runs.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

# Everywhere as in CI: the same examples in every run, and no clock decides. The first text that a
# new machine generates takes seconds when it is busy.
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent

Completed = subprocess.CompletedProcess[str]


# What a ring needs: a marker's name → sentences on what is missing, [] when nothing is.


def rehearsal_lacks() -> list[str]:
    """Imported only when a test asks, so that the other rings do not depend on it."""
    missing: list[str] = importlib.import_module("rehearsal.host").missing()
    return missing


def gcloud_lacks() -> list[str]:
    if shutil.which("gcloud"):
        return []
    return ["gcloud is not on PATH: install the Google Cloud CLI (package google-cloud-cli)."]


RINGS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "rehearsal": ("ring 3 (the rehearsal cloud)", rehearsal_lacks),
    "gcloud": ("the gcloud checks", gcloud_lacks),
}


@dataclass
class Skips:
    """What did not run in this session."""

    lacking: dict[str, str] = field(default_factory=dict)
    """Marker → why its tests do not run here."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Node id → reason, for every skipped test or module."""

    def add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            where = report.longrepr
            reason = where[2] if isinstance(where, tuple) else str(where)
            self.reasons[report.nodeid] = reason.removeprefix("Skipped: ")

    def rings(self) -> str:
        return "; ".join(f"{RINGS[name][0]}: {why}" for name, why in self.lacking.items())


SKIPS = pytest.StashKey[Skips]()


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"true", "1"}


def pytest_configure(config: pytest.Config) -> None:
    skips = config.stash[SKIPS] = Skips()
    config.pluginmanager.register(SkipWatch(skips), "skip-watch")


@pytest.hookimpl(trylast=True)  # after -m and -k: what was deselected is not asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = config.stash[SKIPS].lacking
    for name, (title, lacks) in RINGS.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and (missing := lacks()):
            lacking[name] = " ".join(missing)
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"{title}: {lacking[name]}"))
    for item in items:
        if item.get_closest_marker("rehearsal"):
            time_the_test_alone(item)


def time_the_test_alone(item: pytest.Item) -> None:
    """Keep the cloud's set-up, which has its own limit, out of the first test's time."""
    own = item.get_closest_marker("timeout")
    args, kwargs = (own.args, own.kwargs) if own else ((), {})
    marker = pytest.mark.timeout(*args, **{"func_only": True, **kwargs})
    item.add_marker(marker, append=False)


class SkipWatch:
    """Collects skips, and has the last word."""

    def __init__(self, skips: Skips) -> None:
        self.skips = skips

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.skips.add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.skips.add(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: pytest's summary is inside
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        try:
            return (yield)
        finally:
            if self.skips.reasons:
                self.last_word(session)

    def last_word(self, session: pytest.Session) -> None:
        terminal = session.config.get_terminal_writer()
        rings = self.skips.rings()
        if not in_ci():
            if rings:
                terminal.line(f"NOT RUN: {rings}", yellow=True)
            return
        if session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        terminal.line("CI is true, so a skipped test is a failure:", red=True)
        for nodeid, reason in self.skips.reasons.items():
            terminal.line(f"  {nodeid}: {reason}", red=True)
        summary = f"NOT RUN: {rings}" if rings else f"NOT RUN: {', '.join(self.skips.reasons)}"
        terminal.line(f"FAILED, {summary}", red=True)


@dataclass(frozen=True)
class Cloud:
    """The rehearsal cloud, through its command line as a person uses it."""

    def ctl(
        self,
        *args: str,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run ``python -m rehearsal args…``; ``env`` is added to ours.

        This environment's own commands, such as ``prefect``, come first on ``PATH``.
        A failure under ``check`` fails the test with the command's own words.
        """
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        done = subprocess.run(
            [sys.executable, "-m", "rehearsal", *args],
            cwd=ROOT,
            env={**os.environ, "PATH": path, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            command = " ".join(["python -m rehearsal", *args])
            pytest.fail(
                f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False
            )
        return done

    def run(
        self,
        *cmd: str,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run ``cmd`` where Google's names lead to the rehearsal cloud."""
        return self.ctl("exec", "--", *cmd, timeout=timeout, check=check, env=env)

    def is_up(self) -> bool:
        return bool(json.loads(self.ctl("status", "--json").stdout)["up"])


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """A rehearsal cloud of the tests' own. They end by taking it down, so they take nobody's."""
    cloud = Cloud()
    status = json.loads(cloud.ctl("status", "--json").stdout)
    if status.get("instances"):
        pytest.fail("the rehearsal cloud is in use: make down, then test again", pytrace=False)
    cloud.ctl("down", timeout=120)
    try:
        cloud.ctl("up", timeout=600)  # the first time on a machine it builds the image
        yield cloud
    finally:
        cloud.ctl("down", timeout=120)
