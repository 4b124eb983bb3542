"""Accuracy at equal MACs and equal training: our allocations and criteria against Torch-Pruning's.

Several trained networks are cut to a share of their MACs by every method, batch norm is measured anew, and what is left
is fine-tuned by the same code for the same number of steps. Run from the repository root:

    make bench-accuracy CIFAR=FOLDER WEIGHTS=FOLDER
    python -m benchmarks.accuracy --cifar FOLDER --weights FOLDER --tasks digits unet --minutes 30

Every cell is written as soon as it is measured (``benchmarks/results/accuracy.jsonl``), the most informative first; a
run that was interrupted goes on where it stopped. The table (``accuracy.md``) and the picture (``accuracy.svg``) are
written from what is there and name what is missing. ``--table`` only does that.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import infoprune
from benchmarks.accuracy_table import write
from benchmarks.criteria import read
from benchmarks.rivals import IMPORTANCES, SHARINGS, cut
from benchmarks.tasks import Task, makers
from infoprune.allocation import InformationLoss
from infoprune.allocation.coupled import coupled_groups
from infoprune.criteria import get_criterion

OUT = Path(__file__).parent / "results" / "accuracy.jsonl"
BUDGETS = (0.5, 0.3, 0.7, 0.2)
STEPS = (100, 400)
SEEDS = (0, 1, 2)
QUICK_IMAGES = 2000
"""Test images for the scores before fine-tuning; all of them after it."""
SMALL = ("digits", "unet", "measurer")
LARGE = ("resnet56", "resnet20", "vgg16_bn", "mobilenet_v2")


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        task: a trained network.
        method: key of `METHODS`.
        budget: share of the MACs to keep.
        steps: of fine-tuning.
        seed: of all images, their order and augmentation.
    """

    task: str
    method: str
    budget: float
    steps: int
    seed: int


Method = Callable[[Task, float, int], nn.Module]
"""(task, share of the MACs, seed) -> a pruned copy of the task's network."""


def ours(task: Task, budget: float, seed: int, **options: Any) -> nn.Module:
    """Prune a copy with infoprune, with widths of any number, as Torch-Pruning chooses them."""
    model = copy.deepcopy(task.model)
    infoprune.prune(model, task.example, macs=budget, data=task.calibration(seed), **{"round_to": 1, **options})
    return model


def theirs(task: Task, budget: float, seed: int, importance: str, sharing: str) -> nn.Module:
    """Prune a copy with Torch-Pruning."""
    return cut(task.model, task.example, importance, sharing, budget, task.calibration(seed), task.loss)


def streams_whole(task: Task, budget: float, seed: int, **options: Any) -> nn.Module:
    """Return the rule of thumb: groups that several layers add to stay whole, the others lose alike."""
    structure = infoprune.trace(task.model, task.example)
    streams = [
        layer.name
        for name in sorted(coupled_groups(structure))
        for layer, _ in structure.producers(structure.group(name))
    ]
    return ours(task, budget, seed, criterion="l1", allocation="uniform", frozen=streams, **options)


def least_squares(task: Task, budget: float, seed: int) -> nn.Module:
    """Choose the units that a fit of the layers behind replaces best, with widths measured by L1, and make that fit."""
    structure = infoprune.trace(task.model, task.example)
    scores = get_criterion("l1")(task.model, structure)
    images = task.calibration(seed)
    widths = InformationLoss().prepared(task.model, structure, images, scores=scores, keep=budget)
    return ours(task, budget, seed, criterion="least_squares", allocation=widths, reconstruction_batches="auto")


METHODS: dict[str, Method] = {
    "default": partial(ours, round_to="auto"),
    "default, any widths": ours,
    "default, reconstructed": partial(ours, round_to="auto", reconstruction_batches="auto"),
    "least_squares, widths by l1, reconstructed": least_squares,
    "information_loss, capacity_independence": partial(
        ours, criterion="capacity_independence", allocation="information_loss"
    ),
    "uniform, l1": partial(ours, criterion="l1", allocation="uniform"),
    "global, taylor": partial(ours, criterion={"name": "taylor"}, allocation="global"),
    "global, lamp": partial(ours, criterion="lamp", allocation="global"),
    "global, grouped_taylor": partial(ours, criterion="grouped_taylor", allocation="global"),
    "global, hessian": partial(ours, criterion="hessian", allocation="global"),
    "information_concentration, l1": partial(ours, criterion="l1", allocation="information_concentration"),
    "rule of thumb, l1": streams_whole,
    "rule of thumb, l1, reconstructed": partial(streams_whole, reconstruction_batches="auto"),
    **{
        f"TP {sharing}, {importance}": partial(theirs, importance=importance, sharing=sharing)
        for importance in IMPORTANCES
        for sharing in SHARINGS
    },
}
METHODS["default, reconstructed, distilled"] = METHODS["default, reconstructed"]
DISTILLED = {"default, reconstructed, distilled": 0.5}
"""Share of the loss in fine-tuning that is the distance to the unpruned network's class probabilities."""

