"""Names, addresses and paths of the rehearsal, in one place."""

import os
from pathlib import Path
from typing import Final


def _number() -> int:
    text = os.environ.get("REHEARSAL") or "1"
    if text not in tuple("123456789"):
        raise SystemExit(f"REHEARSAL={text}: write the number of a cloud, from 1 to 9")
    return int(text)


NUMBER: Final = _number()
"""Clouds of other numbers run beside this one, and nothing of theirs is touched."""
NAME: Final = "rehearsal" if NUMBER == 1 else f"rehearsal{NUMBER}"
"""What everything of this cloud is named after on the host."""
TITLE: Final = "the rehearsal cloud" if NUMBER == 1 else f"the rehearsal cloud {NUMBER}"
STATE: Final = Path(f"/run/{NAME}")
"""Everything of a running cloud but its disks; gone after ``down``."""
DISKS: Final = Path(f"/var/lib/{NAME}")
"""Machines' disks and mounts; gone after ``down``."""
CACHE: Final = Path("/var/cache/rehearsal")
"""The machine image and the laptop's empty database, for all clouds; kept until ``down --image``."""
CONTROL: Final = STATE / "control.sock"
LOG: Final = STATE / "requests.jsonl"
NAMESPACE: Final = f"{NAME}-"
"""Prefix of every network namespace."""

PROJECT: Final = "rehearsal"
HOST_PROJECT: Final = "rehearsal-host"
"""Has the networks of a shared VPC, when somebody makes some there."""
PROJECT_NUMBER: Final = "314159265358"
REGION: Final = "us-central1"
ZONE: Final = "us-central1-a"
ACCOUNT: Final = f"bootstrap@{PROJECT}.iam.gserviceaccount.com"

FRONT: Final = f"127.83.{NUMBER - 1}.1"
SECRETS_FRONT: Final = f"127.83.{NUMBER - 1}.2"
"""Secret Manager has an address of its own: it speaks gRPC and REST on one port."""
HOSTS: Final = {
    "compute.googleapis.com": FRONT,
    "www.googleapis.com": FRONT,
    "oauth2.googleapis.com": FRONT,
    "iam.googleapis.com": FRONT,
    "iamcredentials.googleapis.com": FRONT,
    "cloudresourcemanager.googleapis.com": FRONT,
    "serviceusage.googleapis.com": FRONT,
    "tunnel.cloudproxy.app": FRONT,
    "secretmanager.googleapis.com": SECRETS_FRONT,
}

METADATA: Final = "169.254.169.254"
IAP_RANGE: Final = "35.235.240.0/20"
IAP_SOURCE: Final = "35.235.240.1"
EXTERNAL_RANGE: Final = "198.51.100.0/24"
"""External addresses are taken from a documentation range; nothing routes there."""
DATABASE: Final = "10.104.120.4"
DATABASE_NAME: Final = "prefect-db"
DATABASE_ROLE: Final = "prefect"

SERVER_PORT: Final = 4100 + 100 * NUMBER
LAPTOP_PORT: Final = SERVER_PORT + 10
"""Where the Prefects of the laptop and of the new server are on loopback, if these are free."""
