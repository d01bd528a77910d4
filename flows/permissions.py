"""What the flows call, and which permission each call needs: the one table behind role.yaml.

    python -m flows.permissions > role.yaml

Preflight asks Google for what is listed here, and says what a missing permission would break.
Source of the names: the "IAM Permissions" sections of Google's REST reference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

ALWAYS, LATER = "always", "later"
ACT_AS = "iam.serviceAccounts.actAs"
TUNNEL = "iap.tunnelInstances.accessViaIAP"
NARROW = (ACT_AS, TUNNEL)
"""Not in the role: the README grants them, and the secrets, more narrowly than for the project."""
SHARED = (
    "compute.firewalls.get",
    "compute.firewalls.list",
    "compute.networks.get",
    "compute.subnetworks.get",
    "compute.subnetworks.use",
)
"""In the project of a shared VPC, see ``shared``."""
_POLICY = "compute.networks.updatePolicy"

HEAD = """\
# What the flows may do in the project. gcloud iam roles create prefectBootstrap --file=role.yaml
# Made from the table in flows/permissions.py: python -m flows.permissions > role.yaml
# Three permissions are not here because the README grants them more narrowly, each on one thing:
# iam.serviceAccounts.actAs, secretmanager.versions.access and iap.tunnelInstances.accessViaIAP.
# Nor is compute.subnetworks.useExternalIp: no machine can get an external address by mistake.
title: Prefect bootstrap
description: Creates Prefect servers, keeps them as their specs say, and deletes nothing.
stage: GA
includedPermissions:
"""


@dataclass(frozen=True)
class Use:
    """A method, by its id in Google's discovery documents, and the permissions it needs.

    ``when`` a run calls it: ALWAYS, LATER (to change what exists, or to look at what it could do
    without), or while there is no resource of this kind, such as "network".
    """

    stage: str
    when: str
    method: str
    permissions: tuple[str, ...]


def _uses(stage: str, when: str, *lines: str) -> list[Use]:
    """One for each "method: permission permission"; a method alone needs what it is called."""
    found = []
    for line in lines:
        method, colon, names = line.partition(":")
        found.append(Use(stage, when, method, tuple(names.split()) if colon else (method,)))
    return found


def _own(collection: str, *methods: str) -> list[str]:
    """Methods of a collection that have a permission of the same name."""
    return [f"compute.{collection}.{method}" for method in methods]


_ACCOUNTS = "iam.projects.serviceAccounts"
USES: tuple[Use, ...] = (
    *_uses(
        "preflight",
        LATER,
        # Anybody may ask what he may do, and images of Google's are everybody's.
        "cloudresourcemanager.projects.testIamPermissions:",
        f"{_ACCOUNTS}.testIamPermissions:",
        "compute.subnetworks.testIamPermissions:",
        "compute.images.getFromFamily:",
        "serviceusage.services.list",
        "compute.projects.get",
        "compute.regions.get",
        "compute.zones.get",
        "compute.machineTypes.get",
        "compute.subnetworks.aggregatedList: compute.subnetworks.list",
        "compute.globalAddresses.list",
        "compute.routers.list",
        "compute.routes.list",
    ),
    *_uses(
        "cloud",
        ALWAYS,
        *[
            f"compute.{collection}.get"
            for collection in ("networks", "subnetworks", "routers", "firewalls")
        ],
        "compute.firewalls.list",
        f"{_ACCOUNTS}.get: iam.serviceAccounts.get",
        "compute.disks.get",
        "compute.disks.aggregatedList: compute.disks.list",
        "compute.instances.get",
        "compute.instances.aggregatedList: compute.instances.list",
        *[
            f"compute.{scope}Operations.wait: compute.{scope}Operations.get"
            for scope in ("global", "region", "zone")
        ],
    ),
    *_uses("cloud", "network", "compute.networks.insert: compute.networks.create"),
    *_uses("cloud", "subnet", f"compute.subnetworks.insert: compute.subnetworks.create {_POLICY}"),
    *_uses("cloud", "router", f"compute.routers.insert: compute.routers.create {_POLICY}"),
    *_uses(
        "cloud", "firewall rule", f"compute.firewalls.insert: compute.firewalls.create {_POLICY}"
    ),
    *_uses("cloud", "service account", f"{_ACCOUNTS}.create: iam.serviceAccounts.create"),
    *_uses(
        "cloud",
        "instance",
        # Its disk is made with it, or was left by another.
        "compute.instances.insert: compute.instances.create compute.disks.create compute.disks.use "
        "compute.disks.setLabels compute.subnetworks.use compute.instances.setLabels "
        "compute.instances.setMetadata compute.instances.setTags",
    ),
    *_uses(
        "cloud",
        LATER,
        "compute.networks.patch: compute.networks.update",
        *_own("subnetworks", "expandIpCidrRange", "setPrivateIpGoogleAccess"),
        "compute.routers.patch: compute.routers.update",
        f"compute.firewalls.update: compute.firewalls.update {_POLICY}",
        f"{_ACCOUNTS}.enable: iam.serviceAccounts.enable",
        *_own("disks", "resize", "setLabels"),
        *_own("instances", "deleteAccessConfig", "resume", "setDeletionProtection", "setLabels"),
        *_own("instances", "setMachineType", "setMetadata", "setScheduling", "setServiceAccount"),
        *_own("instances", "setTags", "start", "stop", "updateShieldedInstanceConfig"),
    ),
    *_uses("machine", ALWAYS, "compute.instances.getGuestAttributes"),
)


def permissions(uses: Iterable[Use] = USES) -> list[str]:
    """Their permissions, each once, in alphabetical order."""
    return sorted({name for use in uses for name in use.permissions})


def needed(absent: Collection[str]) -> list[str]:
    """What a run calls on for sure; ``absent``: the kinds of what it will have to make."""
    return permissions(use for use in USES if use.when in {ALWAYS, *absent})


def shared(router: str) -> list[str]:
    """What is needed in the project of a shared VPC, with the router that is looked at there."""
    return [*SHARED, *(["compute.routers.get"] if router else [])]


def role() -> str:
    """The content of role.yaml; each permission stands where it is first used."""
    text, listed = HEAD, set[str]()
    titles = {
        "preflight": "to look at the project before anything is made",
        "cloud": "to read, make and change the network, the account, the disk and the machine",
        "machine": "to know the machine's host keys before the first login",
    }
    for stage, title in titles.items():
        names = permissions(use for use in USES if use.stage == stage)
        text += f"  # {title}\n"
        text += "".join(f"  - {name}\n" for name in names if name not in listed)
        listed |= {*names}
    return text


if __name__ == "__main__":
    print(role(), end="")
