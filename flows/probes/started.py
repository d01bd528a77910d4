"""Wait until a unit answers, or say why it does not.

Arguments: unit, URL (empty: only stay up), seconds. Exit 0 when it does; 1 with the end of its
journal on stderr when it crashed twice or the time has passed. Standard library only.
"""

import subprocess
import sys
import time
import urllib.error
import urllib.request

CRASHES = 2
"""Restarts that make a crash loop; one may be a database that was not there yet."""
STEADY = 1.0
"""Seconds that a unit without a URL must have been up."""
LINES = "60"
JUST_NOW = 2.0
"""Seconds since the start that we were called after."""


def shown(unit: str) -> dict[str, str]:
    """What systemd says of the unit."""
    properties = "--property=ActiveState,SubState,NRestarts,InvocationID"
    output = subprocess.run(
        ["systemctl", "show", properties, unit], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.partition("=")[::2] for line in output.splitlines())


def answers(url: str) -> bool:
    """Whether a GET gets a good answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http, on loopback
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main(unit: str, url: str, seconds: float) -> int:
    """The exit status."""
    deadline, since, invocation = time.monotonic() + seconds, time.monotonic(), ""
    began = f"--since=@{time.time() - JUST_NOW:.0f}"
    while True:
        state = shown(unit)
        if state["InvocationID"] != invocation or state["SubState"] != "running":
            since, invocation = time.monotonic(), state["InvocationID"]
        elif answers(url) if url else time.monotonic() - since >= STEADY:
            return 0
        crashed = int(state["NRestarts"]) >= CRASHES or state["ActiveState"] == "failed"
        if crashed or time.monotonic() > deadline:
            what = "crashes again and again" if crashed else f"does not answer in {seconds:.0f} s"
            journal = ["journalctl", "--unit", unit, began, "--lines", LINES, "--output", "cat"]
            output = subprocess.run(journal, capture_output=True, text=True, check=False).stdout
            sys.stderr.write(f"{output.strip()}\n{unit} {what}; its journal is above.\n")
            return 1
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
