"""What many events, and many fits, leave behind in one process: live tensors, modules, hooks, resident memory.

The same with `FilterPruning`, without it, and with Lightning's own `ModelPruning`, each in a process of its own. Once
more without oneDNN, which keeps a compiled kernel for every shape that it meets (1,024 at most): every event makes new
shapes. Run from the repository root (a few minutes):

    python -m benchmarks.leaks                # writes benchmarks/results/leaks.md
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelPruning

from benchmarks.callback_overhead import Plain, fit
from benchmarks.machine import describe
from infoprune import FilterPruning
from infoprune.models import CifarResNet
from tests.alive import alive, resident, tensor_bytes

RESULTS = Path(__file__).parent / "results" / "leaks.md"
EARLY = 5
WITHOUT_ONEDNN = "FilterPruning, oneDNN off"
KINDS = ("nothing", "FilterPruning", WITHOUT_ONEDNN, "ModelPruning")

Held = dict[str, float]


def held() -> Held:
    """What the process holds now."""
    counts = alive()
    kinds = ("tensors", "modules", "hooks", "optimizers")
    return {
        **{kind: counts[kind] for kind in kinds},
        "MiB of tensors": tensor_bytes() / 2**20,
        "resident MiB": resident(),
    }


def pruning(kind: str, events: int) -> list[pl.Callback]:
    """A callback of a kind that prunes so many times, at the start (or the end) of every epoch but the first."""
    if kind in ("FilterPruning", WITHOUT_ONEDNN):
        return [FilterPruning("l1", macs=0.3, schedule=list(range(1, events + 1)))]
    if kind == "ModelPruning":
        once_an_epoch = lambda epoch: 0.02 if epoch < events else 0.0  # noqa: E731
        return [ModelPruning("l1_unstructured", amount=once_an_epoch, use_lottery_ticket_hypothesis=False)]
    return []


class Count(pl.Callback):
    """Notes what is held behind the first few events, and behind the last."""

    def __init__(self, epochs: tuple[int, int]) -> None:
        self.epochs = epochs
        self.held: list[Held] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch in self.epochs and trainer.is_last_batch:
            self.held.append(held())


def events(kind: str, count: int) -> list[Held]:
    """One fit with many events."""
    watch = Count((EARLY, count))
    fit(Plain(CifarResNet(depth=8)), count + 1, *pruning(kind, count), watch, batch=2, batches=2)
    return watch.held


def fits(kind: str, count: int) -> list[Held]:
    """Many fits with one event each, of a new module, callback and Trainer."""
    found = []
    for number in range(1, count + 1):
        fit(Plain(CifarResNet(depth=8)), 2, *pruning(kind, 1), batch=2, batches=2)
        if number in (EARLY, count):
            found.append(held())
    return found


def measured(job: tuple[Callable[[str, int], list[Held]], str, int]) -> list[Held]:
    """Run one of the above, in a process that does nothing else."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what, kind, count = job
    torch.backends.mkldnn.set_flags(kind != WITHOUT_ONEDNN)
    return what(kind, count)


def table(what: str, count: int, results: list[list[Held]]) -> list[str]:
    """One row for each kind: what was held early and late."""
    columns = list(results[0][0])
    rows = [f"| {count} {what} with | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for kind, (early, late) in zip(KINDS, results, strict=True):
        cells = [f"{early[column]:.10g} → {late[column]:.10g}" for column in columns[:4]]
        cells += [f"{early[column]:.1f} → {late[column]:.1f}" for column in columns[4:]]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return [*rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="events, and fits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(what, kind, options.count) for what in (events, fits) for kind in KINDS]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = pool.map(measured, jobs, chunksize=1)
    text = "\n".join(
        [
            "# What events and fits leave behind",
            "",
            f"`python -m benchmarks.leaks` on {describe()}, Lightning {pl.__version__}: a ResNet-8 with SGD momentum.",
            f"Held by the process after {EARLY} and after {options.count} of them (the first few fill caches).",
            "",
            *table("events", options.count, results[: len(KINDS)]),
            *table("fits", options.count, results[len(KINDS) :]),
            "The network shrinks with every event of `FilterPruning`, and so does the memory of its tensors.",
            "oneDNN keeps a kernel for every shape it meets (1,024 at most), and events make new shapes.",
            "`nothing`: the same fit without pruning. `ModelPruning` is Lightning's own, which masks weights.",
            "",
        ]
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
