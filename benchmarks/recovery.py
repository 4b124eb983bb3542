"""What brings most back for the least training, at fixed widths: rate, warm-up and distillation on held-out images.

ResNet-20 with its public weights loses half of its MACs by L1 inside the blocks; every recipe then trains the same cut
for the same steps on 90 % of CIFAR-10's training images. Accuracy is that on the other 10 %, which decides about
`configs/recipe.yaml`; test images take no part. (The network saw these images in its own training: only the order means
something.)

    python -m benchmarks.recovery --cifar FOLDER --weights FOLDER      # writes benchmarks/results/recovery.md
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import streams_whole
from benchmarks.criteria import read
from benchmarks.machine import describe
from benchmarks.tasks import TEMPERATURE, resnet

OUT = Path(__file__).parent / "results" / "recovery.jsonl"
BUDGET, STEPS, HELD_OUT = 0.5, 100, 0.1
RATES = (0.01, 0.05, 0.02)
SHARES = (0.0, 0.5, 0.9)
WARM_UPS = (0, 10)
HEAD = """\
# Recipes of recovery, on held-out training images

`python -m benchmarks.recovery` on {machine}. ResNet-20 at {budget:.0%} of its MACs (L1, residual streams whole), batch
norm recalibrated, then {steps} steps of 128 images; accuracy in per cent on 5,000 held-out training images, which the
network saw in its own training. One standard error is 0.4. *Distillation* is the share of the loss that is the distance
to the unpruned network's class probabilities at temperature {temperature:g}. Recalibrated only: {before}.

| peak rate | distillation | warm-up, steps | accuracy |
|---:|---:|---:|---:|
"""


def recipes() -> list[dict[str, Any]]:
    """All recipes, those that differ most first."""
    every = itertools.product(WARM_UPS, RATES, SHARES)
    return [{"rate": rate, "distil": share, "warm_up": steps} for steps, rate, share in every]


def table(rows: list[dict[str, Any]]) -> str:
    """Format what was measured, best first."""
    before = next((f"{row['recalibrated']:.2f}" for row in rows), "–")
    text = HEAD.format(machine=describe(), budget=BUDGET, steps=STEPS, temperature=TEMPERATURE, before=before)
    for row in sorted(rows, key=lambda row: -row["tuned"]):
        text += f"| {row['rate']:g} | {row['distil']:g} | {row['warm_up']} | {row['tuned']:.2f} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, default=Path("data"), help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of resnet20.pt")
    parser.add_argument("--out", type=Path, default=OUT, help="where rows are appended")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not options.table:
        task = resnet(20, options.cifar, options.weights, HELD_OUT)
        cut = streams_whole(task, BUDGET, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        task.recalibrate(cut, 0)
        recalibrated = task.evaluate(cut)
        for recipe in recipes():
            if any(all(row[key] == value for key, value in recipe.items()) for row in read(options.out)):
                continue
            model = copy.deepcopy(cut)
            task.tune(model, STEPS, 0, **recipe)
            row = {**recipe, "recalibrated": recalibrated, "tuned": task.evaluate(model)}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    OUT.with_suffix(".md").write_text(table(read(options.out)), encoding="utf-8")


if __name__ == "__main__":
    main()
