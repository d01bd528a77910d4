"""What the project lets us do: its APIs, our permissions, and the secrets."""

from __future__ import annotations

from collections.abc import Iterator

from flows.errors import Final
from flows.permissions import ACT_AS, TUNNEL
from flows.permissions import needed as called_on
from flows.permissions import permissions as all_permissions
from flows.permissions import shared as needed_there
from flows.prerequisites.asked import GRANTED, MISSING, UNCHECKED, Asked, Row, row, told
from flows.resources.account import Account

APIS = {"compute": True, "iam": True, "iap": True, "cloudresourcemanager": False}
"""Whether a bootstrap needs it; the last only answers questions about permissions."""
ROLE = "prefectBootstrap"


def services(asked: Asked) -> Iterator[Row]:
    """A secret may lie in another project, so nothing follows from its API here."""
    on = {service["config"]["name"] for service in asked["services"]}
    kinds = {asked.spec.auth_secret.kind, asked.spec.database_url_secret.kind}
    apis = APIS | ({"secretmanager": False} if "gcp-secret" in kinds else {})
    for api, needed in apis.items():
        host = f"{api}.googleapis.com"
        said = "enabled" if host in on else "not enabled"
        repair = asked.gcloud(f"services enable {host}")
        yield row(f"API {api}", host in on, said, repair, needed=needed)


def permissions(asked: Asked) -> Iterator[Row]:
    """What a run calls on for sure, and the rest of the role."""
    granted, every = asked.granted, all_permissions()
    sure = called_on(asked.kinds)
    rest = [name for name in every if name not in sure]
    for title, names in {"to make the server": sure, "for changes and this check": rest}.items():
        lacking = [name for name in names if name not in granted]
        detail = f"without {', '.join(lacking)}" if lacking else f"all {len(names)}"
        add = f"iam roles update {ROLE} --add-permissions={','.join(lacking)}"
        repair = asked.gcloud(add) if granted & {*every} else _bind(asked)
        yield row(f"permissions {title}", not lacking, detail, repair, needed=names is sure)


def _bind(asked: Asked) -> str:
    """The line that gives the whole role."""
    project = asked.spec.project
    role = f"--role=projects/{project}/roles/{ROLE} --condition=None"
    return f"gcloud projects add-iam-policy-binding {project} --member={asked.member} {role}"


def shared(asked: Asked) -> Iterator[Row]:
    """No row without a shared VPC."""
    network = asked.spec.network
    if not network.project:
        return
    names = needed_there(network.router)
    lacking = [name for name in names if name not in asked["host"]]
    detail = f"without {', '.join(lacking)}" if lacking else f"all {len(names)}"
    role = "--role=roles/compute.networkUser --condition=None"
    bind = (
        f"gcloud projects add-iam-policy-binding {network.project} --member={asked.member} {role}"
    )
    yield row(f"permissions in {network.project}", not lacking, detail, bind)


def act_as(asked: Asked) -> Iterator[Row]:
    """A run would make the account, but not the grant on it."""
    account, there = Account(asked.spec), asked["account"]
    may = ACT_AS in (there or {}).get("permissions", ()) or ACT_AS in asked.granted
    grant = asked.gcloud(
        f"iam service-accounts add-iam-policy-binding {account.id} --member={asked.member} "
        "--role=roles/iam.serviceAccountUser"
    )
    name = account.id.partition("@")[0]
    make = "" if there is not None else asked.gcloud(f"iam service-accounts create {name}") + " && "
    yield row("running the machine as its account", may, f"{ACT_AS} on {account.id}", make + grant)


def iap(asked: Asked) -> Iterator[Row]:
    """A grant under a condition on the port is not seen: the question names no port."""
    what, project = "IAP access", asked.spec.project
    if asked.tunnel == "gcloud" and not asked.inside:
        detail = "whether gcloud's account may use the tunnel can only a tunnel tell"
        yield Row(what, UNCHECKED, detail, "See who that is: gcloud auth list")
        return
    if asked.inside or TUNNEL in asked.granted:
        yield Row(what, GRANTED, "the machine was reached" if asked.inside else TUNNEL)
        return
    detail = f"{TUNNEL} is not granted, unless under a condition, which only a tunnel can tell"
    grant = (
        f"gcloud projects add-iam-policy-binding {project} --member={asked.member} "
        "--role=roles/iap.tunnelResourceAccessor "
        "--condition=expression=destination.port==22,title=ssh"
    )
    yield Row(what, UNCHECKED, detail, grant)


def secrets(asked: Asked) -> Iterator[Row]:
    for block, error in asked.secrets.items():
        what = f"secret of the block {block}"
        if error is None:
            yield Row(what, GRANTED, "readable")
        else:
            verdict = MISSING if isinstance(error, Final) else UNCHECKED
            repair = error.repair.replace("MEMBER", asked.member)
            yield Row(what, verdict, told(error), repair)
