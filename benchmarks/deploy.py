"""Is a pruned model faster where it is deployed? Models at half of their MACs, by backend, grid and precision.

Original and pruned models take turns; one thread, processor time. Each line of results is written as soon as it is
measured, and replaces an older one of the same cell. Run from the repository root, a slice at a time (three to five
minutes each) or all of it:

    python -m benchmarks.deploy  # everything; writes deploy.jsonl and deploy.md into benchmarks/results
    python -m benchmarks.deploy --models resnet50 --precisions int8 --backends openvino
    python -m benchmarks.deploy --backends compile --grids 1 auto   # where loading takes long
    python -m benchmarks.deploy --table                    # only deploy.md, from what was measured before
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import infoprune
from benchmarks import zoo
from benchmarks.cells import Cells
from benchmarks.machine import describe
from infoprune.speed import side_by_side

RESULTS = Path(__file__).parent / "results" / "deploy.jsonl"
TABLE = RESULTS.with_suffix(".md")
CELLS = Cells(RESULTS, ("model", "backend", "precision", "grid"))
REPEATS = 21
KEEP = 0.5
MODELS = (
    "resnet50",
    "convnext_tiny",
    "mobilenet_v2",
    "resnet18",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "vit_b_16",
    "swin_t",
    "lraspp_mobilenet_v3_large",
    "segmentation-models/Unet",
)
BACKENDS = ("onnxruntime", "openvino", "executorch", "compile", "eager")
IN_INT8 = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "int8")
STEPS = ("1", "4", "8", "16", "auto")
GRIDS = (*STEPS, "backend")


def measured(name: str, precision: str, backends: Collection[str], grids: Collection[str]) -> Iterator[dict[str, Any]]:
    """Measure one network."""
    torch.manual_seed(0)
    model, images = zoo.build(name).eval(), torch.randn(1, 3, 224, 224)
    models: dict[str, nn.Module] = {"original": model}
    left: dict[str, float] = {}

    def cut(grid: str, **options: Any) -> None:
        models[grid] = copy.deepcopy(model)
        result = infoprune.prune(models[grid], images, "l1", macs=KEEP, **options)
        left[grid] = result.after.macs / result.before.macs

    for step in (step for step in STEPS if step in grids):
        cut(step, round_to=step if step == "auto" else int(step))
    for backend in backends:
        if precision == "int8" and backend not in IN_INT8:
            continue
        spec = {"name": backend, "precision": precision} if backend in IN_INT8 else backend
        if "backend" in grids:
            cut("backend", backend=spec)
        speeds = side_by_side(models, images, REPEATS, memory=False, backend=spec)
        for grid in grids:
            low, high = speeds[grid].interval(speeds["original"])
            yield {
                "model": name, "backend": backend, "precision": precision, "grid": grid, "macs": left[grid],
                "original_s": speeds["original"].median, "pruned_s": speeds[grid].median,
                "speedup": speeds[grid].times_as_fast_as(speeds["original"]), "low": low, "high": high,
            }  # fmt: skip


def table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the results as Markdown."""
    yield "# Speed where models are deployed"
    yield ""
    yield f"`python -m benchmarks.deploy` on {describe()}."
    yield f"Pruned by `l1` to {KEEP:.0%} of the MACs, batch 1, one thread. Models take turns; medians of processor"
    yield "time, in brackets the share of the ideal speed-up, which is the MACs before over those after. Grids: widths"
    yield "in multiples of 1, 4, 8 or 16 (`round_to=`), of `auto`, or those that pay in the backend (`backend=`)."
    yield "In bold: the 95 % interval of the speed-up reaches below 1. Cells of a row may be of several runs; each"
    yield "compares with the original in its own."
    yield ""
    yield f"| model | backend | precision | original | {' | '.join(f'`{grid}`' for grid in GRIDS)} |"
    yield "|---" * (4 + len(GRIDS)) + "|"
    cells = {tuple(row[name] for name in ("model", "backend", "precision", "grid")): row for row in rows}
    order = {name: place for place, name in enumerate((*MODELS, *BACKENDS, *PRECISIONS))}
    for key in sorted({cell[:3] for cell in cells}, key=lambda key: [order[name] for name in key]):
        found = [cells.get((*key, grid)) for grid in GRIDS]
        original = f"{1e3 * next(row['original_s'] for row in found if row):.1f} ms"
        yield f"| {' | '.join((*key, original, *map(_text, found)))} |"


def _text(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['speedup']:.2f} ({row['speedup'] * row['macs']:.0%})"
    return f"**{text}**" if row["low"] < 1 else text


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=GRIDS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for precision in () if options.table else options.precisions:
        for name in options.models:
            for row in measured(name, precision, options.backends, options.grids):
                print(_text(row), row, flush=True)
                CELLS.keep(row)
    TABLE.write_text("\n".join(table(CELLS.read().values())) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
