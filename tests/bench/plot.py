"""``python -m tests.bench.plot bench.json bench.svg``: every round of every tool, and its median."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "bench"  # the same picture of the same figures
from matplotlib import pyplot as plt  # noqa: E402 - after its backend is chosen

PANELS = {"first": "first bootstrap", "again": "nothing to do", "check": "only look"}
OURS = "#2563eb"


def plot(found: dict[str, Any], file: Path) -> None:
    """Seconds, near and 60 ms away; ours in colour."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    for axis, (what, title) in zip(axes, PANELS.items(), strict=True):
        bars = [
            (f"{who}, far" if where == "far" else who, times[what])
            for where in ("near", "far")
            for who, times in sorted(found[where].items(), key=lambda item: item[0] != "ours")
            if what in times
        ]
        names = [name for name, _ in bars]
        colours = [OURS if name.startswith("ours") else "#cbd5e1" for name in names]
        axis.barh(names, [median(times) for _, times in bars], color=colours)
        for name, times in bars:
            axis.plot(times, [name] * len(times), "k|", markersize=6)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="seconds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{found['date']}, {found['rounds']} rounds: medians, and each one", fontsize=9)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
