"""What hands, updates and faults do to a machine and its database, and what a check then names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from flows.catalog import HOME, OPT, SERVER, USER, WORKER
from flows.resources.systemd import OTHERS, OURS, UNITS
from tests.flows.paper_debian import JOURNALD, SSHD, Debian
from tests.flows.paper_disk import Node
from tests.flows.paper_world import (
    ROOT,
    SERVER_TOML,
    SERVER_UNIT,
    WORKER_TOML,
    WORKER_UNIT,
    Told,
)

JOURNALD_FOLDER = str(PurePosixPath(JOURNALD).parent)
SERVER_FILE, SERVICE = f"file {SERVER_TOML}", "service prefect-server"
BLIND = ["database: could not check", "schema: could not check"]
VARIABLES = "settings from the environment"
PACKAGES = "packages ca-certificates python3-venv unattended-upgrades"
UPDATES = "/etc/apt/apt.conf.d/99prefect.conf"
UNIT_FILE = f"file {UNITS}/{WORKER_UNIT}"


def node(path: str, **members: str) -> Callable[[Debian], object]:
    return lambda on: vars(on.files[path]).update(members)


def gone(path: str) -> Callable[[Debian], object]:
    return lambda on: on.remove(path)


def overridden(on: Debian) -> None:
    on.files[f"{UNITS}/{SERVER_UNIT}.d/override.conf"] = Node(content="[Service]\nNice=1\n")


def overridden_and_read(on: Debian) -> None:
    overridden(on)
    on.reload()
    on.restart(SERVER_UNIT)


def user_deleted(on: Debian) -> None:
    """What was theirs is nobody's; the number is all that is left of them."""
    del on.users[USER]
    for each in on.files.values():
        each.owner = each.owner.replace(f"{USER}:{USER}", "UNKNOWN:UNKNOWN")


def stray(name: str, *, restarted: bool = True) -> Callable[[Debian], object]:
    def spoil(on: Debian) -> None:
        on.variables |= {name}
        if restarted:
            on.restart(SERVER_UNIT)

    return spoil


def started_with(name: str) -> Callable[[Debian], object]:
    """As after ``set-environment``, ``restart``, ``unset-environment``."""
    return lambda on: vars(on.units[SERVER_UNIT]).update(variables=frozenset({OURS, name}))


def stray_file(path: str, *, restarted: bool) -> Callable[[Debian], object]:
    def spoil(on: Debian) -> None:
        on.files[path] = Node(content="PREFECT_SERVER_API_PORT=4300")
        if restarted:
            on.restart(SERVER_UNIT)

    return spoil


def both(*spoils: Callable[[Debian], object]) -> Callable[[Debian], object]:
    return lambda on: [spoil(on) for spoil in spoils]


def stopped(on: Debian) -> None:
    on.units[SERVER_UNIT].running = {}


def passwords_let_in(on: Debian) -> None:
    ours = on.files[SSHD]
    ours.content = ours.content.replace("PasswordAuthentication no", "PasswordAuthentication yes")


def masked(on: Debian) -> None:
    on.files[f"{UNITS}/{WORKER_UNIT}"] = Node("symbolic link", mode="777")
    on.reload()


