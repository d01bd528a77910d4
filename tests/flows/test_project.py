"""The spec of a server, out of prefect.yaml as a person has written it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.errors import Final
from flows.project import spec_in

OURS = Path(__file__).parent.parent.parent / "prefect.yaml"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project-123")
    monkeypatch.setenv("CLOUDSDK_COMPUTE_ZONE", "europe-west4-a")


@pytest.mark.usefixtures("environment")
def test_the_spec_has_the_values_of_the_environment() -> None:
    spec = spec_in(OURS, "prefect-1")
    assert (spec.name, spec.project, spec.zone) == ("prefect-1", "my-project-123", "europe-west4-a")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("old", "new", "server", "words"),
    [
        ("", "", "prefect-2", ["no server prefect-2", "one of: prefect-1"]),
        ("flows.drift.check_drift", "other.flow", "prefect-1", ["none is there"]),
        ("&prefect-1\n      name: p", "&prefect-1\n      name: P", "prefect-1", ["write up to 40"]),
        ("      zone:", "      size:", "prefect-1", ["there is no key 'size'"]),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(
    old: str, new: str, server: str, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(OURS.read_text().replace(old, new))
    with pytest.raises(Final) as refused:
        spec_in(file, server)
    assert [word for word in words if word not in str(refused.value)] == []


def test_another_folder_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Final, match="project's own folder"):
        spec_in(tmp_path / "prefect.yaml", "prefect-1")


def test_a_variable_that_is_not_set_is_named_by_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(Final, match="project: write the project's id"):
        spec_in(OURS, "prefect-1")
