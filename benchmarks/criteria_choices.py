"""Which readings of methods A and B are good: a sweep over held-out *training* images, which decides the defaults.

A trained ResNet-56 is cut at the first convolution of every block with every capacity estimator, independence
estimator and balance, by Shapley values with several payoffs and sizes of coalitions, and at all layers with every way
to combine coupled layers. Accuracy is taken as cut and after batch norm has been recalibrated, on training images that
are used for nothing else here (the network has seen them in its own training, so the numbers are high; only their order
means something). No test image is looked at.

Run from the repository root:

    python -m benchmarks.criteria_choices --cifar FOLDER --weights resnet56.pt

Trials are appended to ``benchmarks/results/criteria_choices.jsonl`` as they are measured; a run that was interrupted
goes on where it stopped. The tables go to ``criteria_choices.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.criteria import read
from benchmarks.subject import FROZEN, TUNING_IMAGES, Subject
from infoprune.criteria import Scores, get_criterion

RESULTS = Path(__file__).parent / "results"
AMOUNTS = (0.5, 0.7, 0.3)
STAGES = ("cut", "recalibrated")
ALL_IMAGES, FINE_TUNED, METHOD_B = "conv1, all held-out images", "conv1, fine-tuned", "conv1, method B"
IMAGES = 2500
RECALIBRATION_IMAGES = 1000
HEAD = f"""\
# Readings of methods A and B, on held-out training images

`python -m benchmarks.criteria_choices --cifar FOLDER --weights resnet56.pt`. A trained ResNet-56 is cut at the first
convolution of every block. Accuracy in per cent on {IMAGES:,} training images that are used for nothing else (the
network has seen them in its own training: only the order means something), as cut and after batch norm has been
recalibrated with {RECALIBRATION_IMAGES:,} others. Options that are not named are the defaults: 32 bins, `histogram`,
`l2_all`, balance 0.5; a number behind a name is the bins, at the end the balance.

One standard error is 0.6 at 50 % and 1.0 at 70 %; the same images for all make differences a little surer than that.
"""

SECOND = f"""\
## A second look

The best of them on all 5,000 held-out images, recalibrated with {2 * RECALIBRATION_IMAGES:,} others than before.
"""

TUNED = f"""\
## After fine-tuning

The same, with half of the filters gone: recalibrated, and after one pass over {TUNING_IMAGES:,} images as in
`benchmarks.criteria`.
"""

SHAPLEY_IMAGES = 128
PLAIN, AS_TRAINED = "plain images", "as in training"
VIEWS = "views"
UNSAID = ("name", "images")
SHAPLEY = f"""\
## Method B: what the channels play for

The same cuts by `shapley` with {SHAPLEY_IMAGES} training images: the payoff, what stands for an absent channel's
activation, the share of the channels that stays in every coalition (with 0, the scores are Shapley values proper), and
whether the images are cropped and flipped as in training. Accuracy as before, and recalibrated on the held-out images
cropped and flipped too (*views*), which is what decides: the network classifies its training images rightly as they
are, and what it needs for that is not what it needs for others. Other draws of coalitions move a line by about a point.
"""

COUPLED = """\
## Coupled layers

