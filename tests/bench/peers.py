"""The same server installed three other ways, over the same tunnel, each with a home of its own."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from blocks.iap import TOKEN_FILE
from tests.bench.lab import NAME, Lab, Timed, timed

HERE = Path(__file__).parent / "peers"
TOOLS = Path(__file__).parent.parent.parent / ".bench/bin"
"""Where ``make bench`` puts Ansible and pyinfra."""


@dataclass(frozen=True)
class Peer:
    """One of them; a new one has never been run, and knows no machine."""

    lab: Lab
    name: str

    def run(self, *, check: bool = False) -> Timed:
        """Install, or find that there is nothing to do; ``check`` only looks (Ansible)."""
        argv, stdin = self._command(check)
        home = self.lab.folder / f"home-{self.name}"
        home.mkdir(exist_ok=True)
        env = {
            "HOME": str(home),
            "DB_URL": self.lab.database_url,
            "AUTH": self.lab.auth,
            TOKEN_FILE: str(self.lab.folder / "token"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "0",
        }
        return timed(*argv, stdin=stdin, cwd=HERE, env=env).well()

    def forget(self) -> None:
        """A new one: without the connection that Ansible keeps open."""
        shutil.rmtree(self.lab.folder / f"home-{self.name}", ignore_errors=True)

    def _command(self, check: bool) -> tuple[list[str], str]:
        config = str(self.lab.folder / "ssh_config")
        if self.name == "raw":
            secrets = {"DB_URL": self.lab.database_url, "AUTH": self.lab.auth}
            given = "".join(f"export {name}={shlex.quote(v)}\n" for name, v in secrets.items())
            script = given + (HERE / "raw.sh").read_text()
            return ["ssh", "-F", config, NAME, "sudo bash -s"], script
        if self.name == "pyinfra":
            where = ("--data", f"ssh_config_file={config}", "--sudo", "--yes")
            return [str(TOOLS / "pyinfra"), f"@ssh/{NAME}", "deploy.py", *where], ""
        playbook = [str(TOOLS / "ansible-playbook"), "--inventory", f"{NAME},", "playbook.yml"]
        way = ["--become", "--ssh-common-args", f"-F {config}"]
        python = ["--extra-vars", "ansible_python_interpreter=/usr/bin/python3"]
        return [*playbook, *way, *python, *(["--check"] if check else [])], ""


def versions() -> dict[str, str]:
    """Of the tools in their environment."""
    script = "from importlib.metadata import version as v; print(v('ansible-core'), v('pyinfra'))"
    said = timed(str(TOOLS / "python"), "-c", script, cwd=HERE).well().output.split()
    return {
        "python": sys.version.split()[0],
        **dict(zip(("ansible-core", "pyinfra"), said, strict=True)),
    }
