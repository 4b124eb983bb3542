"""What many events, and many fits, leave behind in one process: live tensors, modules, hooks, resident memory.

The same with `FilterPruning`, without it, and with Lightning's own `ModelPruning`, each in a process of its own.

oneDNN keeps a compiled kernel for every shape that it meets (1,024 at most), and every event makes new shapes. How much
of the growth is that: a bare loop without Trainer or callback trains a new network at the widths behind each event;
both once more without oneDNN; the same events once more in a process that knows their shapes already, with room for all
kernels; and, with PyTorch's own settings, in a process whose cache is full from three times as many events. Run from
the repository root (a few minutes):

    python -m benchmarks.leaks                # writes benchmarks/results/leaks.md
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelPruning

from benchmarks.callback_overhead import Plain, fit
from benchmarks.machine import describe
from infoprune import FilterPruning, PruningPlan, shrink
from infoprune.models import CifarResNet
from infoprune.structure import plan_of
from tests.alive import alive, resident, tensor_bytes

RESULTS = Path(__file__).parent / "results" / "leaks.md"
EARLY = 5
KINDS = ("nothing", "FilterPruning", "ModelPruning")
BARE = "new networks, bare loop"
ONEDNN_OFF = ", oneDNN off"
AGAIN = "FilterPruning, all shapes known"
FULL = "FilterPruning, kernel cache full"
ROUNDS_TO_FILL = 3
ROOM_FOR_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192"}

Held = dict[str, float]


def held() -> Held:
    """Return the memory that the process holds now."""
    counts = alive()
    kinds = ("tensors", "modules", "hooks", "optimizers")
    return {
        **{kind: counts[kind] for kind in kinds},
        "MiB of tensors": tensor_bytes() / 2**20,
        "resident MiB": resident(),
    }


def pruning(kind: str, events: int) -> list[pl.Callback]:
    """Return a callback of a kind that prunes so many times, at the start (or the end) of every epoch but the first."""
    if kind == "FilterPruning":
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


def again(job: Callable[[], list[Held]], rounds: int = 1) -> list[Held]:
    """Measure once more in a process that has run so many times before and knows every shape."""
    for _ in range(rounds):
        job()
    return job()


class Plans(pl.Callback):
    """Notes what is cut off in each epoch, all events so far joined."""

    def __init__(self) -> None:
        self.plans: list[str] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Plain, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.plans.append(plan_of(module.net).to_json())


def plans_met(count: int) -> list[str]:
    """Return what the events of `events` cut off, epoch by epoch."""
    watch = Plans()
    fit(Plain(CifarResNet(depth=8)), count + 1, *pruning("FilterPruning", count), watch, batch=2, batches=2)
    return watch.plans


def bare(plans: list[str]) -> list[Held]:
    """For each plan a new network of its widths, trained for as long as an epoch of `events`."""
    found = []
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(10, (2,))
    for epoch, plan in enumerate(plans):
        network = CifarResNet(depth=8)
        shrink(network, PruningPlan.from_json(plan))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        if epoch in (EARLY, len(plans) - 1):
            found.append(held())
    return found


def alone(job: Callable[[], Any], onednn: bool = True, environment: Mapping[str, str] | None = None) -> Any:
    """Run one of the above, in a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(quietly, (job, onednn, environment or {}))


def quietly(job: Callable[[], Any], onednn: bool, environment: Mapping[str, str]) -> Any:
    """Run the measurement in the other process."""
    os.environ.update(environment)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.backends.mkldnn.set_flags(onednn)
    return job()


def event_rows(count: int) -> dict[str, list[Held]]:
    """Return the table of one fit with many events."""
    rows = {kind: alone(partial(events, kind, count)) for kind in KINDS}
    plans = alone(partial(plans_met, count))
    rows[BARE] = alone(partial(bare, plans))
    rows["FilterPruning" + ONEDNN_OFF] = alone(partial(events, "FilterPruning", count), onednn=False)
    rows[BARE + ONEDNN_OFF] = alone(partial(bare, plans), onednn=False)
    job = partial(events, "FilterPruning", count)
    rows[AGAIN] = alone(partial(again, job), environment=ROOM_FOR_KERNELS)
    rows[FULL] = alone(partial(again, job, ROUNDS_TO_FILL))
    return rows


def fit_rows(count: int) -> dict[str, list[Held]]:
    """Return the table of many fits with one event each."""
    rows = {kind: alone(partial(fits, kind, count)) for kind in KINDS}
    rows["FilterPruning" + ONEDNN_OFF] = alone(partial(fits, "FilterPruning", count), onednn=False)
    job = partial(fits, "FilterPruning", count)
    rows[AGAIN] = alone(partial(again, job), environment=ROOM_FOR_KERNELS)
    rows[FULL] = alone(partial(again, job, ROUNDS_TO_FILL))
    return rows


def table(what: str, count: int, rows: dict[str, list[Held]]) -> list[str]:
    """One row for each kind: what was held early and late."""
    columns = list(rows["nothing"][0])
    lines = [f"| {count} {what} with | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for kind, (early, late) in rows.items():
        cells = [f"{early[column]:.10g} → {late[column]:.10g}" for column in columns[:4]]
        cells += [f"{early[column]:.1f} → {late[column]:.1f}" for column in columns[4:]]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return [*lines, ""]


def verdict(rows: dict[str, list[Held]]) -> list[str]:
    """How much of the growth a loop without the callback has too."""
    grown = {kind: late["resident MiB"] - early["resident MiB"] for kind, (early, late) in rows.items()}
    both = [("FilterPruning" + off, BARE + off) for off in ("", ONEDNN_OFF)]
    (ours, theirs), (ours_off, theirs_off) = ((grown[callback], grown[bare_loop]) for callback, bare_loop in both)
    room = " ".join("=".join(pair) for pair in ROOM_FOR_KERNELS.items())
    return [
        "oneDNN keeps a kernel for every shape it meets (1,024 at most), and events make new shapes. `new networks`",
        "meet the same widths in a loop without Trainer and callback, and resident memory grows there as well: by",
        f"{theirs:.1f} MiB, with `FilterPruning` by {ours:.1f} MiB; without oneDNN by {theirs_off:.1f} and "
        f"{ours_off:.1f} MiB.",
        "",
        "`all shapes known`: the same for the second time in one process that has room for all kernels",
        f"(`{room}`). What grows there is what the events themselves leave behind:",
        f"{grown[AGAIN]:+.2f} MiB. On purpose the callback keeps a record of every event, for the report.",
        "",
        f"`kernel cache full`: PyTorch's own settings, behind {ROUNDS_TO_FILL} times as many events in the same",
        f"process. The cache throws out as many kernels as it takes in from then on: {grown[FULL]:+.1f} MiB.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="events, and fits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    of_events = event_rows(options.count)
    text = "\n".join(
        [
            "# What events and fits leave behind",
            "",
            f"`python -m benchmarks.leaks` on {describe()}, Lightning {pl.__version__}: a ResNet-8 with SGD momentum.",
            f"Held by the process after {EARLY} and after {options.count} of them (the first few fill caches).",
            "",
            *table("events", options.count, of_events),
            *verdict(of_events),
            *table("fits", options.count, fit_rows(options.count)),
            "The network shrinks with every event of `FilterPruning`, and so does the memory of its tensors.",
            "`nothing`: the same fit without pruning. `ModelPruning` is Lightning's own, which masks weights.",
            "",
        ]
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
