"""What exists before anybody asks: regions, zones, machine types, disk types, images, quotas.

Figures from https://cloud.google.com/compute/docs/general-purpose-machines and
https://cloud.google.com/vpc/docs/subnets (ranges of auto mode networks).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rehearsal.errors import Json
from rehearsal.store import Store, link, now

REGIONS: Final = {
    "us-central1": ("10.128.0.0/20", "abcf"),
    "europe-west1": ("10.132.0.0/20", "bcd"),
    "us-east1": ("10.142.0.0/20", "bcd"),
}
MACHINE_TYPES: Final = {
    "e2-micro": (2, 1024),
    "e2-small": (2, 2048),
    "e2-medium": (2, 4096),
    "e2-standard-2": (2, 8192),
    "e2-standard-4": (4, 16384),
    "n1-standard-1": (1, 3840),
    "n2-standard-2": (2, 8192),
}
"""Name → (vCPUs, memory in MiB)."""
DISK_TYPES: Final = ("pd-standard", "pd-balanced", "pd-ssd")
IMAGE: Final = "projects/debian-cloud/global/images/debian-12-bookworm-v20261110"
FAMILIES: Final = (
    "projects/debian-cloud/global/images/family/debian-12",
    "projects/debian-cloud/zones/-/imageFamilyViews/debian-12",
)
"""Both names of the image's family; gcloud uses the second."""
QUOTAS: Final = {
    "CPUS": 24.0,
    "N2_CPUS": 24.0,
    "INSTANCES": 24.0,
    "IN_USE_ADDRESSES": 8.0,
    "STATIC_ADDRESSES": 8.0,
    "DISKS_TOTAL_GB": 4096.0,
    "SSD_TOTAL_GB": 500.0,
}
"""Regional limits of a new project."""
GLOBAL_QUOTAS: Final = {"CPUS_ALL_REGIONS": 32.0, "NETWORKS": 5.0, "SUBNETWORKS": 100.0,
                        "FIREWALLS": 100.0, "ROUTERS": 20.0, "SNAPSHOTS": 1000.0}  # fmt: skip


def stock(store: Store, project: str) -> None:
    """Put the inventory of a project into the store."""
    for region, (_, letters) in REGIONS.items():
        place = f"projects/{project}/regions/{region}"
        zones = [f"projects/{project}/zones/{region}-{letter}" for letter in letters]
        _put(store, place, "compute#region", status="UP", zones=[link(z) for z in zones])
        for zone in zones:
            _put(store, zone, "compute#zone", status="UP", region=link(place))
            for name, (cpus, memory) in MACHINE_TYPES.items():
                _put(
                    store,
                    f"{zone}/machineTypes/{name}",
                    "compute#machineType",
                    guestCpus=cpus,
                    memoryMb=memory,
                    zone=zone.rpartition("/")[2],
                    architecture="X86_64",
                    isSharedCpu=name in ("e2-micro", "e2-small", "e2-medium"),
                    description=f"{cpus} vCPUs, {memory / 1024:g} GB RAM",
                )
            for name in DISK_TYPES:
                _put(store, f"{zone}/diskTypes/{name}", "compute#diskType", zone=link(zone),
                     validDiskSize="10GB-65536GB", defaultDiskSizeGb="100")  # fmt: skip
    _put(
        store,
        IMAGE,
        "compute#image",
        family="debian-12",
        status="READY",
        diskSizeGb="10",
        architecture="X86_64",
        sourceType="RAW",
        archiveSizeBytes="340000000",
        description="Debian, Debian GNU/Linux, 12 (bookworm), amd64",
        guestOsFeatures=[{"type": "UEFI_COMPATIBLE"}, {"type": "VIRTIO_SCSI_MULTIQUEUE"}],
        licenses=[link("projects/debian-cloud/global/licenses/debian-12-bookworm")],
    )


def quotas(limits: dict[str, float], usage: dict[str, float]) -> list[Json]:
    """The quotas that ``usage`` has a number for."""
    return [
        {"metric": metric, "limit": limits[metric], "usage": used} for metric, used in usage.items()
    ]


def regional_usage(store: Store, region: str) -> dict[str, float]:
    """What the instances, disks and addresses of a region use, by quota metric."""
    here = [i for i in store.every("instances") if f"/zones/{region}-" in i["selfLink"]]
    running = [i for i in here if i["status"] != "TERMINATED"]
    types = [store.get(i["machineType"]) or {} for i in running]
    n2 = [t for t in types if t.get("name", "").startswith("n2-")]
    disks = [d for d in store.every("disks") if f"/zones/{region}-" in d["selfLink"]]
    addresses = [a for a in store.every("addresses") if f"/regions/{region}/" in a["selfLink"]]
    return {
        "CPUS": _sum(t.get("guestCpus", 0) for t in types if t not in n2),
        "N2_CPUS": _sum(t.get("guestCpus", 0) for t in n2),
        "INSTANCES": float(len(here)),
        "IN_USE_ADDRESSES": _sum(
            len(nic.get("accessConfigs", ())) for i in here for nic in i["networkInterfaces"]
        ),
        "STATIC_ADDRESSES": float(len(addresses)),
        "DISKS_TOTAL_GB": _gb(disks, solid=False),
        "SSD_TOTAL_GB": _gb(disks, solid=True),
    }


def global_usage(store: Store, project: str) -> dict[str, float]:
    regions = [regional_usage(store, region) for region in REGIONS]
    cpus = _sum(usage["CPUS"] + usage["N2_CPUS"] for usage in regions)
    counted = [metric for metric in GLOBAL_QUOTAS if metric != "CPUS_ALL_REGIONS"]
    return {"CPUS_ALL_REGIONS": cpus} | {
        metric: float(len(list(store.every(metric.lower(), project)))) for metric in counted
    }


def _gb(disks: list[Json], *, solid: bool) -> float:
    """Of balanced and SSD disks, or of the others."""
    standard = [disk["type"].endswith("/pd-standard") for disk in disks]
    return _sum(
        int(d["sizeGb"])
        for d, is_standard in zip(disks, standard, strict=True)
        if is_standard != solid
    )


def _sum(numbers: Iterable[float]) -> float:
    return float(sum(numbers))


def _put(store: Store, path: str, kind: str, **members: object) -> None:
    store.put(
        path,
        {
            "kind": kind,
            "id": store.new_id(),
            "name": path.rpartition("/")[2],
            "selfLink": link(path),
            "creationTimestamp": now(),
            **members,
        },
    )
