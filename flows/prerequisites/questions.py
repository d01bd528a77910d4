"""What is asked of Google: each question is one call, which changes nothing. They go side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from blocks.compute import Compute, Json, described
from flows.permissions import ACT_AS, NARROW, permissions, shared
from flows.reconcile import side_by_side
from flows.resources.account import Account
from flows.resources.network import Network, Subnet
from flows.spec import ServerSpec

ANSWER_SECONDS = 20.0
"""As long as an answer is waited for, with all tries."""
CHUNK = 100
"""As many permissions as one question may name."""

Question = Callable[[ServerSpec, Compute], Any]


def answers(
    spec: ServerSpec, connect: Callable[[], Compute], absent: Collection[str]
) -> dict[str, Any]:
    """What came of every question, by name: None for what is not there, the error where there is no
    answer. ``connect`` gives the client; of a network that is ``absent``, nothing is asked."""
    new = Network(spec).name in absent
    asked: dict[str, Question] = ALWAYS if new else ALWAYS | OF_NETWORK
    if spec.network.project:
        asked = asked | {"host": _host}

    def answer(question: Question) -> Any:
        try:
            return question(spec, connect())
        except Exception as error:  # noqa: BLE001 - whatever it is, only this could not be asked
            return error

    told = side_by_side(answer, list(asked.values()))
    return {"network": None} | dict(zip(asked, told, strict=True))


def _read(compute: Compute, request: Any) -> Json | None:
    return compute.read(request, seconds=ANSWER_SECONDS)


def _pages(compute: Compute, collection: Any, method: str, **arguments: Any) -> Iterator[Json]:
    request = getattr(collection, method)(**arguments)
    while request is not None:
        page = compute.ask(request, seconds=ANSWER_SECONDS)
        yield page
        request = getattr(collection, f"{method}_next")(request, page)


def _services(spec: ServerSpec, compute: Compute) -> list[Json]:
    services = described("serviceusage", "v1").services()
    wanted = {"parent": f"projects/{spec.project}", "filter": "state:ENABLED", "pageSize": 200}
    pages = _pages(compute, services, "list", **wanted)
    return _items(pages, "services")


def _permissions(spec: ServerSpec, compute: Compute) -> list[str]:
    """Those of the table that we have in the project."""
    return _granted(compute, spec.project, [*permissions(), *NARROW])


def _host(spec: ServerSpec, compute: Compute) -> list[str]:
    """Those that we have in the project of a shared VPC, or on its subnet alone."""
    subnet = {"project": spec.network.project, "region": spec.region, "resource": Subnet(spec).id}
    names = shared(spec.network.router)
    body = {"permissions": names}
    request = compute.service.subnetworks().testIamPermissions(**subnet, body=body)
    on_subnet = (_read(compute, request) or {}).get("permissions", ())
    return [*on_subnet, *_granted(compute, spec.network.project, names)]


def _granted(compute: Compute, project: str, names: Sequence[str]) -> list[str]:
    projects = described("cloudresourcemanager", "v1").projects()
    found: list[str] = []
    for first in range(0, len(names), CHUNK):
        body = {"permissions": [*names[first : first + CHUNK]]}
        request = projects.testIamPermissions(resource=project, body=body)
        found += compute.ask(request, seconds=ANSWER_SECONDS).get("permissions", ())
    return found


def _account(spec: ServerSpec, compute: Compute) -> Json | None:
    """Whether we may act as the machine's account."""
    accounts = compute.iam.projects().serviceAccounts()
    body = {"permissions": [ACT_AS]}
    request = accounts.testIamPermissions(resource=Account(spec).path, body=body)
    return _read(compute, request)


def _project(spec: ServerSpec, compute: Compute) -> Json | None:
    return _read(compute, compute.service.projects().get(project=spec.project))


def _region(spec: ServerSpec, compute: Compute) -> Json | None:
    return _read(compute, compute.service.regions().get(project=spec.project, region=spec.region))


def _zones(spec: ServerSpec, compute: Compute) -> dict[str, Json | None]:
    def there(zone: str) -> Json | None:
        return _read(compute, compute.service.zones().get(project=spec.project, zone=zone))

    return {zone: there(zone) for zone in spec.all_zones}


def _types(spec: ServerSpec, compute: Compute) -> dict[str, Json | None]:
    """The machine type, zone by zone."""

    def there(zone: str) -> Json | None:
        where = {"project": spec.project, "zone": zone, "machineType": spec.machine.type}
        return _read(compute, compute.service.machineTypes().get(**where))

    return {zone: there(zone) for zone in spec.all_zones}


def _image(_spec: ServerSpec, compute: Compute) -> Json | None:
    family = {"project": "debian-cloud", "family": "debian-12"}
    return _read(compute, compute.service.images().getFromFamily(**family))


def _network(spec: ServerSpec, compute: Compute) -> Json | None:
    return Network(spec).fetch(compute)


def _subnets(spec: ServerSpec, compute: Compute) -> list[Json]:
    """Of every region: ranges are unique in a network."""
    wanted = _of_network(spec)
    pages = _pages(compute, compute.service.subnetworks(), "aggregatedList", **wanted)
    scopes = [scope for page in pages for scope in page.get("items", {}).values()]
    return [subnet for scope in scopes for subnet in scope.get("subnetworks", ())]


def _reserved(spec: ServerSpec, compute: Compute) -> list[Json]:
    """Ranges that are kept for services of Google's, such as Cloud SQL."""
    wanted = _of_network(spec)
    return _items(_pages(compute, compute.service.globalAddresses(), "list", **wanted))


def _routers(spec: ServerSpec, compute: Compute) -> list[Json]:
    where = {"region": spec.region, **_of_network(spec)}
    return _items(_pages(compute, compute.service.routers(), "list", **where))


def _routes(spec: ServerSpec, compute: Compute) -> list[Json]:
    return _items(_pages(compute, compute.service.routes(), "list", **_of_network(spec)))


def _of_network(spec: ServerSpec) -> dict[str, Any]:
    network = f'network eq ".*/networks/{Network(spec).id}"'
    return {"project": Network(spec).home, "filter": network}


def _items(pages: Iterator[Json], name: str = "items") -> list[Json]:
    return [item for page in pages for item in page.get(name, ())]


ALWAYS: dict[str, Question] = {
    "services": _services,
    "permissions": _permissions,
    "account": _account,
    "project": _project,
    "region": _region,
    "zones": _zones,
    "types": _types,
    "image": _image,
}
OF_NETWORK: dict[str, Question] = {
    "network": _network,
    "subnets": _subnets,
    "reserved": _reserved,
    "routers": _routers,
    "routes": _routes,
}
