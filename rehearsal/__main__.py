"""A stand-in Google Cloud on this machine, whose instances are real Debian 12 machines."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from rehearsal import config, control, host
from rehearsal.control import Failed, ask, err, out, told
from rehearsal.errors import Json
from rehearsal.faults import KNOWN


def up(_args: argparse.Namespace) -> None:
    with control.alone():
        if control.is_up():
            err.print(f"{config.TITLE} is already up")
            return
        control.start()
    err.print("try: [bold]python -m rehearsal exec -- gcloud compute zones list[/]")


def run(args: argparse.Namespace) -> None:
    from rehearsal.run import rehearse

    rehearse(args.json)


def down(args: argparse.Namespace) -> None:
    if args.image and (others := control.others()):
        raise Failed(f"{' and '.join(others)} runs on the machine image, too: take it down first")
    with control.alone():
        host.clean()
    if args.image:
        from rehearsal import image

        image.remove()
    control.LOCK.unlink(missing_ok=True)
    err.print(f"{config.TITLE} is down" + (", its image removed" if args.image else ""))


def execute(args: argparse.Namespace) -> None:
    if not control.is_up():
        raise Failed(f"{config.TITLE} is not up: python -m rehearsal up")
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
    from rehearsal import laptop

    answer = {**(ask("GET", "/status") or {"up": False}), **laptop.urls()}
    if args.json:
        print(json.dumps(answer, indent=2))
        return
    if not answer["up"]:
        out.print(f"{config.TITLE} is not up: [bold]python -m rehearsal up[/]")
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
    for name in (name for name in laptop.URLS if name in answer):
        out.print(f"the {name}'s Prefect: {answer[name]}")
    for fault in answer["faults"]:
        out.print(f"fault on order: {fault}")
    if far := answer["distance"]:
        out.print(f"the relay's way to a machine: {far['round_trip'] * 1e3:.0f} ms there and back, "
                  f"{far['rate'] * 8 / 1e6:.0f} Mbit/s")  # fmt: skip
    for limit in answer["limits"]:
        out.print(f"limit: {limit}", style="dim")


def database(args: argparse.Namespace) -> None:
    if args.action != "psql":
        told("POST", f"/database/{args.action}")
        return
    answer = told("GET", "/status")["database"]
    _inside(answer, ["runuser", "-u", "postgres", "--", "psql", answer["name"], *args.arguments])


def root(args: argparse.Namespace) -> None:
    found = [one for one in told("GET", "/status")["instances"] if one["name"] == args.instance]
    if not found or not found[0]["leader"]:
        raise Failed(f"there is no running instance {args.instance}: python -m rehearsal status")
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    _inside(found[0], command or ["bash", "--login"])


def _inside(machine: Json, command: list[str]) -> None:
    """Become a command in a machine's namespaces."""
    leader = str(machine["leader"])
    enter = [
        "nsenter",
        "--target",
        leader,
        "--mount",
        "--pid",
        "--uts",
        "--ipc",
        "--net",
        "--wdns=/",
    ]
    os.execvp("nsenter", [*enter, "--", *command])  # noqa: S606 - no shell is wanted


def fault(args: argparse.Namespace) -> None:
    if args.clear:
        told("DELETE", "/faults")
        return
    if args.cut:
        out.print(f"cut {told('POST', '/relay/cut')['cut']} connections of the relay")
        return
    if args.quota:
        from rehearsal.inventory import GLOBAL_QUOTAS, QUOTAS

        metrics = [*QUOTAS, *GLOBAL_QUOTAS]
        metric, _, limit = args.quota.partition("=")
        if metric not in metrics or not limit.isdecimal():
            raise Failed(f"write a quota as METRIC=N, with METRIC one of {', '.join(metrics)}")
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


def link(args: argparse.Namespace) -> None:
    if not args.near and not (args.round_trip > 0 and args.rate > 0):
        raise Failed("how far? Give --round-trip 60 --rate 20, or --near")
    far = {"round_trip": args.round_trip / 1e3, "rate": args.rate * 1e6 / 8}
    told("POST", "/distance", {} if args.near else far)


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
    one = add("run", run, "bootstrap a Prefect server in the cloud from a laptop's Prefect")
    one.add_argument("--json", type=Path, metavar="FILE", help="write what came of it there")
    one = add("exec", execute, "run a command where Google's host names are this cloud")
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
    one = add("status", status, "say what runs and what this host cannot bound")
    one.add_argument("--json", action="store_true", help="as JSON")
    one = add("database", database, "stop, start or restart PostgreSQL, or open psql on it")
    one.add_argument("action", choices=["stop", "start", "restart", "psql"])
    one.add_argument("arguments", nargs=argparse.REMAINDER, help="for psql")
    one = add("root", root, "open a root shell on an instance, or run a command there as root")
    one.add_argument("instance", help="its name")
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
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
    one = add("link", link, "put the machines far from the relay, for tunnels opened from now on")
    one.add_argument("--round-trip", type=float, default=0, metavar="MS", help="milliseconds")
    one.add_argument("--rate", type=float, default=0, metavar="MBIT", help="Mbit/s each way")
    one.add_argument("--near", action="store_true", help="as at the start")
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
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
