"""Rules about the repository itself: what is in it, and what must not be."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def committed() -> list[Path]:
    """Every file that is in git, or would be after ``git add --all``."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# In two halves, so that this file keeps its own rule.
REGISTRIES = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "debian" + ".org/debian",
    "deb." + "debian.org",
    "security." + "debian.org",
    "snapshot." + "debian.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "yarn" + "pkg.com",
]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_no_file_names_a_package_registry(registry: str) -> None:
    """The machine's own settings say where packages come from; a name in a file would go round a mirror."""
    named = [
        str(path.relative_to(ROOT))
        for path in committed()
        if registry in path.read_text(errors="replace").lower()
    ]
    assert named == []


def test_requirements_txt_is_the_only_lock() -> None:
    """uv.lock holds the address of every package; requirements.txt holds the same versions and hashes without."""
    assert [path for path in committed() if path.name == "uv.lock"] == []


LOCKED = [ROOT / "requirements.txt", ROOT / "tests/bench/requirements.txt"]


def test_the_locks_are_current(tmp_path: Path) -> None:
    """Locking again changes nothing; if this fails, run ``make requirements``."""
    again = tmp_path / "requirements.txt"
    outputs = [again, tmp_path / "requirements.txt.bench"]
    for locked, output in zip(LOCKED, outputs, strict=True):
        shutil.copy(locked, output)  # versions that are in the output are kept
    done = subprocess.run(
        ["make", "--no-print-directory", "requirements", f"OUT={again}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [each.read_text() for each in outputs] == [each.read_text() for each in LOCKED]


@pytest.mark.parametrize("file", LOCKED, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_requirement_is_hashed_and_none_says_where_it_is_from(file: Path) -> None:
    lines = file.read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(requirements) > 20
    assert [line for line in requirements if "==" not in line or not line.endswith("\\")] == []
    assert [line for line in lines if "://" in line] == []


def test_the_license_is_there_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_product_knows_nothing_of_the_rehearsal() -> None:
    named = [
        str(file.relative_to(ROOT))
        for folder in ("flows", "blocks")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc" and b"rehears" in file.read_bytes().lower()
    ]
    assert named == []
