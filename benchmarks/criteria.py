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
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch

from benchmarks.machine import describe
from benchmarks.subject import CALIBRATION_IMAGES, RECALIBRATION_IMAGES, TUNING, TUNING_IMAGES, Subject
from infoprune.criteria import CapacityIndependence, Scores, get_criterion
from infoprune.criteria.measures.feature_guided import guide_capacity
from infoprune.report.figures import LINE, SERIES, SOFT, axes, figure

RESULTS = Path(__file__).parent / "results"
UNPRUNED = "unpruned"
STAGES = ("cut", "recalibrated", "tuned")
AMOUNTS = (0.3, 0.5, 0.7)
METHOD_B = "information_concentration"

HEAD = """\
# Criteria at identical widths

`python -m benchmarks.criteria --cifar FOLDER --weights resnet56.pt` on {machine}.

A trained ResNet-56 (the public weights of 93.39 % on CIFAR-10); the first convolution of each of the 27 blocks loses
the same share of its filters, whatever the criterion. Accuracy in per cent on all 10,000 test images:

- *as cut*: nothing done after the cut;
- *recalibrated*: batch norm measured anew with {recalibration:,} training images, cropped and flipped
  (`infoprune.recalibrate`);
- *fine-tuned*: recalibrated, then one pass over {tuning:,} training images, cropped and flipped: SGD, batches of
  {batch}, rate {lr:g} falling to 0 along half a cosine, momentum {momentum:g}, weight decay {decay:g}.

`capacity_weighted` is `capacity_independence` with 64 bins and a balance of 0.75, the reading that kept most at 70 % in
the [sweep](criteria_choices.md) on held-out training images. `shapley` has the defaults that the sweep led to;
`shapley_probability` are Shapley values proper, with the probability of the true class for a payoff and zeros in place
of absent channels, from plain images (`shapley` crops and flips them, as in training). Criteria that look at data saw
{calibration} training images, these two 256. A seed decides about
all choices of images, their order and augmentation, and what is drawn; means over seeds where there are several, in
parentheses the lowest and the highest. A dash: not measured. One standard error of an accuracy around 88 % on 10,000
images is 0.3. *Scoring* is processor time of one thread.

![accuracy over MACs](criteria.svg)
"""

