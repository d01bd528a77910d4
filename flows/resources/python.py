"""uv, Prefect with its whole dependency closure, and this project's own package.

``uv tool install`` compares no hashes. So the lock is first installed into the worker's environment,
where uv requires them, then as the tool, from the cache; then both must have the very same files.
Every version has its own directory: nothing that a running service uses is ever changed, and what a
unit file names has passed its smoke test.
"""

from __future__ import annotations

import base64
import inspect
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blocks.shell import OUT_OF_TIME, Command, Result, check
from flows.errors import Final
from flows.probes import closure, package
from flows.reconcile import Change, State
from flows.resources.files import WRITE

INTERPRETER = "/usr/bin/python3"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
"""The machine's own list, also for uv, which brings one of its own."""
NO_COMMAND = 127
OURS = "prefect-bootstrap"
# With the pip that python3-venv has: to install it first takes longer than to install uv.
PIP = """
pip=$(echo /usr/share/python-wheels/pip-*.whl)
exec "$1" "$pip/pip" --quiet --disable-pip-version-check install \\
    --timeout 20 --retries 3 --require-hashes --requirement /dev/stdin
"""
# Without pip, which needs Debian's python3-venv: the wheel is a zip file with the program in it.
UNPACK = """
set -e
wheel=$(echo "$2"/uv-*.whl)
digest=$(sha256sum < "$wheel" | cut -d ' ' -f 1)
grep -q "sha256:$digest" || { echo "$wheel is not what the lock says" >&2; exit 1; }
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
"$3" -m zipfile -e "$wheel" "$new"
rm -rf "$1"
install -D -m 755 "$new"/uv-*.data/scripts/uv "$1/bin/uv"
"""
# The tool's files are the worker's, whose hashes were verified. So its compiled files can be, too.
SAME = """
set -e
cd "$1"
worker=$(echo worker/lib/python3*/site-packages) tool=$(echo tools/prefect/lib/python3*/site-packages)
diff --recursive --brief --exclude=__pycache__ --exclude=RECORD "$tool" "$worker" >&2
cp --archive --link --no-clobber "$worker/." "$tool"
"""
SMOKE = """
set -e
"$1/bin/prefect" version > /dev/null &
"$1/tools/prefect/bin/python" -c 'import prefect.server.api.server'
wait $!
date +%s.%N > "$1/proven"
"""
INSTALL = 600.0
"""Seconds for a download and installation."""


def pins(lock: str) -> dict[str, str]:
    """Name → version, of a lock in the format of requirements files."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9-]*)==(\S+)", lock, re.MULTILINE))


@dataclass(frozen=True)
class Uv:
    """uv at one version, in an environment of its own.

    ``wheels``: the directory that everything is installed from, uv too; empty: the package index.
    """

    version: str
    path: str
    lock: str = field(repr=False)
    wheels: str = ""

    @property
    def name(self) -> str:
        return f"uv {self.version}"

    @property
    def command(self) -> str:
        return f"{self.path}/bin/uv"

    def desired(self) -> State:
        return {"version": self.version}

    def probe(self) -> Command:
        return Command((self.command, "--version"))

    def parse(self, result: Result) -> State | None:
        if result.code == NO_COMMAND:
            return None
        if result.code == OUT_OF_TIME:
            check(self.probe(), result)
        _, version, *_ = f"{result.stdout} - -".split()
        return {"version": f"broken: exit {result.code}" if result.code else version}

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        if self.wheels:
            unpack = ("sh", "-c", UNPACK, "unpack", self.path, self.wheels, INTERPRETER)
            return [Command(unpack, self.lock, seconds=120)]
        new = (INTERPRETER, "-m", "venv", "--clear", "--without-pip", self.path)
        return [
            Command(new, seconds=120),
            Command(
                ("sh", "-c", PIP, "pip", f"{self.path}/bin/python"), self.lock, seconds=INSTALL
            ),
        ]


@dataclass(frozen=True)
class Installation:
    """Where one version of Prefect lies: ``<root>/tools`` for the server, ``<root>/worker``."""

    version: str
    root: str
    lock: str = field(repr=False)
    uv: Uv
    cache: str

    @property
    def prefect(self) -> str:
        return f"{self.root}/bin/prefect"

    @property
    def proven(self) -> str:
        """What the smoke test leaves; new with every installation, so a service can tell."""
        return f"{self.root}/proven"

    @property
    def interpreter(self) -> str:
        return f"{self.root}/tools/prefect/bin/python"

    @property
    def worker(self) -> str:
        return f"{self.root}/worker"

    def deviations(self, interpreter: str) -> Command:
        lock = "\n".join(f"{name}=={version}" for name, version in pins(self.lock).items())
        source = inspect.getsource(closure)
        return Command((interpreter, "-I", "-c", source, OURS), stdin=lock)

    def run_uv(self, *arguments: str) -> Command:
        settings = {
            "UV_CACHE_DIR": self.cache,
            "UV_TOOL_DIR": f"{self.root}/tools",
            "UV_TOOL_BIN_DIR": f"{self.root}/bin",
            "UV_PYTHON_DOWNLOADS": "never",
            "SSL_CERT_FILE": AUTHORITIES,
        }
        if self.uv.wheels:
            settings |= {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": self.uv.wheels}
        variables = [f"{name}={value}" for name, value in settings.items()]
        return Command(("env", *variables, self.uv.command, "--quiet", *arguments), seconds=INSTALL)

    def locked_worker(self) -> list[Command]:
        """Bring the worker's environment to just what the lock says, by its hashes."""
        lock = f"{self.root}/lock.txt"
        sync = ("pip", "sync", "--require-hashes", "--compile-bytecode", "--python", self.worker)
        return [
            Command(("install", "-d", self.root)),
            Command(("sh", "-c", WRITE, "write", lock, "644", "root:root"), stdin=self.lock),
            self.run_uv("venv", "--allow-existing", "--python", INTERPRETER, self.worker),
            self.run_uv(*sync, lock),
        ]


