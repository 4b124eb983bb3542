"""Which readings of method A are good: a sweep over held-out *training* images, by which the defaults are kept.

A trained ResNet-56 is cut at the first convolution of every block with every capacity estimator, independence
estimator and balance, and at all layers with every way to combine coupled layers. Accuracy is taken as cut and after
batch norm has been recalibrated, on training images that are used for nothing else here (the network has seen them in
its own training, so the numbers are high; only their order means something). No test image is looked at.

Run from the repository root:

    python -m benchmarks.criteria_choices --cifar FOLDER --weights resnet56.pt

Trials are appended to ``benchmarks/results/criteria_choices.jsonl`` as they are measured; a run that was interrupted
goes on where it stopped. The tables go to ``criteria_choices.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.criteria import read
from benchmarks.subject import FROZEN, Subject
from infoprune.criteria import get_criterion

RESULTS = Path(__file__).parent / "results"
AMOUNTS = (0.5, 0.7, 0.3)
IMAGES = 2500
RECALIBRATION_IMAGES = 1000
SCALE_AWARE = ("histogram", "gaussian"), ("l2_all", "l2_knn")


def readings() -> Iterator[dict[str, Any]]:
    """Options of method A, and rivals without options to compare with."""
    for name in ("l1", "l2", "geometric_median", "batchnorm_scale"):
        yield {"name": name}
    capacities: list[dict[str, Any]] = [{"capacity": "histogram", "bins": bins} for bins in (32, 16, 64, 128)]
    capacities += [{"capacity": name} for name in ("gaussian", "kernel_norm", "kernel_knn")]
    independences = [{"independence": name} for name in ("l2_all", "l2_knn", "correlation")]
    for balance in (0.5, 0.25, 0.75):
        for capacity in capacities:
            for independence in independences:
                aware = capacity["capacity"] in SCALE_AWARE[0] and independence["independence"] in SCALE_AWARE[1]
                if balance == 0.5 or aware:
                    yield {"name": "capacity_independence", **capacity, **independence, "balance": balance}
    yield from ({"name": "capacity_independence", **capacity, "balance": 1.0} for capacity in capacities)
    yield from ({"name": "capacity_independence", **independence, "balance": 0.0} for independence in independences)


def aggregations() -> Iterator[dict[str, Any]]:
    """Ways to combine coupled layers; "sum" removes the same filters as "mean" here."""
    for name in ("capacity_independence", "l1"):
        for normalize in ("minmax", "mean", "none"):
            yield from ({"name": name, "normalize": normalize, "combine": combine} for combine in ("mean", "max"))


def trials() -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(which layers, amount, criterion), the most informative amounts first."""
    for amount in AMOUNTS:
        yield from (("conv1", amount, spec) for spec in readings())
    for amount in (0.2, 0.4):
        yield from (("all", amount, spec) for spec in aggregations())


def table(rows: list[dict[str, Any]], layers: str) -> list[str]:
    """One line for each reading, best mean over the amounts first."""
    amounts = sorted({row["amount"] for row in rows if row["layers"] == layers})
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows:
        if row["layers"] == layers:
            found.setdefault(describe(row["criterion"]), {})[row["amount"]] = row
    complete = {text: cells for text, cells in found.items() if set(cells) == set(amounts)}

    def mean(text: str) -> float:
        return statistics.mean(cell["recalibrated"] for cell in complete[text].values())

    heads = "".join(f" {amount:.0%} cut | recalibrated |" for amount in amounts)
    lines = [f"| criterion |{heads} mean recalibrated |", "|---|" + "---:|" * (2 * len(amounts) + 1)]
    for text in sorted(complete, key=mean, reverse=True):
        cells = [complete[text][amount] for amount in amounts]
        values = "".join(f" {cell['cut']:.1f} | {cell['recalibrated']:.1f} |" for cell in cells)
        lines.append(f"| {text} |{values} {mean(text):.2f} |")
    return lines


def describe(spec: dict[str, Any]) -> str:
    """A criterion in a line."""
    options = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in list(spec.values())[1:])
    return f"`{spec['name']}`" + (f" {options}" if options else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of a CIFAR ResNet-56")
    parser.add_argument("--out", type=Path, default=RESULTS / "criteria_choices.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    subjects = {
        "conv1": Subject(options.cifar, options.weights, held_out=0.1),
        "all": Subject(options.cifar, options.weights, held_out=0.1, frozen=FROZEN[:1]),
    }
    done = [(row["layers"], row["amount"], row["criterion"]) for row in read(options.out)]
    for layers, amount, spec in trials():
        if (layers, amount, spec) in done:
            continue
        subject = subjects[layers]
        scores = get_criterion(spec)(subject.model, subject.structure)
        model = subject.cut(subject.plan(scores, subject.widths(amount)))
        row: dict[str, Any] = {"layers": layers, "amount": amount, "criterion": spec}
        row["cut"] = subject.accuracy(model, IMAGES)
        row["recalibrated"] = subject.accuracy(subject.recalibrate(model, RECALIBRATION_IMAGES), IMAGES)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