SPOILED: dict[str, tuple[Callable[[Debian], object], Told]] = {
    "a package removed": (
        lambda on: on.packages.discard("python3-venv"),
        [f"{PACKAGES}: python3-venv"],
    ),
    "a disk that has grown": (
        lambda on: on.room.update(partition=10 << 30),
        ["root file system: partition fills the disk"],
    ),
    "updates removed": (
        lambda on: on.packages.discard("unattended-upgrades"),
        [f"{PACKAGES}: unattended-upgrades"],
    ),
    "updates switched off": (node(UPDATES, content=""), [f"file {UPDATES}: content"]),
    "passwords let in": (
        passwords_let_in,
        [f"file {SSHD}: content", "sshd: passwordauthentication"],
    ),
    "sshd's settings readable by root only": (node(SSHD, mode="600"), [f"file {SSHD}: mode"]),
    "the user deleted": (
        user_deleted,
        [f"user {USER}: {what}" for what in ("home", "shell", "group")]
        + [f"directory {path}: owner" for path in (HOME, SERVER, WORKER)]
        + [f"file {path}: owner" for path in (SERVER_TOML, WORKER_TOML)]
        + BLIND,
    ),
    "another home": (
        lambda on: on.users[USER].update({"home": "/home/prefect"}),
        [f"user {USER}: home"],
    ),
    "another group": (
        lambda on: on.users[USER].update({"group": "nogroup"}),
        [f"user {USER}: group"],
    ),
    "the home removed": (
        gone(HOME),
        [
            f"directory {path}: {what}"
            for path in (HOME, SERVER, WORKER)
            for what in ("kind", "mode", "owner")
        ]
        + [
            f"file {path}: {what}"
            for path in (SERVER_TOML, WORKER_TOML)
            for what in ("kind", "mode", "owner", "content")
        ]
        + BLIND
        + [f"{SERVICE}: configuration", "service prefect-worker: configuration"],
    ),
    "a login shell": (
        lambda on: on.users[USER].update({"shell": "/bin/bash"}),
        [f"user {USER}: shell"],
    ),
    "opt open": (node(OPT, mode="777"), [f"directory {OPT}: mode"]),
    "home open": (node(HOME, mode="755"), [f"directory {HOME}: mode"]),
    "server's folder open": (node(SERVER, mode="750"), [f"directory {SERVER}: mode"]),
    "worker's folder root's": (node(WORKER, owner="root:root"), [f"directory {WORKER}: owner"]),
    "another uv": (node(f"{OPT}/uv-0.13.9/bin/uv", content="0.13.8"), ["uv 0.13.9: version"]),
    "no uv": (gone(f"{OPT}/uv-0.13.9"), ["uv 0.13.9: version"]),
    "worker: another version": (
        node(f"{ROOT}/worker/lib/sqlalchemy", content="2.1.9"),
        ["worker's environment: other than locked"],
    ),
    "worker: no environment": (
        gone(f"{ROOT}/worker"),
        ["worker's environment: other than locked", "package prefect-bootstrap: digest", *BLIND],
    ),
    "tool: another Prefect": (
        node(f"{ROOT}/tools/prefect/lib/prefect", content="3.8.7"),
        ["prefect 3.8.8: other than locked"],
    ),
    "tool: a distribution removed": (
        gone(f"{ROOT}/tools/prefect/lib/fastapi"),
        ["prefect 3.8.8: other than locked"],
    ),
    "tool: not proven": (
        gone(f"{ROOT}/proven"),
        ["prefect 3.8.8: smoke test", f"{SERVICE}: configuration"],
    ),
    "tool: proven anew": (node(f"{ROOT}/proven", content="x"), [f"{SERVICE}: configuration"]),
    "other flows": (
        node(f"{ROOT}/worker/lib/prefect-bootstrap", content="0"),
        ["package prefect-bootstrap: digest"],
    ),
    "journald's folder closed": (
        node(JOURNALD_FOLDER, mode="700"),
        [f"directory {JOURNALD_FOLDER}: mode"],
    ),
    "journald unbounded": (node(JOURNALD, content=""), [f"file {JOURNALD}: content"]),
    "server.toml readable": (node(SERVER_TOML, mode="644"), [f"{SERVER_FILE}: mode"]),
    "server.toml edited": (
        node(SERVER_TOML, content="x"),
        [f"{SERVER_FILE}: content", f"{SERVICE}: configuration"],
    ),
    "worker.toml root's": (node(WORKER_TOML, owner="root:root"), [f"file {WORKER_TOML}: owner"]),
    "server's unit edited": (
        node(f"{UNITS}/{SERVER_UNIT}", content="x"),
        [f"file {UNITS}/{SERVER_UNIT}: content", f"{SERVICE}: configuration"],
    ),
    "worker's unit masked": (
        masked,
        [f"{UNIT_FILE}: kind", "service prefect-worker: at boot"],
    ),
    "worker masked above its unit": (
        lambda on: on.files.update({f"{OTHERS[0]}/{WORKER_UNIT}": Node("symbolic link")}),
        ["service prefect-worker: at boot"],
    ),
    "a stray .env": (
        stray_file(f"{WORKER}/.env", restarted=False),
        [f"no file {WORKER}/.env: exists"],
    ),
    "a stray .env that is in use": (
        stray_file(f"{SERVER}/.env", restarted=True),
        [f"no file {SERVER}/.env: exists"],
    ),
    "a stray variable": (
        stray("PREFECT_LOGGING_LEVEL"),
        [f"{SERVICE}: {VARIABLES}", f"service prefect-worker: {VARIABLES}"],
    ),
    "a stray variable at the next start": (
        stray("PREFECT_LOGGING_LEVEL", restarted=False),
        [f"{SERVICE}: {VARIABLES}", f"service prefect-worker: {VARIABLES}"],
    ),
    "a stray variable of the last start": (
        started_with("PREFECT_LOGGING_LEVEL"),
        [f"{SERVICE}: {VARIABLES}"],
    ),
    "schema behind": (
        lambda on: on.database.update(revision="behind", pending=3, current=["0"]),
        ["schema: revision"],
    ),
    "extension lost": (
        lambda on: on.database.update(pg_trgm_installed=False, missing_indexes=["trgm_ix"]),
        ["schema: pg_trgm"],
    ),
    "index lost": (
        lambda on: on.database.update(missing_indexes=["trgm_ix"]),
        ["schema: missing indexes"],
    ),
    "index invalid": (
        lambda on: on.database.update(invalid_indexes=["ix"]),
        ["schema: invalid indexes"],
    ),
    "disabled": (
        lambda on: vars(on.units[WORKER_UNIT]).update(enabled=False),
        ["service prefect-worker: at boot"],
    ),
    "stopped": (stopped, [f"{SERVICE}: state"]),
    "stopped and disabled": (
        both(stopped, lambda on: vars(on.units[SERVER_UNIT]).update(enabled=False)),
        [f"{SERVICE}: at boot", f"{SERVICE}: state"],
    ),
    "overridden": (overridden_and_read, [f"{SERVICE}: overrides"]),
    "an override that waits for the next reload": (overridden, [f"{SERVICE}: overrides"]),
    "runs an older configuration": (
        lambda on: on.units[WORKER_UNIT].running.update({WORKER_TOML: "x"}),
        ["service prefect-worker: configuration"],
    ),
}
