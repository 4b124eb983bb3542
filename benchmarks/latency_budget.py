"""Are budgets of measured time met? Networks pruned to shares of their latency here, and measured again.

`reached` is what pruning itself measured when it chose the widths; `again` are three measurements of the pruned net
against the original afterwards, which know nothing of each other. Run from the repository root, on a machine that does
nothing else (five minutes):

    python -m benchmarks.latency_budget       # writes benchmarks/results/latency_budget.md
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from infoprune.allocation.latency import paired_ratios
from infoprune.models import CifarResNet

RESULTS = Path(__file__).parent / "results" / "latency_budget.md"
BUDGETS = (0.8, 0.6, 0.5)
REPEATS = 15


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Name -> a network and what it is timed on."""
    return {
        "ResNet-20, 32 images of 32 x 32": (CifarResNet(depth=20).eval(), torch.randn(32, 3, 32, 32)),
        "MobileNetV2, 1 image of 224 x 224": (zoo.build("mobilenet_v2").eval(), torch.randn(1, 3, 224, 224)),
    }


def row(name: str, network: nn.Module, images: torch.Tensor, budget: float) -> str:
    """One line of the table."""
    pruned = copy.deepcopy(network)
    start = time.perf_counter()
    result = infoprune.prune(pruned, images, "l1", latency=budget)
    seconds = time.perf_counter() - start
    again = [statistics.median(paired_ratios(pruned, network, images, REPEATS)) for _ in range(3)]
    macs = result.after.macs / result.before.macs
    return (
        f"| {name} | {budget} | {result.latency:.3f} | {', '.join(f'{share:.3f}' for share in again)} | {macs:.3f} | "
        f"{seconds:.0f} |"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "# Budgets of measured time",
        "",
        f"`python -m benchmarks.latency_budget` on {describe()}. Shares of the original's time; `infoprune.prune(...,",
        '"l1", latency=budget)`, then three measurements more. `seconds`: of the whole call.',
        "",
        "| network | budget | reached | measured again | MACs left | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, (network, images) in networks().items():
        for budget in BUDGETS:
            lines.append(row(name, network, images, budget))
            print(lines[-1], flush=True)
            RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
