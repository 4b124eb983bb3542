"""Every criterion on a trained ResNet-56 and CIFAR-10, at identical widths: how much accuracy stays.

The first convolution of each of the 27 blocks loses the same share of its filters. Accuracy on all 10,000 test
images is taken right after the cut, after batch norm has been recalibrated, and after a short fine-tuning that is the
same for all. Nothing here was chosen by test images: see `benchmarks.criteria_choices` for what was chosen and how.

Run from the repository root:

    python -m benchmarks.criteria --cifar FOLDER --weights resnet56.pt

It takes hours on one core. Every cell is written as soon as it is measured (``benchmarks/results/criteria.jsonl``), in
an order that puts the most informative first; a run that was interrupted goes on where it stopped, and the table
(``criteria.md``) and the picture (``criteria.svg``) are written from what is there. ``--table`` only does that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.subject import Subject
from infoprune.criteria import CapacityIndependence, Scores, get_criterion
from infoprune.criteria.feature_guided import guide_capacity

RESULTS = Path(__file__).parent / "results"

CRITERIA: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "l1": {"name": "l1"},
    "l2": {"name": "l2"},
    "geometric_median": {"name": "geometric_median"},
    "batchnorm_scale": {"name": "batchnorm_scale"},
    "taylor": {"name": "taylor"},
    "hrank": {"name": "hrank"},
    "chip": {"name": "chip"},
    "capacity_independence": {"name": "capacity_independence"},
    "feature_guided": {"name": "capacity_independence", "capacity": "guided"},
    "shapley": {"name": "shapley", "images": 512},
}
FIRST = ("capacity_independence", "l1", "geometric_median", "random", "taylor", "chip", "hrank", "shapley")
DRAWN = ("random", "taylor", "hrank", "chip", "feature_guided", "shapley")
SEEDED = ("random", "shapley")


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        criterion: key of `CRITERIA`.
        amount: share of the filters that goes.
        seed: of images, order and criterion.
        tune: measure after fine-tuning; else as cut and after recalibration.
        allocation: how the layers share the cut; other than uniform: at the MACs of the uniform cut.
    """

    criterion: str
    amount: float
    seed: int = 0
    tune: bool = False
    allocation: str = "uniform"


def cells() -> Iterator[Cell]:
    """All cells, the most informative first."""
    ordered = [*FIRST, *(name for name in CRITERIA if name not in FIRST)]
    ordered.sort(key=lambda name: name == "shapley")  # by far the slowest to score
    for amount in (0.5, 0.7, 0.3):
        yield from (Cell(name, amount) for name in ordered)
        yield from (Cell(name, amount, tune=True) for name in ordered if name in FIRST)
    for amount in (0.5, 0.7, 0.3):
        for name in ("capacity_independence", "shapley"):
            for tuned in (False, True):
                yield Cell(name, amount, tune=tuned, allocation="information_concentration")
    for amount in (0.5, 0.7, 0.3):
        for seed in (1, 2):
            yield from (Cell(name, amount, seed) for name in DRAWN if name != "shapley")
            yield from (Cell(name, amount, seed, tune=True) for name in FIRST if name != "shapley")
    for seed in (1, 2):
        for tuned in (False, True):
            yield Cell("shapley", 0.5, seed, tuned)
    for amount in (0.5, 0.7, 0.3):
        yield from (Cell(name, amount, tune=True) for name in ordered if name not in FIRST)


class Bench:
    """Measures cells, and remembers scores and models' accuracies that cells share."""

    def __init__(self, cifar: Path, weights: Path, cache: Path) -> None:
        self.where = (cifar, weights)
        self.cache = cache
        self.subjects: dict[int, Subject] = {}
        self.known: dict[tuple[str, int], dict[str, float]] = {}

    def subject(self, seed: int) -> Subject:
        if seed not in self.subjects:
            self.subjects = {seed: Subject(*self.where, seed=seed)}
        return self.subjects[seed]

    def scores(self, name: str, seed: int) -> tuple[Scores, float, str]:
        """Scores of a criterion, the seconds that they took, and a remark."""
        path = self.cache / f"{name}_{seed}.pt"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            return stored["scores"], stored["seconds"], stored["remark"]
        subject, remark = self.subject(seed), ""
        start = time.process_time()
        spec = {**CRITERIA[name], **({"seed": seed} if name in SEEDED else {})}
        if spec.get("capacity") == "guided":
            guide = guide_capacity(subject.model, subject.structure, subject.calibration())
            remark = guide.best
            criterion: Any = CapacityIndependence(capacity=guide.best)
        else:
            criterion = get_criterion(spec)
        scores = criterion(subject.model, subject.structure, subject.calibration())
        seconds = time.process_time() - start
        self.cache.mkdir(parents=True, exist_ok=True)
        torch.save({"scores": scores, "seconds": seconds, "remark": remark}, path)
        return scores, seconds, remark

    def measure(self, cell: Cell) -> dict[str, Any]:
        subject = self.subject(cell.seed)
        scores, seconds, remark = self.scores(cell.criterion, cell.seed)
        widths = subject.widths(cell.amount)
        if cell.allocation != "uniform":
            macs = subject.structure.cost(widths).macs / subject.structure.cost().macs
            widths = subject.widths(allocation=cell.allocation, macs=macs, scores=scores)
        plan = subject.plan(scores, widths)
        digest = hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
        cost, whole = subject.structure.cost(widths), subject.structure.cost()
        accuracies = self.known.get((digest, cell.seed), {})
        wanted = {"tuned"} if cell.tune else {"cut", "recalibrated"}
        if not wanted <= set(accuracies):
            model = subject.cut(plan)
            if not cell.tune:
                accuracies["cut"] = subject.accuracy(model)
            subject.recalibrate(model)
            if cell.tune:
                accuracies["tuned"] = subject.accuracy(subject.tune(model))
            else:
                accuracies["recalibrated"] = subject.accuracy(model)
        self.known.setdefault((digest, cell.seed), {}).update(accuracies)
        return {
            **asdict(cell),
            **{name: round(accuracies[name], 2) for name in sorted(wanted)},
            "macs": round(cost.macs / whole.macs, 4),
            "params": round(cost.params / whole.params, 4),
            "scoring_seconds": round(seconds, 2),
            "remark": remark,
            "plan": digest,
        }


def read(path: Path) -> list[dict[str, Any]]:
    """The cells measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, help="state dict of a CIFAR ResNet-56")
    parser.add_argument("--out", type=Path, default=RESULTS / "criteria.jsonl", help="where cells are appended")
    parser.add_argument("--cache", type=Path, default=Path("build/criteria"), help="where scores are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--table", action="store_true", help="measure nothing, write table and picture of what is there"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    done = {tuple(row[key] for key in Cell.__dataclass_fields__) for row in read(options.out)}
    if not options.table:
        bench = Bench(options.cifar, options.weights, options.cache)
        for row in read(options.out):
            found = {name: row[name] for name in ("cut", "recalibrated", "tuned") if name in row}
            bench.known.setdefault((row["plan"], row["seed"]), {}).update(found)
        for cell in cells():
            if tuple(asdict(cell).values()) in done:
                continue
            row = bench.measure(cell)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
