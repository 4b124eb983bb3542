"""How much faster fewer MACs make a model, measured: ResNet-50, MobileNetV2 and VGG-16 at 50 and 30 % of their MACs.

Widths are cut alike in every layer and rounded to multiples of 1, 8 and 16, side by side. The original and all its
pruned copies take turns, so that all see the same weather; a speed-up is the median over the rounds of the original's
time over the pruned one's. Run from the repository root, on a machine that does nothing else (under 8 minutes on two
cores):

    python -m benchmarks.speedup                 # writes benchmarks/results/speedup.md
    python -m benchmarks.speedup --device cuda   # ... and speedup_cuda.md there
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

import infoprune
from benchmarks.machine import describe
from infoprune.speed import Speed, side_by_side

RESULTS = Path(__file__).parent / "results"
MODELS = {"ResNet-50": "resnet50", "MobileNetV2": "mobilenet_v2", "VGG-16": "vgg16"}
BUDGETS = (0.5, 0.3)
ROUND_TO = (1, 8, 16)
BATCHES = (1, 32)
MOST_ROUNDS = 30


@dataclass(frozen=True)
class Row:
    """One pruned model at one batch size."""

    model: str
    keep: float
    round_to: int
    batch: int
    macs: float
    original: Speed
    pruned: Speed

    @property
    def speedup(self) -> float:
        return self.pruned.times_as_fast_as(self.original)

    @property
    def gain(self) -> float:
        """The share of the ideal gain that is realised."""
        return (self.speedup - 1) / (1 / self.macs - 1)

    def __str__(self) -> str:
        ratios = [a / b for a, b in zip(self.original.seconds, self.pruned.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        return (
            f"| {self.model} | {self.batch} | {100 * self.keep:.0f} % | {self.round_to} | {100 * self.macs:.1f} % | "
            f"{1e3 * self.original.median:.1f} ms | {1e3 * self.pruned.median:.1f} ms | {1 / self.macs:.2f} × | "
            f"**{self.speedup:.2f} ×** ({low:.2f}–{high:.2f}) | {100 * self.gain:.0f} % |"
        )


HEADER = (
    "| model | batch | budget | round_to | MACs left | original | pruned | ideal | measured (quartiles) | "
    "of the ideal gain |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def pruned_copies(model: nn.Module, images: torch.Tensor) -> dict[tuple[float, int], nn.Module]:
    """The model at every budget and rounding."""
    copies = {}
    for keep in BUDGETS:
        for round_to in ROUND_TO:
            copies[keep, round_to] = copy.deepcopy(model)
            infoprune.prune(copies[keep, round_to], images, "l1", macs=keep, round_to=round_to)
    return copies


def rows_of(name: str, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one model."""
    model = torchvision.models.get_model(MODELS[name], weights=None).eval().to(device)
    images = torch.randn(max(BATCHES), 3, 224, 224, device=device)
    copies = pruned_copies(model, images[:1])
    left = {key: infoprune.trace(small, images[:1]).cost().macs for key, small in copies.items()}
    whole = infoprune.trace(model, images[:1]).cost().macs
    named = {"original": model, **{str(key): small for key, small in copies.items()}}
    for batch in BATCHES:
        start = time.perf_counter()
        side_by_side(named, images[:batch], repeats=1, warmup=1, memory=False)
        round_s = (time.perf_counter() - start) / 2
        rounds = int(min(MOST_ROUNDS, max(3, seconds / round_s)))
        speeds = side_by_side(named, images[:batch], rounds, warmup=0, memory=False)
        for (keep, round_to), macs in left.items():
            speed = speeds[str((keep, round_to))]
            yield Row(name, keep, round_to, batch, macs / whole, speeds["original"], speed)


def what_it_says(rows: list[Row]) -> list[str]:
    """The evidence for defaults, in words."""
    lines = []
    for batch in BATCHES:
        gains = {
            round_to: statistics.median(row.gain for row in rows if (row.batch, row.round_to) == (batch, round_to))
            for round_to in ROUND_TO
        }
        listed = ", ".join(f"{100 * gain:.0f} % with round_to={round_to}" for round_to, gain in gains.items())
        lines.append(f"- Batch {batch}: the median share of the ideal gain that is realised is {listed}.")
    for name in MODELS:
        mine = [row for row in rows if row.model == name]
        worst, best = min(mine, key=lambda row: row.gain), max(mine, key=lambda row: row.gain)
        lines.append(
            f"- {name}: from {100 * worst.gain:.0f} % of the ideal gain (batch {worst.batch}, "
            f"round_to={worst.round_to}) to {100 * best.gain:.0f} % (batch {best.batch}, round_to={best.round_to})."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seconds", type=float, default=15, help="how long to measure a model at one batch size")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, help="file to write instead of that in benchmarks/results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    rows: list[Row] = []
    print(HEADER, flush=True)
    for name in options.models:
        for row in rows_of(name, torch.device(options.device), options.seconds):
            rows.append(row)
            print(row, flush=True)
    command = f"python -m benchmarks.speedup{'' if options.device == 'cpu' else f' --device {options.device}'}"
    rounds = sorted({len(row.pruned.seconds) for row in rows})
    text = [
        f"`{command}` on {describe()};",
        f"load average when it began: {load:.1f}. Images of 224 × 224, widths cut alike in every layer,",
        f"{rounds[0]} to {rounds[-1]} rounds. *Ideal* is what the MACs alone would give.",
        "",
        HEADER,
        *map(str, rows),
        "",
        *(what_it_says(rows) if set(options.models) == set(MODELS) else []),
    ]
    suffix = "" if options.device == "cpu" else f"_{torch.device(options.device).type}"
    out = options.out or RESULTS / f"speedup{suffix}.md"
    out.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
