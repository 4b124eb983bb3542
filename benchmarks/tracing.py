"""Tracing alone: how long it takes to find the channel groups of every torchvision classifier.

    python -m benchmarks.tracing                  # writes benchmarks/results/tracing.md
    python -m benchmarks.tracing swin_v2_b        # some of them

Every model has a process of its own, as in a program that prunes one; a net of two layers is traced first, so that no
import is counted. Weights have no values, which a trace on shapes does not look at. Times are processor time of one
thread: of the first trace, and the median and fastest of ten.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe

RESULT = Path(__file__).parent / "results" / "tracing.md"
RUNS = 10
HEADER = "| model | operators | first (s) | median (s) | fastest (s) |\n|---|---|---|---|---|"


def traced(name: str) -> str:
    """Return a model's number of operators and the seconds of each trace; runs in a process of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    infoprune.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8))
    with zoo.without_values():
        model = zoo.build(name)
    x = zoo.inputs(name)
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        structure = infoprune.trace(model, x)
        seconds.append(time.process_time() - start)
    return " ".join(map(str, [len(structure.records), *seconds]))


def row(name: str) -> tuple[str, str, list[float]]:
    """Measure one model in a process of its own: name, number of operators, seconds."""
    code = f"from benchmarks.tracing import traced; print(traced({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    operators, *seconds = done.stdout.splitlines()[-1].split()
    return name, operators, [float(value) for value in seconds]


def main(names: list[str]) -> None:
    """Print rows as they come, and write the table when all classifiers were run."""
    lines, slowest = [], [0.0, 0.0, 0.0]
    for name in names or zoo.names("classification"):
        name, operators, seconds = row(name)
        figures = [seconds[0], statistics.median(seconds), min(seconds)]
        slowest = [max(pair) for pair in zip(slowest, figures, strict=True)]
        lines.append(f"| {name} | {operators} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
        print(lines[-1], flush=True)
    summary = f"Slowest: first {slowest[0]:.2f} s, median {slowest[1]:.2f} s, fastest {slowest[2]:.2f} s."
    print(summary)
    if not names:
        about = str(__doc__).rpartition("\n\n")[2].strip()
        head = [
            "# Tracing alone",
            "",
            f"`python -m benchmarks.tracing`, {describe()}. {summary}",
            "",
            about,
            "",
            HEADER,
        ]
        RESULT.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
