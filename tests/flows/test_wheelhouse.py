"""The wheelhouse: what a lock allows, what pip takes for another machine, what arrives there."""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from blocks.shell import Command, LocalShell, Result
from flows.errors import CommandFailed
from flows.reconcile import Outcome, diff, reconcile
from flows.resources import wheelhouse
from flows.resources.python import Installation, Uv
from flows.resources.shell import on_machine
from flows.resources.wheelhouse import Wheelhouse, archive, deviations
from tests.conftest import ROOT

A, B, C = "a" * 64, "b" * 64, "c" * 64
LOCK = f"one==1 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\nuv==0.13.9 \\\n    --hash=sha256:{C}\n"
MANYLINUX, MACOS = "manylinux_2_17_x86_64.manylinux2014_x86_64", "macosx_11_0_arm64"
UV = "#!/bin/sh\necho uv 0.13.9\n"
Index = tuple[Path, str]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"one.whl": A, "uv.whl": C}, ()),
        ({"one.whl": B, "uv.whl": C}, ()),
        ({"one.whl": A}, ("uv==0.13.9 missing",)),
        ({"one.whl": A, "uv.whl": "0" * 64}, ("uv==0.13.9 missing", "uv.whl (not in the lock)")),
        ({"one.whl": A, "uv.whl": C, "x": "0" * 64}, ("x (not in the lock)",)),
        ({f"{n}": f"{n}" for n in range(9)} | {"u": C, "1.whl": A},
         (*(f"{n} (not in the lock)" for n in range(5)), "and 4 more")),
    ],
)  # fmt: skip
def test_what_is_there_is_compared_with_the_lock_by_hashes(
    found: dict[str, str], told: tuple[str, ...]
) -> None:
    assert deviations([LOCK], found) == told
    said = "".join(f"{digest}  ./{path}\n" for path, digest in found.items())
    kind = Wheelhouse("/w", (LOCK,))
    assert kind.parse(Result(0, f"here\n{said}", "")) == {"other than locked": told}


def test_no_directory_is_no_wheelhouse_and_an_unread_one_no_state() -> None:
    kind = Wheelhouse("/w", (LOCK,))
    assert diff(kind.desired(), kind.parse(Result(0, "", "")))[0].missing
    with pytest.raises(CommandFailed, match="cause"):
        kind.parse(Result(1, "", "cause"))


def wheel(folder: Path, name: str, version: str, tag: str, files: dict[str, str]) -> str:
    """Make a wheel; its hash."""
    path = folder / f"{name}-{version}-{tag}.whl"
    about = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    rows = [
        f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
        for file, text in files.items()
    ]
    with zipfile.ZipFile(path, "w") as zipped:
        for file, text in {
            **files,
            f"{about}/RECORD": "\n".join([*rows, f"{about}/RECORD,,"]),
        }.items():
            zipped.writestr(file, text)
    return f"--hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A folder that is pip's only index, and a lock of what is in it, for several platforms."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pure = wheel(folder, "pure", "1", "py3-none-any", {"pure.py": ""})
    stable = wheel(folder, "stable", "1", f"cp39-abi3-{MANYLINUX}", {"stable.so": ""})
    new = wheel(folder, "native", "2", "cp311-cp311-manylinux_2_36_x86_64", {"native.so": "1"})
    newer = wheel(folder, "native", "2", "cp311-cp311-manylinux_2_39_x86_64", {"native.so": "2"})
    mac = wheel(folder, "native", "2", f"cp311-cp311-{MACOS}", {"native.so": "3"})
    later = wheel(folder, "native", "2", "cp312-cp312-manylinux_2_36_x86_64", {"native.so": "4"})
    script = {"uv-0.13.9.data/scripts/uv": UV}
    uv = wheel(folder, "uv", "0.13.9", f"py3-none-{MANYLINUX}", script)
    native = f"{newer} \\\n    {mac} \\\n    {later} \\\n    {new}"
    lock = f"native==2 \\\n    {native}\npure==1 \\\n    {pure}\nstable==1 \\\n    {stable}\n"
    return folder, f"{lock}uv==0.13.9 \\\n    {uv}\n"


