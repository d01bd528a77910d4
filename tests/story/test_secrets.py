"""Where the rehearsal's secrets are not: anywhere but in their blocks and two files of mode 600.

Every search is one ``grep`` for a file of patterns, and proves itself by a word that is known to be
where it looks.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from rehearsal import follow
from rehearsal.config import STATE
from tests.conftest import ROOT, Cloud

pytestmark = pytest.mark.rehearsal

NAME = "prefect-1"
PAGE = 200
"""Objects in one answer of Prefect's API; its largest."""
RUN_SECONDS = 300.0
ANY_TOKEN = "the beginning of any access token"
ACCESS = ("gcloud", "secrets", "versions", "access", "latest")
NOBODY = ("--setuid", "65534", "--setgid", "65534")


@dataclass(frozen=True)
class World:
    """Everything that may know a secret, and the secrets by name."""

    cloud: Cloud
    folder: Path
    laptop: httpx.Client
    server: httpx.Client
    leader: int
    secrets: dict[str, bytes] = field(repr=False)

    @property
    def root(self) -> Path:
        """The machine's files."""
        return Path(f"/proc/{self.leader}/root")

    def inside(self, *argv: str, as_nobody: bool = False) -> bytes:
        """The output of a command in the machine, whatever its exit status."""
        enter = ["nsenter", "--target", str(self.leader), "--mount", "--pid", "--net"]
        command = [*enter, *(NOBODY if as_nobody else ()), "--", *argv]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).stdout

    def note(self, name: str, content: bytes) -> list[Path]:
        """A file with the content, to be searched."""
        file = self.folder / name
        file.write_bytes(content)
        return [file]

    def found(self, needles: list[bytes], files: list[Path]) -> list[str]:
        """The files that hold one of the needles; a file that is gone by now holds none."""
        patterns = self.folder / "patterns"
        patterns.touch(mode=0o600)
        patterns.write_bytes(b"\n".join(needles) + b"\n")
        grep = ["xargs", "-0", "grep", "-laF", "-f", str(patterns), "--"]
        names = b"\0".join(bytes(file) for file in files)
        done = subprocess.run(grep, input=names, capture_output=True, timeout=100, check=False)
        return sorted(done.stdout.decode().splitlines())

    def leaked(self, text: bytes) -> list[str]:
        """The names of the secrets in the text."""
        return [name for name, value in self.secrets.items() if value in text]


