"""What there is to make a machine of: zone, machine type, image and quota; and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

from blocks.compute import Json
from flows.cost import SOURCE, has_nat, monthly, prices
from flows.prerequisites.asked import GRANTED, MISSING, UNCHECKED, Asked, Row, row

MEMORY_MB = 2048
IMAGES = "gcloud compute images list --filter=family=debian-12 --project=debian-cloud"
SHARED_QUOTA = ("e2", "n1", "f1", "g1")
"""Families whose CPUs count as CPUS; any other has a quota of its own."""


def zone(asked: Asked) -> Iterator[Row]:
    for name, found in asked["zones"].items():
        status = "there is none" if found is None else found["status"]
        yield row(f"zone {name}", status == "UP", status, asked.gcloud("compute zones list"))


def machine_type(asked: Asked) -> Iterator[Row]:
    for name, found in asked["types"].items():
        what = f"machine type {asked.spec.machine.type} in {name}"
        repair = asked.gcloud(f"compute machine-types list --zones={name}")
        if found is None:
            yield Row(what, MISSING, "there is none", repair)
            continue
        memory, architecture = found["memoryMb"], found.get("architecture", "X86_64")
        fits = memory >= MEMORY_MB and architecture == "X86_64"
        detail = f"{architecture}, {memory} MB; it has to be X86_64, with {MEMORY_MB} MB or more"
        yield row(what, fits, detail, repair)


def _any_type(asked: Asked) -> Json | None:
    """The machine type as one of the zones has it: it is the same in all."""
    return next(filter(None, asked["types"].values()), None)


def image(asked: Asked) -> Iterator[Row]:
    found, what = asked["image"], "image family debian-12"
    if found is None:
        yield Row(what, MISSING, "there is none", IMAGES)
        return
    fits = int(found["diskSizeGb"]) <= asked.spec.machine.disk_gb
    detail = f"{found['name']}, {found['status']}, for a disk of {found['diskSizeGb']} GB or more"
    yield row(what, found["status"] == "READY" and fits, detail, IMAGES)


def quotas(asked: Asked) -> Iterator[Row]:
    """For what is to be made. The address is the NAT's: without one it is made, and waits for it."""
    kinds, spec = asked.kinds, asked.spec
    family = spec.machine.type.partition("-")[0]
    cpus = "CPUS" if family in SHARED_QUOTA else f"{family.upper()}_CPUS"
    number = (_any_type(asked) or {"guestCpus": 1})["guestCpus"] * kinds.count("instance")
    regional = {
        cpus: number,
        "INSTANCES": kinds.count("instance"),
        "SSD_TOTAL_GB": spec.machine.disk_gb * kinds.count("disk"),
        "IN_USE_ADDRESSES": kinds.count("router"),
    }
    worldwide = {
        "CPUS_ALL_REGIONS": number,
        "NETWORKS": kinds.count("network"),
        "SUBNETWORKS": kinds.count("subnet"),
        "ROUTERS": kinds.count("router"),
        "FIREWALLS": kinds.count("firewall rule"),
    }
    for place, wanted in {"region": regional, "project": worldwide}.items():
        there = {quota["metric"]: quota for quota in asked[place]["quotas"]}
        for metric, amount in wanted.items():
            if amount:
                region = f" in {spec.region}" if place == "region" else ""
                yield _quota(asked, f"{metric}{region}", amount, there.get(metric))


def _quota(asked: Asked, name: str, amount: int, quota: Json | None) -> Row:
    metric, _, region = name.partition(" in ")
    what, needed = f"quota {name}", metric != "IN_USE_ADDRESSES"
    if quota is None:
        show = f"compute regions describe {region}" if region else "compute project-info describe"
        return Row(what, UNCHECKED, "Google names no such quota", asked.gcloud(show), needed)
    used, limit = quota["usage"], quota["limit"]
    scope = "per-project-region" if region else "per-project"
    repair = asked.gcloud(
        "beta quotas preferences create --service=compute.googleapis.com "
        f"--quota-id={metric.replace('_', '-')}-{scope} --preferred-value={used + amount:.0f}"
        + (f" --dimensions=region={region}" if region else "")
    )
    detail = f"{amount} more, where {used:.0f} of {limit:.0f} are used"
    return row(what, used + amount <= limit, detail, repair, needed=needed)


def cost(asked: Asked) -> Iterator[Row]:
    spec, found = asked.spec, _any_type(asked)
    what = "monthly cost"
    dollars = monthly(spec, found["guestCpus"], found["memoryMb"]) if found else None
    if dollars is None:
        detail = f"no price for {spec.machine.type} in {spec.region}"
        yield Row(what, UNCHECKED, detail, f"See {SOURCE}.", needed=False)
        return
    parts = "machine, disk and NAT" if has_nat(spec) else "machine and disk"
    said = f"about {dollars:.0f} US dollars for {parts}"
    listed = f"list prices as of {prices()['read']}, {SOURCE}"
    yield Row(what, GRANTED, f"{said}; {listed}", needed=False)