@dataclass(frozen=True)
class WorkerEnvironment:
    """The environment that the worker and its flow runs use: the lock, and our own package."""

    place: Installation

    @property
    def name(self) -> str:
        return "worker's environment"

    def desired(self) -> State:
        return {"other than locked": ()}

    def probe(self) -> Command:
        return self.place.deviations(f"{self.place.worker}/bin/python")

    def parse(self, result: Result) -> State | None:
        if result.code == NO_COMMAND:
            return None
        return {"other than locked": tuple(check(self.probe(), result).stdout.splitlines())}

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        return self.place.locked_worker()


@dataclass(frozen=True)
class Tool:
    """Prefect as a uv tool, for the server; proven to load before anything starts it."""

    place: Installation

    @property
    def name(self) -> str:
        return f"prefect {self.place.version}"

    def desired(self) -> State:
        return {"other than locked": (), "smoke test": "passed"}

    def probe(self) -> Command:
        probe = self.place.deviations(self.place.interpreter)
        # The interpreter's exit status counts, 127 when there is none; the proof is a line before.
        script = '[ -e "$0/proven" ] && echo proven; exec "$@"'
        return Command(("sh", "-c", script, self.place.root, *probe.argv), stdin=probe.stdin)

    def parse(self, result: Result) -> State | None:
        if result.code == NO_COMMAND:
            return None
        lines = check(self.probe(), result).stdout.splitlines()
        proven = lines[:1] == ["proven"]
        return {
            "other than locked": tuple(lines[1:] if proven else lines),
            "smoke test": "passed" if proven else "not passed",
        }

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        place = self.place
        make = ("tool", "install", "--force", "--no-build")
        locked = ("--with-requirements", f"{place.root}/lock.txt", "--python", INTERPRETER)
        return [
            Command(("rm", "-rf", place.proven, f"{place.root}/tools")),
            *place.locked_worker(),
            place.run_uv(*make, *locked, f"prefect=={place.version}"),
            Command(("sh", "-c", SAME, "same", place.root)),
            Command(("sh", "-c", SMOKE, "smoke", place.root), seconds=120),
        ]


@dataclass(frozen=True)
class OwnPackage:
    """This project's flows and blocks, in the worker's environment, as they are in ``source``."""

    place: Installation
    source: Path = Path(__file__).parent.parent.parent

    @property
    def name(self) -> str:
        return f"package {OURS}"

    def desired(self) -> State:
        return {"digest": package.digest(self.source)[:16]}

    def probe(self) -> Command:
        python = f"{self.place.worker}/bin/python"
        return Command((python, "-I", "-c", inspect.getsource(package)))

    def parse(self, result: Result) -> State | None:
        if result.code == NO_COMMAND:
            return None
        digest = check(self.probe(), result).stdout.strip()
        return {"digest": digest[:16]} if digest else None

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        from hatchling.builders.wheel import WheelBuilder

        if not (self.source / "pyproject.toml").exists():
            raise Final(
                f"There is no pyproject.toml in {self.source}, so {OURS} cannot be built for the server.",
                repair="Run the flows from the project's own folder, as prefect.yaml does.",
            )
        with tempfile.TemporaryDirectory() as folder:
            builder = WheelBuilder(str(self.source))
            [wheel] = builder.build(directory=folder, versions=["standard"])
            content = base64.b64encode(Path(wheel).read_bytes()).decode()
        there = f"{self.place.root}/{Path(wheel).name}"
        install = ("pip", "install", "--offline", "--no-deps", "--reinstall", "--compile-bytecode")
        return [
            Command(("sh", "-c", 'base64 -d > "$1"', "wheel", there), stdin=content),
            self.place.run_uv(*install, "--python", self.place.worker, there),
        ]
