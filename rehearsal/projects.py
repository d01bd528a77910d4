"""Project, Service Usage, IAM service accounts and permission questions: as much as clients ask."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rehearsal import inventory
from rehearsal.config import ACCOUNT, HOSTS, PROJECT, PROJECT_NUMBER
from rehearsal.errors import ApiError, Json, disabled, malformed
from rehearsal.gateway import Call, handles
from rehearsal.operations import Mutation, mutates
from rehearsal.store import fingerprint, link, now, short

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud


class Services:
    """Which APIs are enabled in the project: all that are served here, to begin with."""

    def __init__(self) -> None:
        self.enabled = {host for host in HOSTS if host.endswith(".googleapis.com")} | {
            "iap.googleapis.com"
        }
        self.accounts: dict[str, Json] = {}

    def add_first_account(self, unique: str) -> None:
        """The account of the rehearsal itself, whose key ``exec`` hands out."""
        name = f"projects/{PROJECT}/serviceAccounts/{ACCOUNT}"
        self.accounts[name] = {
            "name": name,
            "projectId": PROJECT,
            "email": ACCOUNT,
            "uniqueId": unique,
            "displayName": "Rehearsal bootstrap",
        }

    def check(self, host: str) -> None:
        """Refuse a call to an API that is off. Turning APIs on is never refused."""
        if host not in self.enabled and host != "serviceusage.googleapis.com":
            raise disabled(host, PROJECT_NUMBER)

    def show(self, host: str) -> Json:
        state = "ENABLED" if host in self.enabled else "DISABLED"
        return {
            "name": f"projects/{PROJECT_NUMBER}/services/{host}",
            "parent": f"projects/{PROJECT_NUMBER}",
            "state": state,
            "config": {"name": host},
        }


@handles("serviceusage.services.get")
async def _service(cloud: Cloud, call: Call) -> Json:
    return cloud.services.show(call.params["servicesId"])


@handles("serviceusage.services.list")
async def _services(cloud: Cloud, call: Call) -> Json:
    known = sorted(cloud.services.enabled | set(HOSTS) - {"tunnel.cloudproxy.app"})
    shown = [cloud.services.show(host) for host in known]
    if wanted := call.query.get("filter"):
        shown = [s for s in shown if f"state:{s['state']}" == wanted]
    return {"services": shown}


@handles("serviceusage.services.enable", "serviceusage.services.disable")
async def _switch(cloud: Cloud, call: Call) -> Json:
    host = call.params["servicesId"]
    (cloud.services.enabled.add if call.method.action == "enable" else
     cloud.services.enabled.discard)(host)  # fmt: skip
    return {
        "name": "operations/noop.DONE_OPERATION",
        "done": True,
        "response": {"service": cloud.services.show(host)},
    }


@handles("cloudresourcemanager.projects.get")
async def _resource_manager_project(_cloud: Cloud, call: Call) -> Json:
    if call.path.startswith("v3/"):
        return {
            "name": f"projects/{PROJECT_NUMBER}",
            "projectId": PROJECT,
            "displayName": PROJECT,
            "state": "ACTIVE",
        }
    return {
        "projectId": PROJECT,
        "projectNumber": PROJECT_NUMBER,
        "name": PROJECT,
        "lifecycleState": "ACTIVE",
        "createTime": "2026-01-01T00:00:00.000Z",
    }


@handles(
    "cloudresourcemanager.projects.testIamPermissions",
    "secretmanager.projects.secrets.testIamPermissions",
    "compute.instances.testIamPermissions",
    "compute.subnetworks.testIamPermissions",
)
async def _test_permissions(cloud: Cloud, call: Call) -> Json:
    asked = call.body.get("permissions", [])
    if any("*" in name or name.count(".") < 2 for name in asked):
        raise malformed("Permission names are of the form service.resource.verb.")
    granted = [name for name in asked if cloud.identities.may(call.caller, name)]
    return {"permissions": granted} if granted else {}


@handles("compute.projects.get")
async def _compute_project(cloud: Cloud, call: Call) -> Json:
    from rehearsal.collection import check_scope

    check_scope(cloud, call)
    return {
        "kind": "compute#project",
        "id": PROJECT_NUMBER,
        "name": PROJECT,
        "selfLink": link(f"projects/{PROJECT}"),
        "creationTimestamp": now(),
        "commonInstanceMetadata": _stamped(cloud.common_metadata),
        "quotas": inventory.quotas(cloud.quotas, inventory.global_usage(cloud.store, PROJECT)),
        "defaultServiceAccount": f"{PROJECT_NUMBER}-compute@developer.gserviceaccount.com",
        "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
        "defaultNetworkTier": "PREMIUM",
    }


def _stamped(metadata: Json) -> Json:
    items = metadata.get("items", [])
    return {**metadata, "fingerprint": fingerprint(items)}


async def _set_common(cloud: Cloud, call: Call) -> tuple[Json, None, None]:
    from rehearsal.collection import check_fingerprint, check_scope

    check_scope(cloud, call)
    check_fingerprint(call.body, _stamped(cloud.common_metadata)["fingerprint"], "metadata")
    cloud.common_metadata = {"kind": "compute#metadata", "items": call.body.get("items", [])}
    await cloud.changed_metadata()
    return {"selfLink": link(f"projects/{PROJECT}"), "id": PROJECT_NUMBER}, None, None


_set: Mutation = mutates("compute.projects.setCommonInstanceMetadata")(_set_common)


@handles("iam.projects.serviceAccounts.testIamPermissions")
async def _test_account(cloud: Cloud, call: Call) -> Json:
    await _get_account(cloud, call)
    return await _test_permissions(cloud, call)


def _account(call: Call) -> str:
    return f"projects/{PROJECT}/serviceAccounts/{short(call.params['serviceAccountsId'])}"


@handles("iam.projects.serviceAccounts.create")
async def _create_account(cloud: Cloud, call: Call) -> Json:
    account = call.body.get("accountId", "")
    if not re.fullmatch(r"[a-z](?:[-a-z0-9]{4,28}[a-z0-9])", account):
        raise malformed("The account ID does not have a length between 6 and 30, or other characters "
                        "than lower case letters, digits and hyphens.")  # fmt: skip
    email = f"{account}@{PROJECT}.iam.gserviceaccount.com"
    name = f"projects/{PROJECT}/serviceAccounts/{email}"
    if name in cloud.services.accounts:
        message = f"Service account {account} already exists within project projects/{PROJECT}."
        raise ApiError(409, "alreadyExists", message)
    cloud.services.accounts[name] = {
        **call.body.get("serviceAccount", {}),
        "name": name,
        "projectId": PROJECT,
        "email": email,
        "uniqueId": cloud.store.new_id(),
        "oauth2ClientId": cloud.store.new_id(),
        "etag": "MDEwMjE5MjA=",
    }
    return cloud.services.accounts[name]


@handles("iam.projects.serviceAccounts.get")
async def _get_account(cloud: Cloud, call: Call) -> Json:
    try:
        return cloud.services.accounts[_account(call)]
    except KeyError:
        raise ApiError(404, "notFound", f"Unknown service account {_account(call)}") from None


@handles("iam.projects.serviceAccounts.list")
async def _list_accounts(cloud: Cloud, _call: Call) -> Json:
    return {"accounts": list(cloud.services.accounts.values())}


@handles("iam.projects.serviceAccounts.delete")
async def _delete_account(cloud: Cloud, call: Call) -> Json:
    await _get_account(cloud, call)
    del cloud.services.accounts[_account(call)]
    return {}


@handles("iamcredentials.projects.serviceAccounts.getAllowedLocations")
async def _locations(_cloud: Cloud, _call: Call) -> Json:
    return {"locations": [], "encodedLocations": "0x0"}
