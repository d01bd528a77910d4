"""What a machine has left, and what has gone wrong on it, as one JSON object.

Arguments: units, and perhaps an https URL whose certificate is looked at. Needs no root; standard
library only. What could not be told is in ``<figure> error`` instead.
"""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECONDS = 10.0
NO_SYNC = "Not synchronised"


def disk() -> dict[str, Any]:
    """Percent free; a file system that makes inodes as it needs them has none to run out of."""
    found = os.statvfs("/")
    inodes = 100 * found.f_favail / found.f_files if found.f_files else 100.0
    return {"disk": 100 * found.f_bavail / found.f_blocks, "inodes": inodes}


def memory() -> dict[str, Any]:
    """Percent available."""
    lines = Path("/proc/meminfo").read_text()
    kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+)", lines, re.M)}
    return {"memory": 100 * kilobytes["MemAvailable"] / kilobytes["MemTotal"]}


def load() -> dict[str, Any]:
    """For each CPU, over 15 minutes."""
    return {"load": os.getloadavg()[2] / (os.cpu_count() or 1)}


def kills() -> dict[str, Any]:
    """Processes that the kernel has killed for memory, since it was started."""
    found = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.M)
    if found is None:
        raise ValueError("/proc/vmstat has no oom_kill")
    return {"kills": int(found[1])}


def clock() -> dict[str, Any]:
    """Seconds off, as chrony says where it runs; "" where nobody keeps the time."""
    try:
        fields = _output("chronyc", "-c", "-n", "tracking").strip().split(",")
    except (OSError, subprocess.CalledProcessError):
        return {"clock": ""}
    return {"clock": NO_SYNC if fields[13] == NO_SYNC else abs(float(fields[4]))}


def units(names: list[str]) -> dict[str, Any]:
    """Units that have failed, and how often systemd has restarted each of ours."""
    failed = _output("systemctl", "list-units", "--state=failed", "--plain", "--no-legend")
    found: dict[str, Any] = {"failed": [line.split()[0] for line in failed.splitlines()]}
    shown = _output("systemctl", "show", "--property=Id,NRestarts", *names)
    for block in shown.strip().split("\n\n"):
        unit = dict(line.partition("=")[::2] for line in block.splitlines())
        found[f"restarts of {unit['Id']}"] = int(unit["NRestarts"])
    return found


def certificate(url: str) -> dict[str, Any]:
    """Days that it is valid; 0 when it is not trusted, or no more."""
    where = urlsplit(url)
    address = (where.hostname or "", where.port or 443)
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection(address, SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=where.hostname) as secure,
        ):
            found: Any = secure.getpeercert()
    except ssl.SSLCertVerificationError as error:
        return {"certificate": 0.0, "certificate fault": error.verify_message}
    return {"certificate": (ssl.cert_time_to_seconds(found["notAfter"]) - time.time()) / 86400}


def _output(*argv: str) -> str:
    return subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL
    ).stdout


def main(*arguments: str) -> None:
    url = [each for each in arguments if each.startswith("https://")]
    names = [each for each in arguments if each not in url]
    looks: dict[str, Any] = {
        "disk": disk, "memory": memory, "load": load, "kills": kills, "clock": clock,
        "units": lambda: units(names),
    }  # fmt: skip
    if url:
        looks["certificate"] = lambda: certificate(url[0])
    found: dict[str, Any] = {}
    for name, look in looks.items():
        try:
            found |= look()
        except Exception as error:  # noqa: BLE001 - whatever it is, only this could not be told
            said = getattr(error, "stderr", None) or error
            found[f"{name} error"] = f"{type(error).__name__}: {said}".strip()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