CRITERIA: dict[str, dict[str, Any]] = {
    UNPRUNED: {"name": "l1"},  # at an amount of 0
    "random": {"name": "random"},
    "l1": {"name": "l1"},
    "l2": {"name": "l2"},
    "geometric_median": {"name": "geometric_median"},
    "batchnorm_scale": {"name": "batchnorm_scale"},
    "taylor": {"name": "taylor"},
    "hrank": {"name": "hrank"},
    "chip": {"name": "chip"},
    "capacity_independence": {"name": "capacity_independence"},
    "capacity_weighted": {"name": "capacity_independence", "bins": 64, "balance": 0.75},
    "feature_guided": {"name": "capacity_independence", "capacity": "guided"},
    "shapley": {"name": "shapley", "images": 256},
    "shapley_probability": {
        "name": "shapley",
        "payoff": "probability",
        "absent": "zero",
        "min_coalition": 0.0,
        "images": 256,
    },
}
SETTINGS = {
    "recalibration": RECALIBRATION_IMAGES,
    "tuning": TUNING_IMAGES,
    "batch": TUNING["batch_size"],
    "lr": TUNING["lr"],
    "momentum": TUNING["momentum"],
    "decay": TUNING["weight_decay"],
    "calibration": CALIBRATION_IMAGES,
}
FIRST = ("capacity_independence", "l1", "geometric_median", "random", "taylor", "chip", "hrank", "shapley")
DRAWN = ("random", "taylor", "hrank", "chip", "feature_guided")
SHAPLEY = ("shapley", "shapley_probability")
SEEDED = ("random", *SHAPLEY)
LATER = (*SHAPLEY, UNPRUNED)
OURS = ("capacity_independence", "capacity_weighted", "shapley")


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
    """All cells, the most informative first (some are named twice), and Shapley values, slow to score, after others."""
    quick = [name for name in (*FIRST, *(name for name in CRITERIA if name not in FIRST)) if name not in LATER]
    first = [name for name in FIRST if name != "shapley"]

    def both(names: Iterable[str], amount: float, **options: Any) -> Iterator[Cell]:
        for tune in (False, True):
            yield from (Cell(name, amount, tune=tune, **options) for name in names if name in FIRST or not tune)

    yield from both(quick, 0.5)
    yield from both(quick, 0.7)
    yield Cell(UNPRUNED, 0.0)
    yield Cell(UNPRUNED, 0.0, tune=True)
    yield from both(["shapley"], 0.5)
    yield from both(quick, 0.3)
    yield from both(["shapley"], 0.7)
    yield from both(["shapley"], 0.3)
    for amount in (0.5, 0.7, 0.3):
        yield from both(["capacity_independence", "shapley"], amount, allocation="information_concentration")
    for amount in (0.7, 0.5, 0.3):
        yield from (Cell(name, amount, tune=True) for name in quick if name not in FIRST)
    yield from (Cell(name, 0.7, seed=1, tune=True) for name in first[:3])
    for amount in (0.7, 0.3, 0.5):
        yield from (Cell(name, amount, seed) for seed in (1, 2) for name in DRAWN)
    for seed in (1, 2):
        for amount in (0.5, 0.7, 0.3):
            yield from (Cell(name, amount, seed, tune=True) for name in first)
    for seed in (1, 2):
        for amount in (0.5, 0.7, 0.3):
            yield from both(["shapley"], amount, seed=seed)
    for amount in (0.5, 0.7, 0.3):
        yield from (Cell("shapley_probability", amount, tune=tune) for tune in (False, True))


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
        images: Any = subject.calibration()
        if name == "shapley_probability":
            images = list(images)  # as they are: a list offers no other view of them
        scores = criterion(subject.model, subject.structure, images)
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
        if cell.criterion == UNPRUNED and not cell.tune:
            plain = subject.recalibrate(subject.cut(plan), augment=False)
            remark = f"{subject.accuracy(plain):.2f} when recalibrated with plain images"
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
    """Return the cells measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Table:
    """What was measured, by (criterion, amount, allocation, stage): one accuracy for each seed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.values: dict[tuple[str, float, str, str], list[float]] = {}
        self.seconds = {row["criterion"]: row["scoring_seconds"] for row in rows if row["seed"] == 0}
        self.remarks = {row["criterion"]: row["remark"] for row in rows if row["seed"] == 0 and row["remark"]}
        self.costs = {(row["amount"], row["allocation"]): (row["macs"], row["params"]) for row in rows}
        for row in rows:
            for stage in STAGES:
                if stage in row:
                    key = (row["criterion"], row["amount"], row["allocation"], stage)
                    self.values.setdefault(key, []).append(row[stage])

    def cell(self, *key: Any) -> str:
        """Mean over seeds and how far they lie apart, or a dash."""
        found = self.values.get(key)
        if not found:
            return "–"
        spread = f" ({min(found):.1f}…{max(found):.1f})" if len(found) > 1 else ""
        return f"{statistics.mean(found):.2f}{spread}"

    def curve(self, criterion: str, stage: str) -> list[tuple[float, float]]:
        """(share of the MACs, mean accuracy) at every amount that was measured with uniform widths."""
        return sorted(
            (self.costs[amount, at][0], statistics.mean(found))
            for (name, amount, at, reached), found in self.values.items()
            if (name, at, reached) == (criterion, "uniform", stage)
        )

    def criteria(self, amount: float, allocation: str) -> list[str]:
        """Criteria that were measured at an amount, best first: by the last stage that all of them have reached."""
        found = [name for name in CRITERIA if (name, amount, allocation, "recalibrated") in self.values]

        def rank(name: str) -> tuple[float, float]:
            means = [
                statistics.mean(self.values.get((name, amount, allocation, stage), [0.0])) for stage in STAGES[:0:-1]
            ]
            return means[0], means[1]

        return sorted(found, key=rank, reverse=True)

    def lines(self, amount: float, allocation: str = "uniform") -> list[str]:
        lines = ["| criterion | as cut | recalibrated | fine-tuned | scoring |", "|---|---:|---:|---:|---:|"]
        for name in self.criteria(amount, allocation):
            cells = " | ".join(self.cell(name, amount, allocation, stage) for stage in STAGES)
            remark = f" ({self.remarks[name]})" if name in self.remarks and name != UNPRUNED else ""
            lines.append(f"| `{name}`{remark} | {cells} | {self.seconds[name]:.2f} s |")
        return lines


