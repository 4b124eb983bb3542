"""Is a pruned model faster where it is deployed? Models at half of their MACs, by backend, grid and precision.

Original and pruned models take turns; one thread, processor time. Each line of results is written as soon as it is
measured. Run from the repository root (half an hour on a quiet machine):

    python -m benchmarks.deploy          # writes benchmarks/results/deploy.jsonl and deploy.md
    python -m benchmarks.deploy --table  # only deploy.md, from what was measured before
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe
from infoprune.backends import get_backend
from infoprune.models import CifarResNet
from infoprune.speed import side_by_side

RESULTS = Path(__file__).parent / "results" / "deploy.jsonl"
TABLE = RESULTS.with_suffix(".md")
REPEATS = 15
KEEP = 0.5
MODELS = ("mobilenet_v2", "resnet56", "resnet50", "convnext_tiny")
BACKENDS = ("onnxruntime", "openvino", "eager")
GRIDS = ("1", "auto", "backend")


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network and one image for it."""
    torch.manual_seed(0)
    if name == "resnet56":
        return CifarResNet(depth=56).eval(), torch.randn(1, 3, 32, 32)
    return zoo.build(name).eval(), torch.randn(1, 3, 224, 224)


def measured(name: str, precision: str) -> Iterator[dict[str, Any]]:
    """Measure one network."""
    model, images = network(name)
    cuts: dict[str, nn.Module] = {}
    left: dict[str, float] = {}

    def cut(key: str, **options: Any) -> None:
        cuts[key] = copy.deepcopy(model)
        result = infoprune.prune(cuts[key], images, "l1", macs=KEEP, **options)
        left[key] = result.after.macs / result.before.macs

    cut("1", round_to=1)
    cut("auto")
    for backend in BACKENDS:
        if precision == "int8" and backend == "eager":
            continue
        spec = backend if backend == "eager" else {"name": backend, "precision": precision}
        cut("backend", backend=spec)
        models = {"original": model, **{grid: cuts[grid] for grid in GRIDS}}
        speeds = side_by_side(models, images, REPEATS, memory=False, backend=get_backend(spec))
        for grid in GRIDS:
            low, high = speeds[grid].interval(speeds["original"])
            yield {
                "model": name, "backend": backend, "precision": precision, "grid": grid, "macs": left[grid],
                "original_s": speeds["original"].median, "pruned_s": speeds[grid].median,
                "speedup": speeds[grid].times_as_fast_as(speeds["original"]), "low": low, "high": high,
            }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the results as Markdown."""
    yield "# Speed where models are deployed"
    yield ""
    yield f"`python -m benchmarks.deploy` on {describe()}."
    yield f"Pruned by `l1` to {KEEP:.0%} of the MACs, batch 1, one thread. Models take turns; medians of processor"
    yield "time, in brackets the 95 % interval of the speed-up. Grids: any widths (`round_to=1`), of `auto`, or"
    yield "multiples that pay in the backend by measurement (`backend=`)."
    yield "In bold: intervals that reach below 1. Ideal: the MACs before over those after."
    yield ""
    yield "| model | backend | precision | original | `round_to=1` | `auto` | `backend=` | ideal |"
    yield "|---|---|---|---|---|---|---|---|"
    cells = {(row["model"], row["backend"], row["precision"], row["grid"]): row for row in rows}
    for key in dict.fromkeys(key[:3] for key in cells):
        found = [cells.get((*key, grid)) for grid in GRIDS]
        texts = [_cell(row) if row else "" for row in found]
        last = next(row for row in reversed(found) if row)
        yield (
            f"| {' | '.join(key)} | {1e3 * last['original_s']:.1f} ms | {' | '.join(texts)} | {1 / last['macs']:.2f} |"
        )


def _cell(row: dict[str, Any]) -> str:
    text = f"{row['speedup']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    return f"**{text}**" if row["low"] < 1 else text


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "--table" not in sys.argv:
        with RESULTS.open("w", encoding="utf-8") as file:
            for precision in ("fp32", "int8"):
                for name in MODELS:
                    for row in measured(name, precision):
                        print(json.dumps(row), file=file, flush=True)
                        print(_cell(row), row, flush=True)
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    TABLE.write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
