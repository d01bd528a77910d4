"""What each difference means, and who may make it good: one table, the first row that matches wins.

How bad it is:
  critical   a way in that should not be, or a server that is down or will be
  warning    it works now, and will hurt
  info       nothing hurts
Who may heal it, each of them also what the ones before may:
  safe       a run that nobody watches: it loses no data, restarts nothing but Prefect, and nobody
             changes such a thing to get more out of the server
  all        a run that nobody watches, where the spec says so: it may restart the machine, install
             programs or migrate the schema
  hand       a run that a person starts; it may well end there, with the sentence that repairs it
  never      no run: it is somebody else's, and a run passes it by

A resource that does not exist has the attribute "".
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from flows.reconcile import Change
from flows.spec import Ignored

Severity = Literal["critical", "warning", "info"]
Heal = Literal["safe", "all", "hand", "never"]
Level = Literal["off", "safe", "all", "hand"]
"""How far a run may go: what ``heal`` in the spec says, or ``hand`` when a person has started it."""
LADDER = ("off", "safe", "all", "hand", "never")


class Policy(NamedTuple):
    """``action``: what a person does where no run can; empty: a run can."""

    severity: Severity
    heal: Heal
    action: str = ""


class Row(NamedTuple):
    """Shell patterns of a resource's name and of an attribute, and what holds for both."""

    resource: str
    attribute: str
    policy: Policy


UNKNOWN = Policy("warning", "hand")
"""What nobody has judged yet."""


def row(resource: str, attribute: str, severity: Severity, heal: Heal, action: str = "") -> Row:
    return Row(resource, attribute, Policy(severity, heal, action))


ADMINISTRATOR = "ask the database's administrator to do what it says"
ENVIRONMENT = "look for a .env file or PREFECT_ variables that beat its prefect.toml"
SSHD = "take back what another file of sshd's says before ours"
POOL = "delete the work pool and run bootstrap-server"
STRANGER = "delete or narrow the firewall rule, or add its range to the clients in the spec"

