"""The database that the server uses: what it has to offer, and the schema that Prefect keeps in it.

Both kinds look through the server's own eyes, with one and the same command. The database is not
ours: what it lacks is said as the line of SQL that its administrator runs. The schema is: it is
migrated up, under a lock, and never down, and its indexes are healed; nothing else is ever dropped.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blocks.shell import Command, Result
from flows.errors import BootstrapError, CommandFailed, Final, Unreachable
from flows.probes import database, migrate
from flows.reconcile import Change, State

OLDEST = 14
SHOWN = 3
"""Tables that are named at most."""
_SECRET = "in the secret that holds the database URL"  # noqa: S105 - a part of a sentence
_AWAY = (
    "Check that the database runs and lets the server's network in, and the host and the port "
    f"{_SECRET}."
)
_TLS = (
    "Check that the database has TLS on, with a certificate for the host in the URL from the CA in "
    f"~/.postgresql/root.crt of the service user, or change ?ssl= {_SECRET}."
)
_ACCESS = (
    "Let the user in from the server's address (pg_hba.conf), or, where only TLS is let in, add "
    f"?ssl=require {_SECRET}."
)

# The nearest of an error's classes that is named here decides.
ERRORS: dict[str, tuple[type[BootstrapError], str]] = {
    "InvalidPasswordError": (Final, f"Correct the user or the password {_SECRET}."),
    "InvalidAuthorizationSpecificationError": (Final, _ACCESS),
    "InvalidCatalogNameError": (
        Final,
        f"Create the database, owned by the user (CREATE DATABASE), or correct its name {_SECRET}.",
    ),
    "SSLError": (Final, _TLS),
    "ClientConfigurationError": (Final, _TLS),
    "OperatorInterventionError": (Unreachable, "Wait until the database has started."),
    "TooManyConnectionsError": (
        Unreachable,
        "Close connections that nobody needs, or raise max_connections.",
    ),
    "gaierror": (Unreachable, f"Correct the host {_SECRET}, or the name service of the server."),
    "ConnectionRefusedError": (Unreachable, _AWAY),
    "ConnectionResetError": (Unreachable, _AWAY),
    "ConnectionAbortedError": (Unreachable, _AWAY),
    "BrokenPipeError": (Unreachable, _AWAY),
    "ConnectionError": (Final, _TLS),  # asyncpg's word for: the server said no to TLS
    "PostgresConnectionError": (Unreachable, _AWAY),
    "PostgresError": (Final, "Repair what PostgreSQL complains of, and run again."),
    "OSError": (Unreachable, _AWAY),  # no route, out of time
    "ValueError": (Final, f"Correct the URL {_SECRET}; its parts have to be percent-encoded."),
}


def refusal(error: Sequence[str], message: str) -> BootstrapError:
    """What ``flows.probes.database.told`` told of, as an error of ours, with its repair."""
    kind, repair = next((ERRORS[name] for name in error if name in ERRORS), (Final, ""))
    says = f": {message.rstrip('.')}" if message else ""
    return kind(f"The database could not be read, {error[0]}{says}.", repair=repair)


@dataclass(frozen=True)
class PostgresKind:
    python: str
    """The interpreter of the installed Prefect."""
    directory: str
    """The server's working directory, where its ``prefect.toml`` is."""
    user: str
    """Whom the server runs as; empty: who we are."""

    def probe(self) -> Command:
        return self._program(inspect.getsource(database))

    def _program(self, source: str, *args: str, seconds: float = 60) -> Command:
        """``source`` by the server's Python, as the server's user, where the server runs."""
        as_user = ("runuser", "-u", self.user, "--") if self.user else ()
        argv = (*as_user, self.python, "-I", "-", self.directory, *args)
        return Command(argv, source, seconds, self.directory)

    def _found(self, result: Result) -> dict[str, Any]:
        if result.code:
            raise CommandFailed(
                self.probe().argv,
                result.code,
                result.stderr,
                repair="Install Prefect and its prefect.toml first: the database is looked at with them.",
            )
        found: dict[str, Any] = json.loads(result.stdout)
        if "error" in found:
            raise refusal(found["error"], found["message"])
        return found


