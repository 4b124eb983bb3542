"""Which models of torchvision, timm and others the structure engine prunes, how far, and how exactly.

    python -m benchmarks.coverage            # all of torchvision: benchmarks/results/coverage.md
    python -m benchmarks.coverage --timm     # one or two of each of timm's modules: benchmarks/results/coverage_timm.md
    python -m benchmarks.coverage --others   # see benchmarks/zoo_others.py: benchmarks/results/coverage_others.md
    python -m benchmarks.coverage resnet18   # some: prints their rows

Every model is traced, loses half of the units of every prunable group at random, and is compared with its masked
original in float64; detectors by what their heads put out, since which boxes are chosen says little, or nothing.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from benchmarks.zoo_others import OTHERS
from infoprune.inputs import call_model
from infoprune.structure import check_plan

RESULTS = Path(__file__).parent / "results"
RESULT, TIMM, OTHER = (RESULTS / f"coverage{which}.md" for which in ("", "_timm", "_others"))
TITLES = {
    RESULT: "every torchvision model",
    TIMM: "models of all kinds in timm",
    OTHER: "models of libraries for segmentation, detection and volumes, and of transformers",
}


@dataclass(frozen=True)
class Row:
    """One model's outcome."""

    name: str
    seconds: float
    prunable: int
    frozen: int
    macs: float
    params: float
    error: float

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.seconds:.2f} | {self.prunable} | {self.frozen} | {self.macs:.3f} | "
            f"{self.params:.3f} | {self.error:.0e} |"
        )


HEADER = (
    "| model | trace (s) | prunable groups | frozen | MACs left | parameters left | error |\n"
    "|---|---|---|---|---|---|---|"
)


def output_error(original: nn.Module, pruned: nn.Module, plan: infoprune.PruningPlan, x: Any) -> float:
    """Return the largest error of any output; infinite if there is nothing to compare."""
    checked = infoprune.verify(original, pruned, plan, x)
    with torch.no_grad():
        outputs = [leaf for leaf in tree_leaves(call_model(original.eval(), x)) if isinstance(leaf, Tensor)]
    return checked.max_error if outputs and all(leaf.numel() and leaf.any() for leaf in outputs) else float("inf")


def heads_error(original: nn.Module, pruned: nn.Module, plan: infoprune.PruningPlan, x: Any) -> float:
    """Return the largest error of what a detector's heads put out."""
    inner = infoprune.PruningPlan(
        *({f"detector.{name}": value for name, value in part.items()} for part in (plan.removed, plan.shapes)),
        {f"detector.{name}": value for name, value in plan.attributes.items()},
        tuple(f"detector.{name}" for name in plan.caches),
    )
    return output_error(zoo.Heads(original), zoo.Heads(pruned), inner, x)


def measure(name: str) -> Row:
    """Trace, cut half of every group, verify."""
    model, x = zoo.build(name), zoo.inputs(name)
    start = time.perf_counter()
    structure = infoprune.trace(model, x)
    seconds = time.perf_counter() - start
    generator = np.random.default_rng(0)
    removed = {g.name: generator.choice(g.size, g.size // 2, replace=False).tolist() for g in structure.prunable}
    plan = structure.plan(removed)
    check_plan(model, x, structure, plan)
    original = copy.deepcopy(model)
    infoprune.shrink(model, plan)
    macs, params = structure.cost_of(plan).ratio(structure.cost())
    error = (heads_error if zoo.is_detector(name) else output_error)(original, model, plan, x)
    prunable = len(structure.prunable)
    return Row(name, seconds, prunable, len(structure.groups) - prunable, macs, params, error)


def write(rows: list[Row], path: Path) -> None:
    """Write a table of all models."""
    option = {TIMM: " --timm", OTHER: " --others"}.get(path, "")
    lines = [
        f"# Structure engine: {TITLES[path]}",
        "",
        f"`python -m benchmarks.coverage{option}`, {describe()}. Half of the units of every",
        "prunable group were removed at random; `error` is the largest difference from the masked original in float64,",
        f"relative to the output{'; of detectors: what their heads put out' * (path == RESULT)}.",
        "",
        HEADER,
        *map(str, rows),
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure the models named, or all of a library into the results folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of torchvision, or LIBRARY/NAME; left out: all")
    parser.add_argument("--timm", action="store_true", help="all of timm's that are in the table")
    parser.add_argument("--others", action="store_true", help="all of other libraries' that are in the table")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    print(HEADER, flush=True)
    path = TIMM if options.timm else OTHER if options.others else RESULT
    for name in options.names or {TIMM: zoo.TIMM, OTHER: list(OTHERS)}.get(path) or zoo.names():
        rows.append(measure(name))
        print(rows[-1], flush=True)
    if not options.names:
        write(rows, path)


if __name__ == "__main__":
    main()