# fmt: off
CLOUD = (
    row("exposure of *", "*", "critical", "never", STRANGER),
    row("firewall rule *", "*", "critical", "safe"),
    row("instance *", "labels.*", "info", "safe"),
    row("instance *", "metadata.enable-guest-attributes", "warning", "safe"),
    row("instance *", "metadata.*", "critical", "safe"),  # who may log in
    row("instance *", "tags.*", "critical", "safe"),  # without it, no firewall rule of ours applies
    row("instance *", "scheduling.*", "warning", "safe"),
    row("instance *", "deletionProtection", "warning", "safe"),
    row("instance *", "accessConfigs", "critical", "all"),  # an address given back does not return
    row("instance *", "status", "critical", "all"),
    row("instance *", "", "critical", "all"),
    row("instance *", "*", "warning", "all"),
    row("router *", "network", "warning", "all"),
    row("router *", "nat", "critical", "safe"),
    row("router *", "nat.log", "info", "safe"),
    row("router *", "nat.*", "critical", "all"),  # another address: some database may know the old one
    row("router *", "", "critical", "safe"),
    row("subnet *", "privateIpGoogleAccess", "warning", "safe"),
    row("subnet *", "", "critical", "all"),
    row("subnet *", "*", "warning", "all"),
    row("network *", "", "critical", "all"),
    row("network *", "*", "warning", "all"),
    row("service account *", "*", "warning", "all"),
    row("disk *", "", "critical", "all"),
    row("disk *", "labels.*", "info", "safe"),
    row("disk *", "*", "warning", "all"),
)
MACHINE = (
    row("root file system", "*", "warning", "safe"),
    row("file */prefect.toml", "content", "warning", "safe"),
    row("file */prefect.toml", "*", "critical", "safe"),  # it holds secrets
    row("file *.service", "", "critical", "safe"),
    row("file /etc/ssh/*", "*", "critical", "safe"),  # who may log in
    row("sshd", "*", "critical", "hand", SSHD),
    row("file *", "*", "warning", "safe"),
    row("no file *", "*", "warning", "safe"),
    row("directory *", "kind", "critical", "all"),
    row("directory *", "", "critical", "safe"),
    row("directory *", "*", "warning", "safe"),
    row("user *", "", "critical", "all"),
    row("user *", "*", "warning", "all"),
    row("prefect [0-9]*", "", "critical", "all"),
    row("prefect [0-9]*", "*", "warning", "all"),
    row("worker's environment", "", "critical", "all"),
    row("worker's environment", "*", "warning", "all"),
    row("package *", "*", "warning", "all"),
    row("packages *", "*", "warning", "all"),
    row("wheels", "*", "info", "safe"),
    row("uv *", "*", "warning", "all"),
)
DATABASE = (
    row("database", "*", "critical", "hand", ADMINISTRATOR),
    row("schema", "pg_trgm", "warning", "all"),
    row("schema", "*indexes", "warning", "all"),
    row("schema", "*", "critical", "all"),
)
PREFECT = (
    row("service *", "state", "critical", "safe"),
    row("service *", "at boot", "critical", "safe"),
    row("service *", "*", "warning", "safe"),
    row("server's answers", "with* auth string", "critical", "hand", ENVIRONMENT),
    row("server's answers", "UI", "critical", "hand", ENVIRONMENT),
    row("server's answers", "*", "warning", "hand", ENVIRONMENT),
    row("work pool *", "type", "critical", "hand", POOL),
    row("work pool *", "*", "critical", "safe"),
    row("worker *", "*", "critical", "safe"),
    row("deployment *", "version", "warning", "all"),  # follows what is installed
    row("deployment *", "entrypoint", "warning", "all"),
    row("deployment *", "paused", "critical", "safe"),
    row("deployment *", "schedule", "critical", "safe"),
    row("deployment *", "", "critical", "safe"),
    row("deployment *", "*", "warning", "safe"),
    row("automation *", "*", "warning", "safe"),
    row("notification block *", "*", "warning", "safe"),
    row("self-check", "*", "critical", "safe"),
)
# fmt: on
TABLE = (*CLOUD, *MACHINE, *DATABASE, *PREFECT)


def judged(resource: str, attribute: str) -> Row | None:
    """The row that holds; None where nobody has judged."""
    rows = (each for each in TABLE if _matches(each, resource, attribute))
    return next(rows, None)


def policy(resource: str, attribute: str) -> Policy:
    """What holds for an attribute of a resource; ``""`` is whether it exists."""
    found = judged(resource, attribute)
    return found.policy if found else UNKNOWN


def reaches(level: Level, heal: Heal) -> bool:
    """Whether a run of this level may make a change of this kind."""
    return LADDER.index(heal) <= LADDER.index(level)


def may_change(
    resource: str, change: Change, level: Level, ignore: Iterable[Ignored], today: date
) -> bool:
    """Whether a run may make this change; ``today`` in UTC. What is ignored, no run changes."""
    attribute = attribute_of(change)
    entries = matching(ignore, resource, attribute)
    if any(not expired(entry, today) for entry in entries):
        return False
    return reaches(level, policy(resource, attribute).heal)


def attribute_of(change: Change) -> str:
    """The attribute as a policy and an ignore list see it: a missing resource is one difference."""
    return "" if change.missing else change.attribute


def matching(ignore: Iterable[Ignored], resource: str, attribute: str) -> list[Ignored]:
    """The entries of the ignore list that mean it, expired or not."""
    return [entry for entry in ignore if _matches(entry, resource, attribute)]


def expired(entry: Ignored, today: date) -> bool:
    """``until`` is the last day of an entry."""
    return bool(entry.until) and entry.until < today.isoformat()


def _matches(patterns: Row | Ignored, resource: str, attribute: str) -> bool:
    return fnmatchcase(resource, patterns.resource) and fnmatchcase(attribute, patterns.attribute)