@pytest.fixture(scope="module")
def world(
    cloud: Cloud, rehearsed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    urls = {name: f"{url}/api" for name, url in rehearsed["urls"].items()}
    auth, url = (
        cloud.run(*ACCESS, f"--secret={name}").stdout
        for name in ("prefect-auth", "prefect-database-url")
    )
    user, _, word = auth.partition(":")
    with (
        httpx.Client(base_url=urls["laptop"], timeout=30) as laptop,
        httpx.Client(base_url=urls["server"], timeout=30, auth=(user, word)) as server,
    ):
        password = (STATE / "database.password").read_text()
        secrets = {
            "auth string": auth,
            "its password": word,
            "it as a header": base64.b64encode(auth.encode()).decode(),
            "database URL": url,
            "database password": password,
            "it in a URL": quote(password, safe=""),
            "SSH key": tunnel("key").read_text().splitlines()[-3],  # of the private half
            "access token": tunnel("token").read_text(),
            ANY_TOKEN: "ya29.",
        }
        folder = tmp_path_factory.mktemp("searched")
        named = {name: value.encode() for name, value in secrets.items()}
        yield World(cloud, folder, laptop, server, leader(cloud), named)


def tunnel(name: str) -> Path:
    """A file of the connection that keeps the tunnel to the new server open."""
    return min((STATE / "laptop/tmp").glob(f"ssh-*/{name}"), key=lambda file: file.stat().st_mtime)


def leader(cloud: Cloud) -> int:
    """The host's number of the machine's init."""
    instances = json.loads(cloud.ctl("status", "--json").stdout)["instances"]
    [instance] = [each for each in instances if each["name"] == NAME]
    command = ["ip", "netns", "pids", instance["namespace"]]
    for pid in subprocess.check_output(command, text=True, timeout=10).split():
        with suppress(OSError):  # it has ended
            if f"\nNSpid:\t{pid}\t1\n" in Path(f"/proc/{pid}/status").read_text():
                return int(pid)
    raise AssertionError(f"{NAME} is off")


def everything(client: httpx.Client) -> bytes:
    """All that Prefect's API tells without being asked for secrets."""
    told = []
    for kind in ("logs", "artifacts", "block_documents", "deployments", "flow_runs", "task_runs"):
        for start in range(0, 100_000, PAGE):
            answer = client.post(f"/{kind}/filter", json={"limit": PAGE, "offset": start})
            told.append(answer.raise_for_status().content)
            if len(answer.json()) < PAGE:
                break
    answer = client.post("/events/filter", json={"limit": 50}).raise_for_status()
    told.append(answer.content)
    while following := answer.json()["next_page"]:
        answer = client.get(following).raise_for_status()
        told.append(answer.content)
    return b"\n".join(told)


def files(*folders: Path) -> list[Path]:
    """Regular files below, whoever may read them."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def of_laptop(world: World) -> list[Path]:
    """Its database, its logs and its temporary files, but for the open tunnel's own key and token."""
    return [p for p in files(STATE / "laptop") if not p.match("tmp/ssh-*/*")]


def of_all_users(world: World) -> list[Path]:
    """What an unprivileged user of the machine may read, outside /proc and /sys."""
    places = ("/", "/run", "/tmp", "/dev/shm")  # noqa: S108 - to be searched, not to be written
    find = ("find", *places, "-xdev", "-type", "f", "-perm", "-o=r", "-readable", "-print0")
    names = world.inside(*find, as_nobody=True).decode().split("\0")
    return [world.root / name.lstrip("/") for name in names if name]


def of_machine(world: World) -> list[Path]:
    """Files in /etc, /tmp and /var/log, those of root too, and the journal as text."""
    journal = world.note("journal", world.inside("journalctl", "--all", "--output=export"))
    return [*files(*(world.root / each for each in ("etc", "tmp", "var/log"))), *journal]


def of_cloud(world: World) -> list[Path]:
    """Its request log, its own log, consoles, and the instance as the API tells it."""
    describe = ("gcloud", "compute", "instances", "describe", NAME, "--format=json")
    logs = [p for p in STATE.iterdir() if p.suffix in (".jsonl", ".log", ".console")]
    return [*logs, *world.note("instance", world.cloud.run(*describe).stdout.encode())]


def of_metadata(world: World) -> list[Path]:
    """What the machine's metadata server tells everybody on it."""
    url = "http://169.254.169.254/computeMetadata/v1/?recursive=true"
    python = "import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], headers={'Metadata-Flavor': 'Google'})).read().decode())"
    return world.note("metadata", world.inside("python3", "-c", python, url, as_nobody=True))


def of_checkout(world: World) -> list[Path]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True, timeout=30).split("\0")
    return [ROOT / name for name in names if name and name != "tests/story/test_secrets.py"]


def of_processes(world: World) -> list[Path]:
    """What an unprivileged user sees of the processes of others, on host and machine."""
    show = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null"
    host = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", show]
    seen = subprocess.run(host, capture_output=True, timeout=30, check=False).stdout
    return world.note("processes", seen + world.inside("sh", "-c", show, as_nobody=True))


