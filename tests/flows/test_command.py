"""A flow from the command line: several servers at once, and the exit status."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prefect import State, flow
from prefect.states import Completed, Failed

from flows.command import ended, explained, parser, status
from flows.errors import Final
from flows.spec import ServerSpec
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]

CODES = {"Unchanged": 0, "Drifted": 2, "Unknown": 1}
TOGETHER = threading.Barrier(2, timeout=20)


def spec_of(name: str) -> ServerSpec:
    return ServerSpec(
        name=name,
        project="my-project-123",
        zone="europe-west4-a",
        auth_secret={"block": "auth"},
        database_url_secret={"block": "url"},
    )


@flow(name="looks")
def looks(server: ServerSpec, target: str, alone: bool = True) -> State[Any]:
    if not alone:
        TOGETHER.wait()
    return Completed(name="Unchanged", message=f"{server.name} is fine, by {target}")


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> None:
    monkeypatch.setattr("flows.command.spec_in", lambda _file, name: spec_of(name))


@pytest.mark.usefixtures("project")
def test_servers_go_side_by_side_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = ended(looks, ["prefect-1", "prefect-2", "prefect-1"], "gcp", alone=False)
    assert [spec.name for spec, _ in found] == ["prefect-1", "prefect-2"]
    assert status(found, CODES) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "is fine" in line]
    assert lines == [f"prefect-{n}: Unchanged: prefect-{n} is fine, by gcp" for n in (1, 2)]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["Unchanged"], 0),
        (["Drifted", "Unchanged"], 2),
        (["Drifted", "Unknown"], 1),
        (["Drifted", "Failed"], 1),
    ],
)
def test_the_worst_is_the_exit_status(
    names: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[State[Any]] = [Failed(name=name, message="why") for name in names]
    assert status([(spec_of("prefect-1"), state) for state in states], CODES) == code
    said = capsys.readouterr()
    assert said.err == "".join(f"prefect-1: {name}: why\n" for name in names if name not in CODES)


def test_an_error_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise Final("No such server.", repair="Write another.")

    assert explained(main) == 1
    assert capsys.readouterr().err == "No such server. Write another.\n"


def test_outside_of_the_project_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Final, match="project's own folder"):
        ended(looks, ["prefect-1"], "gcp")


def test_servers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser("python -m flows.drift", "Compare.")
    assert options.parse_args(["--server", "a", "b"]).server == ["a", "b"]
    with pytest.raises(SystemExit):
        options.parse_args([])
    assert "--server" in capsys.readouterr().err
