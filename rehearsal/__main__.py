"""A stand-in Google Cloud on this machine, whose instances are real Debian 12 machines."""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rehearsal import config, host
from rehearsal.errors import Json
from rehearsal.faults import KNOWN

UP_SECONDS = 90.0
LOCK = Path("/run/lock/rehearsal")
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)


class Failed(Exception):
    """What went wrong and the repair, in one sentence."""


def ask(verb: str, path: str, body: Json | None = None, seconds: float = 60) -> Json | None:
    """Ask the daemon; None when there is none."""
    connection = http.client.HTTPConnection("rehearsal", timeout=seconds)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(seconds)
    try:
        connection.sock.connect(str(config.CONTROL))
        connection.request(verb, path, json.dumps(body) if body is not None else None)
        response = connection.getresponse()
        answer: Json = json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise Failed(f"the daemon does not answer ({error}): python -m rehearsal up") from error
    finally:
        connection.close()
    if response.status != 200:
        raise Failed(answer["error"])
    return answer


def told(verb: str, path: str, body: Json | None = None) -> Json:
    """Ask the daemon, which must be there."""
    answer = ask(verb, path, body)
    if answer is None:
        raise Failed("the rehearsal cloud is not up: python -m rehearsal up")
    return answer


@contextmanager
def alone() -> Iterator[None]:
    """One ``up`` or ``down`` at a time."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            err.print("another 'up' or 'down' is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_host() -> None:
    if lacks := host.missing():
        raise Failed("the rehearsal cloud cannot run here: " + "; ".join(lacks))


def up(_args: argparse.Namespace) -> None:
    require_host()
    with alone():
        if is_up():
            err.print("the rehearsal cloud is already up")
            return
        started = time.monotonic()
        from rehearsal import image

        host.clean()
        if not (image.image().exists() and image.database().exists()):
            with err.status("building the machine image, once: about 40 seconds"):
                try:
                    image.build()
                except image.ImageFailed as error:
                    raise Failed(f"the machine image could not be built: {error}") from error
        with err.status("starting the cloud"):
            _start_daemon()
        err.print(f"the rehearsal cloud is up ({time.monotonic() - started:.1f} s)")
        err.print("try: [bold]python -m rehearsal exec -- gcloud compute zones list[/]")


def is_up() -> bool:
    try:
        status = ask("GET", "/status", seconds=15)
    except Failed:
        return False
    return bool(status and status["up"])


def _start_daemon() -> None:
    from rehearsal.cgroups import DAEMON

    for folder in (config.STATE, config.DISKS):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    DAEMON.create()
    log = config.STATE / "daemon.log"
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            [*DAEMON.enter(), sys.executable, "-m", "rehearsal.daemon"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + UP_SECONDS
    while not (config.STATE / "ready").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").strip()[-2000:]
            host.clean()
            raise Failed(f"the cloud did not start: {tail or 'no word from the daemon'}")
        time.sleep(0.05)


def down(args: argparse.Namespace) -> None:
    require_host()
    with alone():
        host.clean()
    if args.image:
        from rehearsal import image

        image.remove()
    LOCK.unlink(missing_ok=True)
    err.print("the rehearsal cloud is down" + (", its image removed" if args.image else ""))


def execute(args: argparse.Namespace) -> None:
    require_host()
    if not is_up():
        raise Failed("the rehearsal cloud is not up: python -m rehearsal up")
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise Failed("nothing to run: python -m rehearsal exec -- COMMAND")
    environment = host.environment()
    host.enter()
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is wanted
    except FileNotFoundError:
        raise Failed(f"there is no command {command[0]}: check its spelling or PATH") from None


def status(args: argparse.Namespace) -> None:
    answer = ask("GET", "/status") or {"up": False}
    if args.json:
        print(json.dumps(answer, indent=2))
        return
    if not answer["up"]:
        out.print("the rehearsal cloud is not up: [bold]python -m rehearsal up[/]")
        return
    out.print(f"up: project {answer['project']}, zone {answer['zone']}, as {answer['account']}")
    database = answer["database"]
    out.print(f"database: {database['state']} at {database['host']}:{database['port']}, "
              f"{database['name']}, role {database['role']}, "
              f"password in {database['password_file']}")  # fmt: skip
    if answer["instances"]:
        columns = ["name", "zone", "status", "address", "machine_type"]
        table = Table(*columns, box=None)
        for instance in answer["instances"]:
            table.add_row(*(instance[column] for column in columns))
        out.print(table)
    for fault in answer["faults"]:
        out.print(f"fault on order: {fault}")
    for limit in answer["limits"]:
        out.print(f"limit: {limit}", style="dim")


def database(args: argparse.Namespace) -> None:
    if args.action != "psql":
        told("POST", f"/database/{args.action}")
        return
    answer = told("GET", "/status")["database"]
    leader = str(answer["leader"])
    enter = ["nsenter", "--target", leader, "--mount", "--pid", "--uts", "--ipc", "--net"]
    psql = ["runuser", "-u", "postgres", "--", "psql", answer["name"], *args.arguments]
    os.execvp("nsenter", [*enter, "--", *psql])  # noqa: S606 - no shell is wanted


def fault(args: argparse.Namespace) -> None:
    if args.clear:
        told("DELETE", "/faults")
        return
    if args.cut:
        out.print(f"cut {told('POST', '/relay/cut')['cut']} connections of the relay")
        return
    if args.quota:
        from rehearsal.inventory import QUOTAS

        metric, _, limit = args.quota.partition("=")
        if metric not in QUOTAS or not limit.isdecimal():
            raise Failed(f"write a quota as METRIC=N, with METRIC one of {', '.join(QUOTAS)}")
        told("POST", "/quota", {metric: int(limit)})
        return
    if not args.method:
        for entry in told("GET", "/status")["faults"]:
            out.print(entry)
        return
    reason = args.operation or args.reason or ""
    if not (args.operation or reason in KNOWN or args.status or args.delay):
        names = ", ".join(KNOWN)
        raise Failed(f"what should go wrong? Give --status, --delay, or --reason of: {names}")
    order: dict[str, Any] = {
        "method": args.method, "count": args.count, "delay": args.delay, "reason": reason,
        "message": args.message, "status": args.status or 0, "operation": bool(args.operation),
    }  # fmt: skip
    told("POST", "/faults", order)


def role(args: argparse.Namespace) -> None:
    if args.everything:
        told("POST", "/role", {"permissions": None})
        return
    import yaml

    try:
        document = yaml.safe_load(args.file.read_text())
        permissions = document["includedPermissions"]
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise Failed(f"{args.file} is no role file with includedPermissions: {error}") from error
    told("POST", "/role", {"permissions": permissions})


def log(args: argparse.Namespace) -> None:
    if not config.LOG.exists():
        raise Failed("there is no log: python -m rehearsal up")
    for line in config.LOG.read_text().splitlines():
        if args.json:
            print(line)
            continue
        entry = json.loads(line)
        clock = time.strftime("%H:%M:%S", time.localtime(entry["time"]))
        style = "red" if entry["status"] >= 400 else ""
        out.print(f"{clock} {entry['status']} {entry['method']} {entry['request']} "
                  f"{entry['caller']} {entry['seconds']:.3f}s", style=style)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m rehearsal", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("up", up, "build the machine image if it is missing and start the cloud")
    one = add("exec", execute, "run a command where Google's host names are this cloud")
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
    one = add("status", status, "say what runs and what this host cannot bound")
    one.add_argument("--json", action="store_true", help="as JSON")
    one = add("database", database, "stop, start or restart PostgreSQL, or open psql on it")
    one.add_argument("action", choices=["stop", "start", "restart", "psql"])
    one.add_argument("arguments", nargs=argparse.REMAINDER, help="for psql")
    one = add("fault", fault, "make the next calls of a method fail or wait")
    one.epilog = (
        "Example: fault compute.instances.insert --operation ZONE_RESOURCE_POOL_EXHAUSTED. "
        f"Google's exact words are known for: {', '.join(KNOWN)}."
    )
    one.add_argument("method", nargs="?", help="discovery id, as compute.instances.insert")
    one.add_argument("--status", type=int, help="HTTP status to answer")
    one.add_argument("--reason", help="Google's reason, such as rateLimitExceeded")
    one.add_argument("--operation", metavar="CODE", help="end its operation with this error code")
    one.add_argument("--message", default="injected", help="the error's message")
    one.add_argument("--delay", type=float, default=0, help="seconds to wait first")
    one.add_argument("--count", type=int, default=1, help="how many calls (default 1)")
    one.add_argument("--cut", action="store_true", help="cut the relay's connections now")
    one.add_argument("--quota", metavar="METRIC=N", help="set a regional quota, such as CPUS=8")
    one.add_argument("--clear", action="store_true", help="forget all faults on order")
    one = add("role", role, "let the account do just what a role file says")
    choice = one.add_mutually_exclusive_group(required=True)
    choice.add_argument("file", nargs="?", type=Path, help="YAML with includedPermissions")
    choice.add_argument("--everything", action="store_true", help="as at the start")
    one = add("log", log, "show every request with caller, method and status")
    one.add_argument("--json", action="store_true", help="one JSON object a line")
    one = add("down", down, "end the cloud and leave the host as it was")
    one.add_argument("--image", action="store_true", help="remove the machine image, too")
    return top


def main() -> int:
    args = parser().parse_args()
    try:
        args.run(args)
    except Failed as error:
        err.print(f"[red]error:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
