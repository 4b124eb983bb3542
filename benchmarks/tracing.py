"""Tracing alone: how long it takes to find the channel groups of torchvision's classifiers and of detectors.

    python -m benchmarks.tracing                  # writes benchmarks/results/tracing.md
    python -m benchmarks.tracing swin_v2_b        # some of them

Every model has a process of its own, as in a program that prunes one; a net of two layers is traced first, so that no
import is counted. Weights have no values, which a trace on shapes does not look at; those of detectors have, since
which boxes they choose decides what they run. Times are processor time of one thread: of the first trace, and the
median and fastest of ten (detectors: five). Beside detectors, the time of Torch-Pruning's graph building
(`DependencyGraph.build_dependency`) on the same input, or the error that it ends with; "does not end": not in two
minutes, nor with the memory of the machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from benchmarks.zoo_others import OTHERS

RESULT = Path(__file__).parent / "results" / "tracing.md"
RUNS, DETECTOR_RUNS = 10, 5
LIMIT_S = 120
UNENDING = "does not end"
HEADER = "| model | operators | first (s) | median (s) | fastest (s) |\n|---|---|---|---|---|"
DETECTOR_HEADER = (
    "| detector | operators | first (s) | median (s) | fastest (s) | Torch-Pruning (s) |\n|---|---|---|---|---|---|"
)
DETECTORS = [
    *(name for name in zoo.names() if zoo.is_detector(name)),
    *(name for name in OTHERS if name.partition("/")[0] == "ultralytics"),
]


def traced(name: str) -> str:
    """Return a model's number of operators and the seconds of each trace; runs in a process of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    infoprune.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8))
    with nullcontext() if name in DETECTORS else zoo.without_values():
        model = zoo.build(name)
    x = zoo.inputs(name)
    seconds = []
    for _ in range(DETECTOR_RUNS if name in DETECTORS else RUNS):
        start = time.process_time()
        structure = infoprune.trace(model, x)
        seconds.append(time.process_time() - start)
    return " ".join(map(str, [len(structure.records), *seconds]))


def graph_built(name: str) -> str:
    """Return the seconds that Torch-Pruning takes to build its graph, or the error; runs in a process of its own."""
    import torch_pruning

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model, x = zoo.build(name), zoo.inputs(name)
    start = time.process_time()
    try:
        torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    except Exception as error:  # the peer's failures are results
        return type(error).__name__
    return f"{time.process_time() - start:.3f}"


def alone(figure: Callable[[str], str], name: str) -> str:
    """Take a figure of a model in a process of its own."""
    code = f"from benchmarks.tracing import {figure.__name__}; print({figure.__name__}({name!r}))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return UNENDING
    if done.returncode < 0:  # killed, as for memory
        return UNENDING
    done.check_returncode()
    return done.stdout.splitlines()[-1]


def table(names: list[str]) -> tuple[list[str], str]:
    """Measure some models, print rows as they come, and return them with the slowest times."""
    lines, slowest = [], [0.0, 0.0, 0.0]
    for name in names:
        found = alone(traced, name)
        if found == UNENDING:
            raise TimeoutError(f"{name} was not traced within {LIMIT_S} s, or killed")
        operators, *words = found.split()
        seconds = [float(word) for word in words]
        figures = [seconds[0], statistics.median(seconds), min(seconds)]
        slowest = [max(pair) for pair in zip(slowest, figures, strict=True)]
        peer = f" {alone(graph_built, name)} |" if name in DETECTORS else ""
        lines.append(f"| {name} | {operators} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |" + peer)
        print(lines[-1], flush=True)
    return lines, f"first {slowest[0]:.2f} s, median {slowest[1]:.2f} s, fastest {slowest[2]:.2f} s"


def main(names: list[str]) -> None:
    """Measure the models named, or all, and write the tables when all were run."""
    if names:
        table(names)
        return
    classifiers, slowest = table(zoo.names("classification"))
    detectors, slowest_detectors = table(DETECTORS)
    head = [
        "# Tracing alone",
        "",
        f"`python -m benchmarks.tracing`, {describe()}. Slowest classifier: {slowest}. Slowest detector: ",
        f"{slowest_detectors}.",
        "",
        str(__doc__).rpartition("\n\n")[2].strip(),
        "",
    ]
    lines = [*head, HEADER, *classifiers, "", "## Detectors", "", DETECTOR_HEADER, *detectors]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
