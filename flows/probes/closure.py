"""What an environment has that its lock does not say, a line each: ``name version``.

Run by the environment's own interpreter; stdin has the lock's ``name==version``, the arguments are
distributions that may be there besides. Standard library only.
"""

import re
import sys
from importlib.metadata import distributions


def canonical(name: str) -> str:
    """A name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def deviations(locked: dict[str, str], installed: dict[str, str], others: set[str]) -> list[str]:
    """Distributions that are missing, of another version, or not in the lock."""
    names = sorted({*locked, *installed} - others)
    return [
        f"{name} {installed.get(name, 'missing')}"
        for name in names
        if installed.get(name) != locked.get(name)
    ]


if __name__ == "__main__":
    lock = dict(line.split("==") for line in sys.stdin.read().split())
    found = {canonical(each.name): each.version for each in distributions()}
    for line in deviations(lock, found, set(sys.argv[1:])):
        print(line)
