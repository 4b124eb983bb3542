"""How much faster fewer MACs make a model, measured: ResNet-50, MobileNetV2 and VGG-16 at 50 and 30 % of their MACs.

Widths are cut alike in every layer and rounded to multiples of 1, 8 and 16, side by side. The original and all its
pruned copies take turns, so that all see the same weather; a speed-up is the median over the rounds of the original's
time over the pruned one's. Run from the repository root, on a machine that does nothing else (a quarter of an hour):

    python -m benchmarks.speedup                         # writes benchmarks/results/speedup.json and speedup.md
    python -m benchmarks.speedup --models VGG-16 --batches 1   # measures these anew and keeps the other rows
    python -m benchmarks.speedup --models                # only writes the table anew
    python -m benchmarks.speedup --device cuda           # speedup_cuda.json and speedup_cuda.md
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

import infoprune
from benchmarks.machine import describe
from infoprune.speed import side_by_side

RESULTS = Path(__file__).parent / "results"
MODELS = {"ResNet-50": "resnet50", "MobileNetV2": "mobilenet_v2", "VGG-16": "vgg16"}
BUDGETS = (0.5, 0.3)
ROUND_TO = (1, 8, 16)
BATCHES = (1, 32)
MOST_ROUNDS = 30


@dataclass(frozen=True)
class Row:
    """One pruned model at one batch size; seconds of each round."""

    model: str
    keep: float
    round_to: int
    batch: int
    macs: float
    original: list[float]
    pruned: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.original, self.pruned, strict=True)]

    @property
    def speedup(self) -> float:
        return statistics.median(self.ratios)

    @property
    def gain(self) -> float:
        """The share of the ideal gain that is realised."""
        return (self.speedup - 1) / (1 / self.macs - 1)

    def __str__(self) -> str:
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return f"**{self.speedup:.2f}\u00a0×** ({low:.2f}–{high:.2f})"


def table(rows: list[Row]) -> Iterator[str]:
    """Return the roundings side by side, a line for each model, batch size and budget."""
    measured = {(row.model, row.batch, row.keep, row.round_to): row for row in rows}
    yield f"| model | batch | MACs left | ideal | original | {' | '.join(f'round_to={n}' for n in ROUND_TO)} |"
    yield "|---" * (5 + len(ROUND_TO)) + "|"
    for model, batch, keep in dict.fromkeys(key[:3] for key in measured):
        cells = [measured[model, batch, keep, round_to] for round_to in ROUND_TO]
        seconds = statistics.median(cells[0].original)
        yield (
            f"| {model} | {batch} | {100 * keep:.0f} % | {1 / cells[0].macs:.2f}\u00a0× | "
            f"{1e3 * seconds:,.0f}\u00a0ms | {' | '.join(map(str, cells))} |"
        )


def pruned_copies(model: nn.Module, images: torch.Tensor) -> dict[tuple[float, int], nn.Module]:
    """Measure the model at every budget and rounding."""
    copies = {}
    for keep in BUDGETS:
        for round_to in ROUND_TO:
            copies[keep, round_to] = copy.deepcopy(model)
            infoprune.prune(copies[keep, round_to], images, "l1", macs=keep, round_to=round_to)
    return copies


def rows_of(name: str, batch: int, device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure one model at one batch size."""
    model = torchvision.models.get_model(MODELS[name], weights=None).eval().to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    copies = pruned_copies(model, images[:1])
    left = {key: infoprune.trace(small, images[:1]).cost().macs for key, small in copies.items()}
    whole = infoprune.trace(model, images[:1]).cost().macs
    named = {"original": model, **{str(key): small for key, small in copies.items()}}
    start = time.perf_counter()
    side_by_side(named, images, repeats=1, warmup=0, memory=False)
    rounds = int(min(MOST_ROUNDS, max(3, seconds / (time.perf_counter() - start))))
    speeds = side_by_side(named, images, rounds, warmup=0, memory=False)
    for (keep, round_to), macs in left.items():
        before, after = ([round(s, 6) for s in speeds[key].seconds] for key in ("original", str((keep, round_to))))
        yield Row(name, keep, round_to, batch, macs / whole, before, after)


def what_it_says(rows: list[Row]) -> list[str]:
    """Write the evidence for defaults, in words."""
    lines = []
    for batch in BATCHES:
        gains = {
            round_to: statistics.median(row.gain for row in rows if (row.batch, row.round_to) == (batch, round_to))
            for round_to in ROUND_TO
        }
        listed = ", ".join(f"{100 * gain:.0f} % with round_to={round_to}" for round_to, gain in gains.items())
        lines.append(f"- Batch {batch}: the median share of the ideal gain that is realised is {listed}.")
    for name in dict.fromkeys(row.model for row in rows):
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
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seconds", type=float, default=15, help="how long to measure a model at one batch size")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    results = RESULTS / f"speedup{'' if options.device == 'cpu' else '_' + torch.device(options.device).type}.json"
    earlier = [Row(**row) for row in json.loads(results.read_text())] if results.exists() else []
    for name, batch in itertools.product(options.models, options.batches):
        measured = list(rows_of(name, batch, torch.device(options.device), options.seconds))
        print(*table(measured), sep="\n", flush=True)
        earlier = [row for row in earlier if (row.model, row.batch) != (name, batch)] + measured
    rows = sorted(earlier, key=lambda row: (list(MODELS).index(row.model), row.batch))
    results.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n", encoding="utf-8")
    rounds = sorted({len(row.pruned) for row in rows})
    command = "python -m benchmarks.speedup " + (
        f"--threads {options.threads}" if options.device == "cpu" else f"--device {options.device}"
    )
    text = [
        f"`{command}` on {describe()}.",
        f"Images of 224 × 224, widths cut alike in every layer, {rounds[0]} to {rounds[-1]} rounds in which the",
        "original and its copies take turns. *Ideal* is what the MACs alone would give; in the last columns how many",
        "times as fast the pruned model is (median and quartiles of the rounds).",
        "",
        *table(rows),
        "",
        *what_it_says(rows),
    ]
    results.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