def test_the_platform_is_the_one_that_the_locks_are_made_for() -> None:
    made = (ROOT / "Makefile").read_text()
    assert f"--python-platform {wheelhouse.MACHINE}-manylinux_2_{wheelhouse.GLIBC} " in made
    assert f"pip compile - --python-version {wheelhouse.PYTHON} " in made


def settled(kind: Wheelhouse | Uv, *, apply: bool = True) -> Outcome:
    return reconcile(on_machine(LocalShell(), [kind])[0], apply=apply)


def test_the_wheels_are_those_for_the_machine_whatever_the_laptop_is(index: Index) -> None:
    with tarfile.open(archive((index[1],))) as tar:
        assert tar.getnames() == [
            "native-2-cp311-cp311-manylinux_2_36_x86_64.whl",
            "pure-1-py3-none-any.whl",
            f"stable-1-cp39-abi3-{MANYLINUX}.whl",
            f"uv-0.13.9-py3-none-{MANYLINUX}.whl",
        ]


def test_a_file_with_another_hash_is_not_taken(index: Index) -> None:
    folder, lock = index
    wheel(folder, "pure", "1", "py3-none-any", {"pure.py": "import evil"})
    with pytest.raises(CommandFailed, match=r"pip download: exit 1: .*(?s:.*)pip config list"):
        archive((lock,))
    assert [path.name for path in (folder.parent / "cache/prefect-bootstrap").iterdir()] == []


def test_they_are_downloaded_once_for_a_lock_and_again_when_spoilt(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive((index[1],))
    whole = path.read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert archive((index[1],)) == path
    path.write_bytes(whole[:700])
    with pytest.raises(CommandFailed):
        archive((index[1],))
    monkeypatch.setenv("PIP_FIND_LINKS", str(index[0]))
    assert archive((index[1],)).stat().st_size == len(whole)
    assert archive((index[1] + "\n",)) != path


def test_the_wheelhouse_arrives_is_compared_and_heals(index: Index, tmp_path: Path) -> None:
    kind = Wheelhouse(str(tmp_path / "wheels"), (index[1],))
    assert [settled(kind).word, settled(kind).word] == ["changed", "unchanged"]
    (tmp_path / "wheels/pure-1-py3-none-any.whl").write_text("spoilt")
    (tmp_path / "wheels/evil-1-py3-none-any.whl").write_text("")
    [change] = settled(kind, apply=False).changes
    assert change.actual == (
        "pure==1 missing",
        "evil-1-py3-none-any.whl (not in the lock)",
        "pure-1-py3-none-any.whl (not in the lock)",
    )
    assert settled(kind).word == "changed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "index", "wheels"]


def test_half_an_archive_changes_nothing(index: Index, tmp_path: Path) -> None:
    path = str(tmp_path / "wheels")
    settled(Wheelhouse(path, (index[1],)))
    half = tmp_path / "half"
    half.write_bytes(archive((index[1],)).read_bytes()[:700])
    receive = Command(("sh", "-c", wheelhouse.RECEIVE, "receive", path), file=half)
    assert LocalShell().run([receive])[0].code
    assert settled(Wheelhouse(path, (index[1],)), apply=False).word == "unchanged"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "half", "index", "wheels"]


def test_uv_comes_out_of_its_wheel_without_pip_when_the_lock_has_its_hash(
    index: Index, tmp_path: Path
) -> None:
    wheels = str(tmp_path / "wheels")
    settled(Wheelhouse(wheels, (index[1],)))
    uv = Uv("0.13.9", str(tmp_path / "uv"), index[1], wheels)
    assert [settled(uv).word, settled(uv).word] == ["changed", "unchanged"]
    other = Uv("0.13.9", str(tmp_path / "other"), LOCK, wheels)
    with pytest.raises(CommandFailed, match="not what the lock says"):
        settled(other)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("wheels", "asks"), [("", True), ("/w", False)])
def test_with_wheels_uv_asks_no_index(wheels: str, asks: bool) -> None:
    place = Installation("1", "/p", "", Uv("1", "/u", "", wheels), "/c")
    settings = set(place.run_uv("pip").argv)
    offline = {"UV_OFFLINE=1", "UV_NO_INDEX=1", f"UV_FIND_LINKS={wheels}"}
    assert settings & offline == (set() if asks else offline)
