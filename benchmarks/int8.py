"""What pruning and int8 together cost and bring: accuracy, time and size of trained CIFAR ResNets.

A network is pruned to a share of its MACs on the grid of widths that pays for int8, recalibrated, exported, and
quantized by training images; it is not tuned. The four models of a runtime (dense and pruned, in fp32 and int8) take
turns on one thread. What int8.jsonl holds already, of as many test images, is not measured again. Run from the
repository root, a network and runtime at a time (two to four minutes each):

    python -m benchmarks.int8 --cifar data --weights resnet20.pt --depth 20 --runtimes onnxruntime openvino
    python -m benchmarks.int8 --cifar data --weights resnet56.pt --depth 56 --images 2000  # the first test images only
    python -m benchmarks.int8 --table               # only int8.md, from what was measured before
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import infoprune
from benchmarks.cells import Cells
from benchmarks.machine import describe
from benchmarks.subject import Subject
from infoprune.backends import get_backend
from infoprune.deploy import to_int8, to_openvino
from infoprune.export import to_onnx
from infoprune.speed import Speed

RESULTS = Path(__file__).parent / "results" / "int8.jsonl"
TABLE = RESULTS.with_suffix(".md")
CELLS = Cells(RESULTS, ("network", "runtime", "model", "precision"))
RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "int8")
KEEP = 0.8
BATCH = 8
REPEATS = 61


def measured(subject: Subject, pruned: nn.Module, depth: int, runtime: str, count: int) -> Iterator[dict[str, Any]]:
    """Measure the dense and the pruned network in a runtime, in both precisions."""
    networks = {"dense": subject.model, "pruned": pruned}
    images = torch.randn(BATCH, 3, 32, 32)
    runs = {
        (name, precision): get_backend({"name": runtime, "precision": precision}).warmed_up(network, images)
        for name, network in networks.items()
        for precision in PRECISIONS
    }
    rounds = [{key: run() for key, run in runs.items()} for _ in range(REPEATS)]
    speeds = {key: Speed(tuple(seconds[key] for seconds in rounds), BATCH, 0) for key in runs}
    for name, network in networks.items():
        right = {"fp32": subject.accuracy(network, count) / 100}
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx" if runtime == "onnxruntime" else "model.xml")
            (to_onnx if runtime == "onnxruntime" else to_openvino)(network, images, path)
            sizes = {"fp32": _bytes(folder)}
        with TemporaryDirectory() as folder:
            quantized = to_int8(network, images, Path(folder, path.name), subject.calibration(), runtime)
            sizes["int8"] = _bytes(folder)
            right["int8"] = subject.accuracy(quantized, count) / 100
        for precision in PRECISIONS:
            low, high = speeds[name, precision].interval(speeds["dense", precision])
            yield {
                "network": f"ResNet-{depth}", "runtime": runtime, "model": name, "precision": precision,
                "images": count, "accuracy": right[precision], "bytes": sizes[precision],
                "seconds": speeds[name, precision].median,
                "speedup": speeds[name, precision].times_as_fast_as(speeds["dense", precision]),
                "low": low, "high": high,
            }  # fmt: skip


def pruned_for_int8(subject: Subject, runtime: str) -> nn.Module:
    """Return a pruned copy of the network, with widths that pay for int8 in a runtime."""
    pruned = copy.deepcopy(subject.model)
    backend = {"name": runtime, "precision": "int8"}
    infoprune.prune(pruned, torch.zeros(1, 3, 32, 32), macs=KEEP, backend=backend, data=subject.calibration())
    return subject.recalibrate(pruned)


def table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the results as Markdown."""
    yield "# Pruned and in int8"
    yield ""
    yield f"`python -m benchmarks.int8` on {describe()}."
    yield f"CIFAR-10, public weights, pruned to {KEEP:.0%} of the MACs on the grid of widths that pays for int8 in the"
    yield "runtime, recalibrated, not tuned. Accuracy on the first so many test images; ms for"
    yield f"{BATCH} images, one thread, medians of models that take turns; speed-up over the dense model in the same"
    yield "precision, with its 95 % interval."
    yield ""
    yield "| network | runtime | model | precision | accuracy | images | ms | speed-up | size |"
    yield "|---" * 9 + "|"
    for row in rows:
        fast = "" if row["model"] == "dense" else f"{row['speedup']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        yield (
            f"| {row['network']} | {row['runtime']} | {row['model']} | {row['precision']} | {row['accuracy']:.2%} | "
            f"{row['images']:,} | {1e3 * row['seconds']:.1f} | {fast} | {row['bytes'] / 1e6:.2f} MB |"
        )


def _bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, help="state dict of the ResNet")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--images", type=int, default=10_000, help="test images to measure the accuracy on")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for runtime in () if options.table else options.runtimes:
        cells = [(f"ResNet-{options.depth}", runtime, *kind) for kind in product(("dense", "pruned"), PRECISIONS)]
        if all(CELLS.read().get(cell, {}).get("images") == options.images for cell in cells):
            continue
        subject = Subject(options.cifar, options.weights, frozen=(), depth=options.depth)
        for row in measured(subject, pruned_for_int8(subject, runtime), options.depth, runtime, options.images):
            print(row, flush=True)
            CELLS.keep(row)
    TABLE.write_text("\n".join(table(CELLS.read().values())) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