@dataclass(frozen=True)
class Database(PostgresKind):
    """What Prefect needs of the database. Nothing of it is ours to change."""

    name = "database"

    def desired(self) -> State:
        return {
            "PostgreSQL": f"{OLDEST} or newer",
            "writes": "accepted",
            "new tables": "allowed",
            "rows": "allowed",
            "pg_trgm": "available",
        }

    def parse(self, result: Result) -> State:
        """What is not as desired is said as what it is and, after a semicolon, what repairs it."""
        found = self._found(result)
        user, name, schema = found["user"], found["database"], found["schema"]
        faults = {
            "PostgreSQL": found["server_version_num"] < OLDEST * 10000
            and f"{found['server_version']}; use PostgreSQL {OLDEST} or newer",
            "writes": found["in_recovery"]
            and "refused, it is a standby; put the primary's address in the database URL",
            "new tables": not found["create_in_schema"]
            and f"refused; in {name}, run GRANT USAGE, CREATE ON SCHEMA {schema} TO {user};",
            "rows": _rows(found),
            "pg_trgm": not found["pg_trgm_installed"] and _extension(found),
        }
        return {key: faults[key] or value for key, value in self.desired().items()}

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        """Raises Final, with what is missing and what repairs it."""
        faults = [str(change.actual).partition("; ") for change in changes]
        what = [
            f"{change.attribute} {fault[0]}" for change, fault in zip(changes, faults, strict=True)
        ]
        raise Final(
            f"The database is not fit for Prefect: {', '.join(what)}.",
            repair=f"Ask its administrator: {' and '.join(fault[2] for fault in faults)}",
        )


def _rows(found: dict[str, Any]) -> str:
    """What keeps the user from the rows of Prefect's tables, empty when nothing does."""
    tables, more = found["refused_tables"][:SHOWN], len(found["refused_tables"]) - SHOWN
    if not tables:
        return ""
    named = ", ".join(tables) + (f" and {more} more" if more > 0 else "")
    return (
        f"refused of {named}; in {found['database']}, run GRANT SELECT, INSERT, UPDATE, DELETE"
        f" ON ALL TABLES IN SCHEMA {found['schema']} TO {found['user']};"
    )


def _extension(found: dict[str, Any]) -> str:
    if not found["pg_trgm_available"]:
        return "unknown there; install PostgreSQL's contrib extensions on the database's machine"
    if not found["create_in_database"]:
        return f"refused; run GRANT CREATE ON DATABASE {found['database']} TO {found['user']};"
    return ""


@dataclass(frozen=True)
class Schema(PostgresKind):
    """Prefect's tables, at the revision that the installed Prefect has as its head, with the
    extension and the indexes that finding by a part of a name needs."""

    prefect_home: str
    name = "schema"

    def desired(self) -> State:
        return {
            "revision": "head",
            "pg_trgm": "installed",
            "missing indexes": (),
            "invalid indexes": (),
        }

    def parse(self, result: Result) -> State:
        """A migration brings the extension, and the extension's loss takes its indexes along: one
        cause is told once."""
        found = self._found(result)
        if not found["readable"]:
            raise Final(
                f"The schema could not be read: {found['user']} may not look into it.",
                repair="Give the rights back that the database lacks.",
            )
        current, revision = ", ".join(found["current"]) or "none", found["revision"]
        if revision == "behind":
            revision = f"behind by {found['pending']}"
        there = revision == "empty" or found["pg_trgm_installed"]
        return {
            "revision": revision if revision in ("head", "empty") else f"{revision}: {current}",
            "pg_trgm": "installed" if there else "missing",
            "missing indexes": tuple(found["missing_indexes"]) if there else (),
            "invalid indexes": tuple(found["invalid_indexes"]),
        }

    def commands(self, changes: tuple[Change, ...]) -> Sequence[Command]:
        """The migration, which heals the indexes, too. Raises Final where only a person can decide."""
        revision = str({change.attribute: change.actual for change in changes}.get("revision"))
        stands = revision.partition(": ")[0]
        if stands == "ahead":
            raise Final(
                f"A newer Prefect has written this database, revision {revision}.",
                repair="Put that version of Prefect, or a newer one, in the spec; we never migrate down.",
            )
        if stands == "unknown":
            raise Final(
                f"This is not a database of Prefect's, revision {revision}.",
                repair="Name an empty database in the database URL, or restore Prefect's from a backup.",
            )
        seconds = migrate.LOCK_SECONDS + migrate.UPGRADE_SECONDS + migrate.INDEX_SECONDS + 60
        source = with_database(inspect.getsource(migrate))
        return [self._program(source, self.prefect_home, seconds=seconds)]


def with_database(source: str) -> str:
    """``source`` as a program that has the module it imports with it."""
    name = database.__name__
    return (
        "import sys, types\n"
        f"module = sys.modules[{name!r}] = types.ModuleType({name!r})\n"
        f"exec({inspect.getsource(database)!r}, module.__dict__)\n"
        f"exec({source!r})\n"
    )