All layers but the first are cut, also those whose outputs are added: how their scores are brought to a common scale,
and how they are combined.
"""

SCALE_AWARE = ("histogram", "gaussian", "l2_all", "l2_knn")


@dataclass(frozen=True)
class Trial:
    """One thing to measure: which layers are cut (and on which images), how much, by what, with which draw."""

    layers: str
    amount: float
    criterion: dict[str, Any]
    seed: int = 0


def readings(amount: float) -> Iterator[dict[str, Any]]:
    """Options of method A, and rivals without options to compare with; at one amount also those that see no scale."""
    for name in ("l1", "l2", "geometric_median", "batchnorm_scale"):
        yield {"name": name}
    capacities: list[dict[str, Any]] = [{"capacity": "histogram", "bins": bins} for bins in (32, 16, 64, 128)]
    capacities += [{"capacity": name} for name in ("gaussian", "kernel_norm", "kernel_knn")]
    independences = [{"independence": name} for name in ("l2_all", "l2_knn", "correlation")]
    for capacity in capacities:
        for independence in independences:
            both = {"name": "capacity_independence", **capacity, **independence}
            aware = capacity["capacity"] in SCALE_AWARE and independence["independence"] in SCALE_AWARE
            if aware or amount == AMOUNTS[0]:
                yield {**both, "balance": 0.5}
            if aware and capacity.get("bins", 32) == 32:
                yield from ({**both, "balance": balance} for balance in (0.25, 0.75))
    yield from ({"name": "capacity_independence", **capacity, "balance": 1.0} for capacity in capacities)
    yield from ({"name": "capacity_independence", **independence, "balance": 0.0} for independence in independences)


def aggregations() -> Iterator[dict[str, Any]]:
    """Ways to combine coupled layers; "sum" removes the same filters as "mean" here."""
    for name in ("capacity_independence", "l1"):
        for normalize in ("minmax", "mean", "none"):
            yield from ({"name": name, "normalize": normalize, "combine": combine} for combine in ("mean", "max"))


def finalists() -> Iterator[dict[str, Any]]:
    """Return the best of the readings, and their neighbours, for a second look with other draws and more images."""
    method = {"name": "capacity_independence", "independence": "l2_all"}
    for bins, balance in ((32, 0.5), (32, 0.75), (64, 0.5), (64, 0.75), (128, 0.5)):
        yield {**method, "capacity": "histogram", "bins": bins, "balance": balance}
    yield from ({**method, "capacity": "gaussian", "balance": balance} for balance in (0.5, 0.75))
    yield from ({"name": name} for name in ("l1", "geometric_median"))


def tuned() -> Iterator[dict[str, Any]]:
    """Yield what is also measured after fine-tuning, by far the slowest."""
    method = {"name": "capacity_independence", "independence": "l2_all"}
    yield {"name": "l1"}
    yield {**method, "capacity": "histogram", "bins": 32, "balance": 0.5}
    yield {**method, "capacity": "gaussian", "balance": 0.75}
    yield {**method, "capacity": "histogram", "bins": 64, "balance": 0.5}


def games() -> Iterator[dict[str, Any]]:
    """Yield the choices of method B: payoff, what stands for absent channels, number of coalitions, images."""
    yield from ({"name": name} for name in ("l1", "capacity_independence"))
    for payoff, absent, least, shown in (
        ("fidelity", "mean", 0.5, AS_TRAINED),
        ("fidelity", "mean", 0.5, PLAIN),
        ("fidelity", "zero", 0.5, AS_TRAINED),
        ("probability", "zero", 0.0, PLAIN),
        ("fidelity", "mean", 0.75, AS_TRAINED),
        ("fidelity", "mean", 0.0, AS_TRAINED),
    ):
        options = {"payoff": payoff, "absent": absent, "min_coalition": least, "images": SHAPLEY_IMAGES}
        yield {"name": "shapley", **options, "shown": shown}


def trials() -> Iterator[Trial]:
    """All trials, the most informative amounts first."""
    for amount in AMOUNTS:
        yield from (Trial("conv1", amount, spec) for spec in readings(amount))
    for amount in (0.2, 0.4):
        yield from (Trial("all", amount, spec) for spec in aggregations())
    for amount in AMOUNTS[:2]:  # at 30 % the readings cannot be told apart
        yield from (Trial(ALL_IMAGES, amount, spec, seed=1) for spec in finalists())
    yield from (Trial(FINE_TUNED, AMOUNTS[0], spec) for spec in tuned())
    for spec in games():
        yield from (Trial(METHOD_B, amount, spec) for amount in AMOUNTS)


def table(rows: list[dict[str, Any]], layers: str, stages: Sequence[str] = STAGES) -> list[str]:
    """One line for each reading that was measured at all amounts; by the mean of the last stage, best first."""
    amounts = sorted({row["amount"] for row in rows if row["layers"] == layers})
    found: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["layers"] == layers:
            found.setdefault(describe(row["criterion"]), {}).setdefault(row["amount"], []).append(row)
    lines = []
    for text, cells in found.items():
        if set(cells) == set(amounts):
            means = [[statistics.mean(row[stage] for row in cells[amount]) for stage in stages] for amount in amounts]
            whole = statistics.mean(reached[-1] for reached in means)
            values = "".join(f" {accuracy:.1f} |" for reached in means for accuracy in reached)
            lines.append((whole, f"| {text} |{values} {whole:.2f} |"))
    heads = "".join(f" {amount:.0%} {' | '.join(stages)} |" for amount in amounts)
    head = [f"| criterion |{heads} mean {stages[-1]} |", "|---|" + "---:|" * (len(stages) * len(amounts) + 1)]
    return head + [line for _, line in sorted(lines, reverse=True)]


def write(rows: list[dict[str, Any]]) -> str:
    """Return the tables as a text."""
    lines = ["| criterion | recalibrated | fine-tuned |", "|---|---:|---:|"]
    for row in sorted((row for row in rows if row["layers"] == FINE_TUNED), key=lambda row: -row["tuned"]):
        lines.append(f"| {describe(row['criterion'])} | {row['recalibrated']:.1f} | {row['tuned']:.2f} |")
    parts = [HEAD, *table(rows, "conv1"), "", SECOND, *table(rows, ALL_IMAGES), "", TUNED, *lines, ""]
    parts += [SHAPLEY, *table(rows, METHOD_B, (*STAGES, VIEWS)), ""]
    return "\n".join([*parts, COUPLED, *table(rows, "all"), ""])


def describe(spec: dict[str, Any]) -> str:
    """Return a criterion in a line."""
    options = ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for name, value in spec.items() if name not in UNSAID
    )
    return f"`{spec['name']}`" + (f" {options}" if options else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of a CIFAR ResNet-56")
    parser.add_argument("--out", type=Path, default=RESULTS / "criteria_choices.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the tables of what is there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    done = [Trial(row["layers"], row["amount"], row["criterion"], row.get("seed", 0)) for row in read(options.out)]
    subjects: dict[tuple[str, int], Subject] = {}
    for trial in () if options.table else trials():
        if trial in done:
            continue
        key = (trial.layers, trial.seed)
        if key not in subjects:
            frozen = FROZEN[:1] if trial.layers == "all" else FROZEN
            subjects = {key: Subject(options.cifar, options.weights, trial.seed, held_out=0.1, frozen=frozen)}
        row = {**asdict(trial), **measure(trial, subjects[key])}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    options.out.with_suffix(".md").write_text(write(read(options.out)), encoding="utf-8")


@functools.lru_cache(maxsize=1)
def scored(spec: str, subject: Subject) -> Scores:
    """Return the scores of a criterion, computed once for all amounts."""
    options = json.loads(spec)
    images = list(subject.calibration()) if options.pop("shown", None) == PLAIN else subject.calibration()
    return get_criterion(options)(subject.model, subject.structure, images)


def measure(trial: Trial, subject: Subject) -> dict[str, float]:
    """Accuracy at each stage."""
    scores = scored(json.dumps(trial.criterion), subject)
    model = subject.cut(subject.plan(scores, subject.widths(trial.amount)))
    if trial.layers == FINE_TUNED:
        recalibrated = subject.accuracy(subject.recalibrate(model))
        return {"recalibrated": recalibrated, "tuned": subject.accuracy(subject.tune(model))}
    images, recalibration = (None, 2 * RECALIBRATION_IMAGES) if trial.seed else (IMAGES, RECALIBRATION_IMAGES)
    cut = subject.accuracy(model, images)
    found = {"cut": cut, "recalibrated": subject.accuracy(subject.recalibrate(model, recalibration), images)}
    return {**found, VIEWS: subject.accuracy(model, images, views=True)} if trial.layers == METHOD_B else found


if __name__ == "__main__":
    main()