# fmt: off
PLACES: dict[str, tuple[Callable[[World], list[Path]], tuple[str, ...]]] = {
    "the laptop's files": (of_laptop, ("SQLite format 3", "Finished in state")),
    "the laptop's API": (lambda world: world.note("laptop", everything(world.laptop)), ("service prefect-server: changed", f"{NAME}-resources", "ssh_private_key")),
    "the server's API": (lambda world: world.note("server", everything(world.server)), ("check-health", "prefect.task-run.Completed")),
    "the cloud's logs": (of_cloud, ("compute.instances.insert", "Debian GNU/Linux", "ssh-keys")),
    "the metadata server": (of_metadata, ("ssh-keys", "serviceAccounts")),
    "the machine's journal and files": (of_machine, ("SYSLOG_IDENTIFIER=sudo", "WorkingDirectory=")),
    "files that all users of the machine may read": (of_all_users, ("WorkingDirectory=/var/lib", "flow bootstrap-server:")),
    "the processes of others": (of_processes, ("/bin/prefect", "rehearsal")),
    "the checkout": (of_checkout, ("def bootstrap_server(",)),
}
"""Place → how to gather what is there, and words that are known to be."""
# fmt: on


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_in(world: World, place: str) -> None:
    gather, known = PLACES[place]
    searched = gather(world)
    for word in known:
        assert world.found([word.encode()], searched), f"the search does not see {word!r}"
    secrets = world.secrets.items()
    if place == "the checkout":  # where the stand-in for Google has code that makes tokens
        secrets = {name: value for name, value in secrets if name != ANY_TOKEN}.items()
    assert world.found([value for _, value in secrets], searched) == []


def test_the_secrets_searched_for_are_the_real_ones(world: World) -> None:
    """Each is found where it has to be, by the same search."""
    held = world.root / "var/lib/prefect/.prefect/prefect.toml"
    places = dict.fromkeys(("auth string", "its password", "database URL", "it in a URL"), held)
    places["SSH key"], places["access token"] = tunnel("key"), tunnel("token")
    for name, file in places.items():
        assert world.found([world.secrets[name]], [file]) == [str(file)], name
        assert file.stat().st_mode & 0o777 == 0o600, file


@dataclass
class Sampler:
    """Every process of host and machine, again and again."""

    lines: set[bytes] = field(default_factory=set)
    """Command lines, the arguments separated by NUL."""
    environments: set[bytes] = field(default_factory=set)
    rounds: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join(10)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it has ended
                    self.lines.add((process / "cmdline").read_bytes())
                    self.environments.add((process / "environ").read_bytes())
            self.rounds += 1


def bootstrap(world: World, flow_runs_days: int) -> str:
    """The name of the state in which a custom run of the bootstrap ends."""
    deployment = f"bootstrap-server/{NAME}"
    parameters = follow.found(world.laptop, deployment)["parameters"]
    parameters["server"] |= {"server": {"flow_runs_days": flow_runs_days}}
    run = follow.start(world.laptop, deployment, parameters)
    state = follow.follow(world.laptop, run, RUN_SECONDS, lambda _tasks: None)
    assert state["type"] in follow.OVER, f"the run did not end in {RUN_SECONDS:.0f} s"
    return str(state["name"])


@pytest.mark.timeout(2 * RUN_SECONDS)
def test_no_process_of_a_run_has_a_secret_among_its_arguments(world: World) -> None:
    """Nor the database's URL in its environment, which Prefect's worker hands to flow runs."""
    sampler = Sampler()
    with sampler.watching():
        states = [bootstrap(world, days) for days in (31, 30)]
    assert states == ["Changed", "Changed"]
    for program in (b"ssh\0-F\0/dev/null", b"blocks.iap", b"sudo\0-n", b"python3\0-I\0-c"):
        assert any(program in line for line in sampler.lines), f"{program!r} was not seen"
    assert sampler.rounds > 100
    leaks = {line.partition(b"\0")[0]: world.leaked(line) for line in sampler.lines}
    assert [program for program in leaks.items() if program[1]] == []
    database = [
        world.secrets[name] for name in ("database URL", "database password", "it in a URL")
    ]
    assert any(b"PREFECT__FLOW_RUN_ID=" in each for each in sampler.environments)
    assert not any(value in each for value in database for each in sampler.environments)
