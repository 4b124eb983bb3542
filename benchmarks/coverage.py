"""Which torchvision models the structure engine prunes, how far, and how exactly.

    python -m benchmarks.coverage            # all models: benchmarks/results/coverage.md
    python -m benchmarks.coverage resnet18   # some: prints their rows

Every model is traced, loses half of the units of every prunable group at random, and is compared with its masked
original in float64; detectors by what their heads put out, since which boxes are chosen says little, or nothing.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from infoprune.structure import check_plan

RESULT = Path(__file__).parent / "results" / "coverage.md"


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
    """The largest error of any output; infinite if there is nothing to compare."""
    checked = infoprune.verify(original, pruned, plan, x)
    with torch.no_grad():
        outputs = tree_leaves(original.eval()(*x) if isinstance(x, tuple) else original.eval()(x))
    return checked.max_error if all(leaf.numel() and leaf.any() for leaf in outputs) else float("inf")


def heads_error(original: nn.Module, pruned: nn.Module, plan: infoprune.PruningPlan, x: Any) -> float:
    """The same of a detector's heads."""
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


def main(names: list[str]) -> None:
    """Measure the models named, or all of them into the results folder."""
    torch.manual_seed(0)
    rows = []
    print(HEADER, flush=True)
    for name in names or zoo.names():
        rows.append(measure(name))
        print(rows[-1], flush=True)
    if not names:
        lines = [
            "# Structure engine: every torchvision model",
            "",
            f"`python -m benchmarks.coverage`, {describe()}. Half of the units of every prunable group were removed at",
            "random; `error` is the largest difference from the masked original in float64, relative to the output;",
            "of detectors: what their heads put out.",
            "",
            HEADER,
            *map(str, rows),
        ]
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