def draw(table: Table, path: Path) -> None:
    """Accuracy over what is left of the MACs, after recalibration and after fine-tuning; best first in the legend."""
    made = figure(9.0, 4.8)
    names = [name for name in CRITERIA if name not in (UNPRUNED, "feature_guided")]
    for place, (stage, title) in enumerate((("recalibrated", "After recalibration"), ("tuned", "After fine-tuning"))):
        ax = axes(made, 1, 2, place + 1, title=title)
        found = {name: table.curve(name, stage) for name in names}
        drawn = [name for name in names if found[name]]
        for name in sorted(drawn, key=lambda name: -statistics.mean(y for _, y in found[name])):
            number, ours = names.index(name), name in OURS
            style = {"color": SERIES[number % len(SERIES)], "marker": "osD^v"[number % 5], "markersize": 4}
            style["linestyle"] = "-" if ours or number < len(SERIES) else (0, (4, 2))  # colours have come round
            ax.plot(*zip(*found[name], strict=True), label=name, linewidth=2.4 if ours else 1.0, **style)
        unpruned = table.values.get((UNPRUNED, 0.0, "uniform", stage))
        if unpruned:
            ax.axhline(unpruned[0], color=SOFT, linewidth=0.8, linestyle=(0, (3, 2)), label=UNPRUNED)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.set_xlabel("MACs that are left", fontsize=8, color=SOFT)
        ax.set_ylabel("test accuracy, %", fontsize=8, color=SOFT)
        ax.grid(color=LINE, linewidth=0.6)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "criteria"}):
        made.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def write(rows: list[dict[str, Any]], folder: Path) -> str:
    """Write table and picture of what is there."""
    table = Table(rows)
    draw(table, folder / "criteria.svg")
    parts = [HEAD.format(machine=describe(), **SETTINGS)]
    unpruned = " | ".join(table.cell(UNPRUNED, 0.0, "uniform", stage) for stage in STAGES)
    plain = f"; {table.remarks[UNPRUNED]}" if UNPRUNED in table.remarks else ""
    parts.append(f"Unpruned (test accuracy in %, as it is | recalibrated | fine-tuned alike): {unpruned}{plain}.\n")
    for amount in AMOUNTS:
        macs, params = table.costs.get((amount, "uniform"), (0.0, 0.0))
        parts.append(f"## {amount:.0%} of the filters of each layer\n")
        parts.append(f"{macs:.1%} of the MACs and {params:.1%} of the parameters are left.\n")
        parts += [*table.lines(amount), ""]
    if any(allocation != "uniform" for _, allocation in table.costs):
        parts.append("## Widths by information concentration, at the same MACs\n")
        for amount in AMOUNTS:
            if table.criteria(amount, METHOD_B):
                macs, params = table.costs[amount, METHOD_B]
                parts.append(f"{macs:.1%} of the MACs, {params:.1%} of the parameters are left:\n")
                parts += [*table.lines(amount, METHOD_B), ""]
    text = "\n".join(parts).rstrip() + "\n"
    (folder / "criteria.md").write_text(text, encoding="utf-8")
    return text


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
        for cell in dict.fromkeys(cells()):
            if tuple(asdict(cell).values()) in done:
                continue
            row = bench.measure(cell)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            write(read(options.out), options.out.parent)
    print(write(read(options.out), options.out.parent))


if __name__ == "__main__":
    main()
