"""Speed of a whole pruning call against Torch-Pruning, in one process on the same models and inputs.

    make bench-structure                          # all torchvision classifiers
    python -m benchmarks.structure resnet18 vgg16 # some of them

A call is: find the structure, score by L1, choose half of every group, shrink. Torch-Pruning does the same with
`MagnitudeImportance(p=1)` at a ratio of 0.5, the classifier's outputs kept. The floor is copying the surviving weights
once. Each call gets a fresh copy of the model; the two take turns, and the median counts.
"""

from __future__ import annotations

import copy
import gc
import resource
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

import infoprune
from benchmarks import zoo
from benchmarks.machine import describe

RESULT = Path(__file__).parent / "results" / "structure.md"
REPEATS = 3
LIMIT_S = 120


def ours(model: nn.Module, x: Tensor) -> None:
    """Shrink every group by half."""
    infoprune.prune(model, x, "l1", amount=0.5)


def theirs(model: nn.Module, x: Tensor) -> None:
    """Do the same with Torch-Pruning."""
    outputs = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    outputs += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1000]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=outputs,
    )
    pruner.step()


def seconds(call: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    """Time one call on a copy of a model."""
    fresh = copy.deepcopy(model)
    gc.collect()
    start = time.perf_counter()
    call(fresh, x)
    return time.perf_counter() - start


def floor(model: nn.Module, x: Tensor) -> float:
    """Time to copy what survives once."""
    shrunk = copy.deepcopy(model)
    infoprune.prune(shrunk, x, "l1", amount=0.5)
    start = time.perf_counter()
    for tensor in shrunk.state_dict().values():
        tensor.clone()
    return time.perf_counter() - start


class TooLong(Exception):
    """A call passed the limit."""


def limited(call: Callable[[], float]) -> tuple[float | None, str]:
    """The seconds a call took, or None and why it did not end well."""

    def stop(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        return call(), ""
    except TooLong:
        return None, f"over {LIMIT_S} s"
    except Exception as error:  # the peer's failures are results
        return None, type(error).__name__
    finally:
        signal.alarm(0)


def runs_after(call: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> str:
    """Whether a pruned model still runs."""
    fresh = copy.deepcopy(model)
    call(fresh, x)
    try:
        with torch.no_grad():
            fresh.eval()(x)
    except (RuntimeError, IndexError, TypeError, AssertionError) as error:
        return f"forward fails: {type(error).__name__}"
    return "runs"


def row(name: str) -> dict[str, Any]:
    """Measure one model."""
    model, x = zoo.build(name), zoo.inputs(name)
    mine, peers, reason = [], [], ""
    tracing = []
    for _ in range(REPEATS):
        mine.append(seconds(ours, model, x))
        start = time.perf_counter()
        infoprune.trace(model, x)
        tracing.append(time.perf_counter() - start)
        if not reason:
            peer, reason = limited(lambda: seconds(theirs, model, x))
            peers += [] if peer is None else [peer]
    state = reason or runs_after(theirs, model, x)
    peer_median = statistics.median(peers) if peers and not reason else None
    return {
        "name": name,
        "ours": statistics.median(mine),
        "trace": statistics.median(tracing),
        "theirs": peer_median,
        "floor": min(floor(model, x) for _ in range(3)),
        "state": state,
    }


def format_row(r: dict[str, Any]) -> str:
    """One line of the table."""
    peer = "-" if r["theirs"] is None else f"{r['theirs']:.3f}"
    ratio = "-" if r["theirs"] is None else f"{r['theirs'] / r['ours']:.1f}x"
    return (
        f"| {r['name']} | {r['trace']:.3f} | {r['ours']:.3f} | {peer} | {ratio} | {r['ours'] / r['floor']:.1f}x | "
        f"{r['state']} |"
    )


HEADER = (
    "| model | our trace (s) | our call (s) | Torch-Pruning (s) | ratio | ours to floor | Torch-Pruning's model |\n"
    "|---|---|---|---|---|---|---|"
)


def main(names: list[str]) -> None:
    """Measure, print rows as they come, and write the table when all classifiers were run."""
    warnings.filterwarnings("ignore")
    rows = []
    print(HEADER, flush=True)
    for name in names or zoo.names("classification"):
        rows.append(row(name))
        print(format_row(rows[-1]), flush=True)
    ratios = [r["theirs"] / r["ours"] for r in rows if r["theirs"] is not None]
    if ratios:
        summary = (
            f"{len(rows)} models; both finish on {len(ratios)}: ratio median {statistics.median(ratios):.1f}, "
            f"smallest {min(ratios):.1f}, largest {max(ratios):.1f}. Peak memory of the process: "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB."
        )
        print(summary)
    if not names:
        head = [
            "# Structure engine against Torch-Pruning",
            "",
            f"`make bench-structure`, {describe()}, torch-pruning {torch_pruning.__version__}. {summary}",
            "",
        ]
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join([*head, HEADER, *map(format_row, rows)]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
