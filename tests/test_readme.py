"""What the README says can be done: every command parses, every path exists."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rehearsal.__main__ import parser
from tests.conftest import ROOT
from tests.gcloud import linted

FIRST = (ROOT / "README.md").read_text()
README = FIRST + (ROOT / "rehearsal/README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S))
REHEARSAL = "python -m rehearsal"


def _table(head: str) -> list[str]:
    """The code in the first column of the table whose head begins so."""
    rows = README.partition(f"| `{head}")[2].partition("\n\n")[0].splitlines()[2:]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[1])]


COMMANDS = [
    part.strip()
    for text in [*(line for block in BLOCKS for line in block.splitlines()), *SPANS]
    for part in re.split(r" && | \| |  +#", text)
] + [f"{REHEARSAL} {rest}" for rest in _table(f"{REHEARSAL} …")]


def commands(program: str) -> list[str]:
    """The README's commands of a program, without the word that stands for more."""
    found = {c.removesuffix(" …") for c in COMMANDS if re.match(rf"{program} \S", c)}
    return sorted(found - {program})


def says(*argv: str, home: Path) -> str:
    """The help of a command, from a Prefect without a server; the test fails if there is none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [*argv, "--help"],
        cwd=ROOT,
        env={**own, "PATH": path, "PREFECT_HOME": str(home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_short() -> None:
    assert len(FIRST.splitlines()) <= 190


@pytest.mark.gcloud
def test_gcloud_knows_every_gcloud_command(tmp_path: Path) -> None:
    """Names, options and values, by Google's own linter; nothing is called."""
    known = {
        "GOOGLE_CLOUD_PROJECT": "my-project-123",
        "BOOTSTRAP": "a@my-project-123.iam.gserviceaccount.com",
        "VM": "b@my-project-123.iam.gserviceaccount.com",
    }
    through = f"{REHEARSAL} exec -- "
    written = {c.removeprefix(through) for c in [*commands("gcloud"), *commands(REHEARSAL)]}
    lines = sorted(
        re.sub(r"\$(\w+)", lambda name: known[name[1]], line)
        for line in written
        if line.startswith("gcloud ")
    )
    shutil.copy(ROOT / "role.yaml", tmp_path)
    assert linted(lines, tmp_path) == []


@pytest.mark.parametrize("command", commands(REHEARSAL))
def test_the_rehearsal_takes_its_arguments(command: str) -> None:
    parser().parse_args(shlex.split(command.removeprefix(REHEARSAL)))


OTHERS = [c for c in [*commands("python -m"), *commands("prefect")] if not c.startswith(REHEARSAL)]


@pytest.mark.parametrize("command", OTHERS)
def test_a_command_and_its_options_exist(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    name = itertools.takewhile(re.compile("-m|--no-prompt|[a-z]+|flows[.][a-z]+").fullmatch, words)
    text = says(*name, home=tmp_path)
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    missing = {o for o in options - {"--no-prompt"} if not re.search(rf"{o}\b", text)}
    assert missing == set()


def test_the_readme_s_commands_are_found() -> None:
    """The tests above look at what they find; that must not become nothing."""
    assert len(commands("gcloud")) >= 15
    assert len(commands(REHEARSAL)) >= 10
    assert len(OTHERS) >= 7


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {command.split()[1] for command in commands("make")}
    assert used <= targets


def test_every_file_it_names_exists() -> None:
    """Pictures apart, which are made from a rehearsal."""
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir())
    pattern = (
        rf"(?<![\w./~-])((?:{tops})(?:/[\w./-]*)?|[\w./-]+\.(?:py|yaml|toml|txt|md|sh))(?![\w-])"
    )
    code = "\n".join([*BLOCKS, *SPANS, *re.findall(r"\]\(([^):]+)\)", README)])
    named = {name.strip(".") if name.endswith(".") else name for name in re.findall(pattern, code)}
    assert {"prefect.yaml", "role.yaml", "flows/catalog.py", ".ci/run"} <= named
    assert [n for n in named if not n.endswith(".png") and not (ROOT / n).exists()] == []


# The locks

LOCKS = sorted((ROOT / "flows" / "locks").iterdir())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.stem))
def test_a_server_s_lock_is_current(lock: Path, tmp_path: Path) -> None:
    """Locking again changes nothing; if this fails, run ``make lock`` for it."""
    program, _, version = lock.stem.partition("-")
    again = tmp_path / lock.name
    shutil.copy(lock, again)  # versions that are in the output are kept
    done = subprocess.run(
        ["make", "--no-print-directory", "lock", f"PROGRAM={program}", f"VERSION={version}", f"OUT={again}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert again.read_text() == lock.read_text()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.stem))
def test_a_server_s_lock_has_hashes_and_no_host(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    requirements = [line for line in lines if not line.startswith(" ")]
    assert requirements
    assert [line for line in requirements if "==" not in line or not line.endswith("\\")] == []
    assert [line for line in lines if "://" in line or line.startswith("-")] == []
