"""What brings most back for the least training, at fixed widths: reconstruction, rate, warm-up, distillation.

ResNet-20 with its public weights loses half of its MACs by L1 inside the blocks; every recipe then trains the same cut
for the same steps on 90 % of CIFAR-10's training images. Accuracy is that on the other 10 %, which decides about
`configs/recipe.yaml`; test images take no part. (The network saw these images in its own training: only the order means
something.)

    python -m benchmarks.recovery --cifar FOLDER --weights FOLDER      # writes benchmarks/results/recovery.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import infoprune
from benchmarks.accuracy import streams_whole
from benchmarks.criteria import read
from benchmarks.machine import describe
from benchmarks.tasks import TEMPERATURE, Task, resnet

OUT = Path(__file__).parent / "results" / "recovery.jsonl"
BUDGET, STEPS, HELD_OUT = 0.5, 100, 0.1
RECONSTRUCTION_IMAGES = 384
RATES = (0.01, 0.05, 0.02)
SHARES = (0.0, 0.5, 0.9)
WARM_UPS = (0, 10)
HEAD = """\
# Recipes of recovery, on held-out training images

`python -m benchmarks.recovery` on {machine}. ResNet-20 at {budget:.0%} of its MACs (L1, residual streams whole), batch
norm recalibrated, then {steps} steps of 128 images; accuracy in per cent on 5,000 held-out training images, which the
network saw in its own training. One standard error is 0.4. *Reconstructed*: the layers that read what went are fitted
to their former outputs (`infoprune.reconstruct`, {images} images) before batch norm is recalibrated. *Distillation* is
the share of the loss that is the distance to the unpruned network's class probabilities at temperature {temperature:g}.

| reconstructed | peak rate | distillation | warm-up, steps | before training | after |
|---|---:|---:|---:|---:|---:|
"""


def recipes() -> list[dict[str, Any]]:
    """All recipes, those that differ most first."""
    every = itertools.product(WARM_UPS, RATES, SHARES, (False, True))
    return [
        {"reconstructed": fitted, "rate": rate, "distil": share, "warm_up": steps}
        for steps, rate, share, fitted in every
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Format what was measured, best first."""
    text = HEAD.format(
        machine=describe(), budget=BUDGET, steps=STEPS, temperature=TEMPERATURE, images=RECONSTRUCTION_IMAGES
    )
    for row in sorted(rows, key=lambda row: -row["tuned"]):
        fitted = "yes" if row["reconstructed"] else "no"
        text += f"| {fitted} | {row['rate']:g} | {row['distil']:g} | {row['warm_up']} | {row['recalibrated']:.2f} "
        text += f"| {row['tuned']:.2f} |\n"
    return text


def start(task: Task, reconstructed: bool) -> nn.Module:
    """Return the cut network, before training."""
    model = streams_whole(task, BUDGET, 0)
    if reconstructed:
        infoprune.reconstruct(model, task.model, task.batches(RECONSTRUCTION_IMAGES, 0))
    task.recalibrate(model, 0)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
        for recipe in recipes():
            if any(all(row[key] == value for key, value in recipe.items()) for row in read(options.out)):
                continue
            model = start(task, recipe["reconstructed"])
            recalibrated = task.evaluate(model)
            task.tune(model, STEPS, 0, **{key: value for key, value in recipe.items() if key != "reconstructed"})
            row = {**recipe, "recalibrated": recalibrated, "tuned": task.evaluate(model)}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    OUT.with_suffix(".md").write_text(table(read(options.out)), encoding="utf-8")


if __name__ == "__main__":
    main()
