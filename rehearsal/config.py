"""Names, addresses and paths of the rehearsal, in one place."""

from pathlib import Path
from typing import Final

STATE: Final = Path("/run/rehearsal")
"""Everything of a running cloud but its disks; gone after ``down``."""
DISKS: Final = Path("/var/lib/rehearsal")
"""Machines' disks and mounts; gone after ``down``."""
CACHE: Final = Path("/var/cache/rehearsal")
"""The machine image and the laptop's empty database; kept until ``down --image``."""
CONTROL: Final = STATE / "control.sock"
LOG: Final = STATE / "requests.jsonl"
NAMESPACE: Final = "rehearsal-"
"""Prefix of every network namespace."""

PROJECT: Final = "rehearsal"
PROJECT_NUMBER: Final = "314159265358"
REGION: Final = "us-central1"
ZONE: Final = "us-central1-a"
ACCOUNT: Final = f"bootstrap@{PROJECT}.iam.gserviceaccount.com"

FRONT: Final = "127.83.0.1"
SECRETS_FRONT: Final = "127.83.0.2"
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

LAPTOP_PORT: Final = 4210
SERVER_PORT: Final = 4200
"""Where the Prefects of the laptop and of the new server are on loopback, if these are free."""