LEADING = ("default", "TP global, taylor", "TP global, magnitude", "rule of thumb, l1", "TP local, magnitude")
"""What is measured first."""


def cells(tasks: list[str]) -> Iterator[Cell]:
    """All cells, the most informative first; some are named twice."""
    large, small = ([name for name in names if name in tasks] for names in (LARGE, SMALL))
    for methods, seeds in ((LEADING, SEEDS[:1]), (METHODS, SEEDS[:1]), (LEADING, SEEDS), (METHODS, SEEDS)):
        for budget in BUDGETS:
            for steps in STEPS:
                yield from (Cell(task, name, budget, steps, s) for task in small for s in seeds for name in methods)
    for methods, seeds in ((LEADING, SEEDS[:1]), (METHODS, SEEDS[:1]), (LEADING, SEEDS), (METHODS, SEEDS)):
        for steps in STEPS:
            for pair in (BUDGETS[:2], BUDGETS[2:]):
                for task in large:
                    yield from (
                        Cell(task, name, budget, steps, s) for s in seeds for budget in pair for name in methods
                    )


def measure(task: Task, cell: Cell) -> dict[str, Any]:
    """Cut, recalibrate and tune; the score after each."""
    start = time.process_time()
    try:
        model = METHODS[cell.method](task, cell.budget, cell.seed)
    except Exception as error:  # a rival may fail in any way; the table says so
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    seconds = time.process_time() - start
    structure, whole = infoprune.trace(model, task.example), infoprune.trace(task.model, task.example)
    macs, params = structure.cost().ratio(whole.cost())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    row: dict[str, Any] = {"macs": macs, "params": params, "pruning_seconds": round(seconds, 2)}
    row["cut"] = task.evaluate(model, QUICK_IMAGES)
    task.recalibrate(model, cell.seed)
    row["recalibrated"] = task.evaluate(model, QUICK_IMAGES)
    task.tune(model, cell.steps, cell.seed, distil=DISTILLED.get(cell.method, 0.0))
    return {**row, "tuned": task.evaluate(model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, default=Path("data"), help="folder that holds cifar-10-batches-py")
    parser.add_argument(
        "--weights", type=Path, default=Path("weights"), help="folder that holds resnet56.pt, resnet20.pt"
    )
    parser.add_argument("--tasks", nargs="+", default=[*SMALL, *LARGE], choices=[*SMALL, *LARGE])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell after so many minutes")
    parser.add_argument("--out", type=Path, default=OUT, help="where cells are appended")
    parser.add_argument("--trained", type=Path, default=Path("build/accuracy"), help="where trained networks are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--table", action="store_true", help="measure nothing, write table and picture of what is there"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    make = makers(options.cifar, options.weights, options.trained)
    deadline = time.monotonic() + 60 * options.minutes
    tasks: dict[str, Task] = {}
    for cell in () if options.table else dict.fromkeys(cells(options.tasks)):
        wanted = cell.method in options.methods and cell.budget in options.budgets
        if not wanted or cell.steps not in options.steps or cell.seed not in options.seeds:
            continue
        if any(all(row[key] == value for key, value in asdict(cell).items()) for row in read(options.out)):
            continue
        if time.monotonic() > deadline:
            break
        if cell.task not in tasks:
            tasks[cell.task] = make[cell.task]()
        task = tasks[cell.task]
        row = {**asdict(cell), "metric": task.metric, "unpruned": task.unpruned, **measure(task, cell)}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(write(read(options.out), OUT.parent, list(METHODS), [*LARGE, *SMALL]))


if __name__ == "__main__":
    main()
