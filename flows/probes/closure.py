"""How an environment differs from its lock, a line each: ``name version (locked: version)``.

Run by the environment's own interpreter; stdin has the lock's ``name==version``, the arguments are
distributions that may be there besides. Standard library only.
"""

import re
import sys
from importlib.metadata import distributions

SHOWN = 5
"""Lines at most; one more counts the rest."""


def canonical(name: str) -> str:
    """A name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def deviations(locked: dict[str, str], installed: dict[str, str], others: set[str]) -> list[str]:
    """Distributions that are missing, of another version, or not in the lock."""
    names = sorted({*locked, *installed} - others)
    lines = [
        f"{name} {installed.get(name, 'missing')} ({_of_lock(locked.get(name))})"
        for name in names
        if installed.get(name) != locked.get(name)
    ]
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], f"and {more} more"] if more > 0 else lines


def _of_lock(version: str | None) -> str:
    return f"locked: {version}" if version else "not in the lock"


if __name__ == "__main__":
    lock = dict(line.split("==") for line in sys.stdin.read().split())
    # One whose metadata is gone has no name; the lock's names tell that it is missing.
    found = {canonical(each.name): each.version for each in distributions() if each.name}
    for line in deviations(lock, found, set(sys.argv[1:])):
        print(line)
