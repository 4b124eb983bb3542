"""What `FilterPruning` costs: nothing between events, little at one.

- *Idle*: time of a step and of an epoch with the callback (its only event still to come) and without, in turns;
  tensors and memory of a fit with and without it.
- *Afterwards*: time of a training step of a network that was pruned in a fit, and of one built with its widths.
- *Before the first batch*: tracing and deciding ahead, and the rehearsal of the cut, in seconds and as a share of a
  short fit.
- *An event*: tracing, deciding, dry runs, surgery and records on a ResNet-50, and scoring apart.

Run from the repository root, on a machine that does nothing else:

    python -m benchmarks.callback_overhead                # writes benchmarks/results/callback_overhead.md
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import time
import timeit
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.machine import describe
from infoprune import FilterPruning
from infoprune.models import CifarResNet
from tests.alive import alive, resident, tensor_bytes

RESULTS = Path(__file__).parent / "results" / "callback_overhead.md"
BATCHES = 20


def now() -> float:
    """Seconds; on the CPU, with one thread, processor time, which does not count what other programs take."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Plain(pl.LightningModule):
    """An ordinary classifier."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> None:
        super().__init__()
        self.net = net
        self.example_input_array = torch.zeros(1, *shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Alternate(pl.Callback):
    """Times the steps and epochs of one fit, with the callback in every other epoch; the first two do not count."""

    def __init__(self, callback: pl.Callback) -> None:
        self.callback = callback
        self.steps: dict[bool, list[float]] = {False: [], True: []}
        self.epochs: dict[bool, list[float]] = {False: [], True: []}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._with = trainer.current_epoch % 2 == 1
        others = [callback for callback in trainer.callbacks if callback is not self.callback]
        trainer.callbacks = [*others, self.callback] if self._with else others
        self._epoch, self._last = now(), None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        moment = now()
        if trainer.current_epoch > 1 and self._last is not None:
            self.steps[self._with].append(moment - self._last)
        self._last = moment

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 1:
            self.epochs[self._with].append(now() - self._epoch)

    _with = False
    _epoch = 0.0
    _last: float | None = None


def fit(
    module: Plain,
    epochs: int,
    *callbacks: pl.Callback,
    batch: int = 32,
    batches: int = BATCHES,
    device: str = "cpu",
) -> pl.Trainer:
    """Train on random images of the module's size."""
    shape = module.example_input_array.shape[1:]  # type: ignore[union-attr]
    data = TensorDataset(torch.randn(batches * batch, *shape), torch.randint(10, (batches * batch,)))
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch))
    return trainer


def idle(epochs: int, device: str) -> list[str]:
    """Time steps and epochs with and without the callback, alternating."""
    callback = FilterPruning("l1", macs=0.5, schedule=2 * epochs + 2)
    watch = Alternate(callback)
    trainer = fit(
        Plain(CifarResNet(depth=8)),
        2 * epochs + 3,
        watch,
        callback,
        _StopAfter(2 * epochs + 2),
        batch=16,
        device=device,
    )
    rows = [
        compared(f"idle, one {name} of ResNet-8 (batches of 16)", seconds[False], seconds[True])
        for name, seconds in (("step", watch.steps), ("epoch", watch.epochs))
    ]
    hook = timeit.timeit(lambda: callback.on_train_batch_start(trainer, trainer.lightning_module, None, 1), number=1000)
    return [*rows, f"| idle, in the callback's own hook of a step | | {hook:.5f} ms | | |"]


def compared(what: str, plain: list[float], other: list[float]) -> str:
    """Return a row with the medians of two samples, and how far their medians and their minima are apart."""
    first, second = statistics.median(plain), statistics.median(other)
    least = min(other) / min(plain) - 1
    return f"| {what} | {first * 1e3:.2f} ms | {second * 1e3:.2f} ms | {second / first - 1:+.2%} | {least:+.2%} |"


class _Held(pl.Callback):
    """Notes what the process holds in the last epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.held = (0, 0, 0.0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epochs - 1:
            self.held = alive()["tensors"], tensor_bytes(), resident()


def idle_memory(callback: bool) -> tuple[int, int, float]:
    """Tensors, their bytes and resident MiB at the end of a fit whose only event would still have to come."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    watch = _Held(epochs=4)
    callbacks = [FilterPruning("l1", macs=0.5, schedule=4)] if callback else []
    fit(Plain(CifarResNet(depth=56)), 5, *callbacks, watch, _StopAfter(4), batch=16, batches=4)
    return watch.held


def memory() -> list[str]:
    """Measure the memory held with the callback and without, each in its own process."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        plain, other = pool.map(idle_memory, [False, True], chunksize=1)
    return [
        f"| idle, live tensors of a fit of ResNet-56 | {plain[0]} | {other[0]} | {other[0] - plain[0]:+d} | |",
        f"| idle, their memory | {plain[1] / 2**20:.2f} MiB | {other[1] / 2**20:.2f} MiB | "
        f"{other[1] / plain[1] - 1:+.2%} | |",
        f"| idle, resident memory of the process | {plain[2]:.0f} MiB | {other[2]:.0f} MiB | "
        f"{other[2] / plain[2] - 1:+.2%} | |",
    ]


class _StopAfter(pl.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class Chain(nn.Sequential):
    """Convolutions of any widths."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def afterwards(steps: int, device: str) -> str:
    """Time steps of a network pruned in a fit and of one built that narrow, alternating."""
    pruned = Plain(Chain(64, 64, 96))
    fit(pruned, 1, FilterPruning("l1", macs=0.5, schedule=0), device=device)
    built = Plain(Chain(*(layer.out_channels for layer in pruned.net if isinstance(layer, nn.Conv2d))))  # type: ignore[union-attr]
    batch = [torch.randn(16, 3, 32, 32, device=device), torch.randint(10, (16,), device=device)]
    seconds: list[list[float]] = [[], []]
    modules = [built.to(device), pruned.to(device)]
    optimizers = [module.configure_optimizers() for module in modules]
    for step in range(steps):
        for module, optimizer, times in zip(modules, optimizers, seconds, strict=True):
            start = now()
            optimizer.zero_grad()
            module.training_step(batch, step).backward()
            optimizer.step()
            if step >= 5:
                times.append(now() - start)
    return compared("one step: built narrow, pruned to it", *seconds)


class Stopwatch:
    """Sums the seconds of calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def call(*args: Any, **options: Any) -> Any:
            start = now()
            result = function(*args, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - start
            return result

        return call


def before(name: str, module: Plain, batch: int, batches: int, device: str, epochs: int = 5) -> str:
    """Return a row with the seconds before the first batch of a short fit, and their share of it."""
    watch, callback = Stopwatch(), FilterPruning("l1", macs=0.5, schedule=1)
    callback.on_train_start = watch.timed("ahead", callback.on_train_start)  # type: ignore[method-assign]
    start_batch = callback.on_train_batch_start

    def first_batch(trainer: Any, module: Any, data: Any, index: int) -> None:
        # The rehearsal with the check of the steps before it, but not the event, which may be at a batch too.
        key = "rehearsal" if (trainer.current_epoch, index) == (0, 0) else "later"
        watch.timed(key, start_batch)(trainer, module, data, index)

    callback.on_train_batch_start = first_batch  # type: ignore[method-assign]
    watch.timed("fit", fit)(module, epochs, callback, batch=batch, batches=batches, device=device)
    ahead, rehearsal, whole = (watch.seconds[key] for key in ("ahead", "rehearsal", "fit"))
    share = (ahead + rehearsal) / whole
    return f"| {name} | {ahead:.2f} s | {rehearsal:.2f} s | {whole:.1f} s | {share:.1%} | {rehearsal / whole:.1%} |"


def event(criterion: str, device: str) -> tuple[float, float]:
    """Seconds of one event on a ResNet-50 in a fit, and of the scoring within."""
    watch, callback = Stopwatch(), FilterPruning(criterion, macs=0.5, schedule=1)
    callback.on_train_epoch_start = watch.timed("event", callback.on_train_epoch_start)  # type: ignore[method-assign]
    kind = type(callback._engine.options.criterion)
    score = kind.__call__
    kind.__call__ = watch.timed("scoring", score)  # type: ignore[method-assign]
    try:
        module = Plain(torchvision.models.resnet50(), (3, 224, 224))
        fit(module, 2, callback, batch=2, batches=1, device=device)
    finally:
        kind.__call__ = score  # type: ignore[method-assign]
    return watch.seconds["event"], watch.seconds["scoring"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of either kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fit(Plain(CifarResNet(depth=8)), 1, device=options.device)  # what is only paid once
    rows = [
        *idle(options.epochs, options.device),
        *memory(),
        afterwards(20 * options.epochs, options.device),
    ]
    short = [
        before("ResNet-8, batches of 32 images of 32 x 32", Plain(CifarResNet(depth=8)), 32, BATCHES, options.device),
        before("ResNet-56, batches of 32 images of 32 x 32", Plain(CifarResNet(depth=56)), 32, BATCHES, options.device),
        before(
            "ResNet-50, batches of 8 images of 224 x 224",
            Plain(torchvision.models.resnet50(), (3, 224, 224)),
            8,
            2,
            options.device,
        ),
    ]
    events = []
    for criterion in ("l1", "capacity_independence"):
        whole, scoring = event(criterion, options.device)
        events.append(f"| {criterion} | {whole:.2f} s | {scoring:.2f} s | {whole - scoring:.2f} s |")
    text = "\n".join(
        [
            "# What FilterPruning costs",
            "",
            f"`python -m benchmarks.callback_overhead` on {describe()}, Lightning {pl.__version__}.",
            "",
            "| | without | with | difference | of minima |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Before the first batch of a fit of five epochs of 20 batches (ResNet-50: of 2), with an event at epoch 1:",
            "",
            "| network | tracing, deciding ahead | rehearsal | fit | share of both | of the rehearsal |",
            "|---|---|---|---|---|---|",
            *short,
            "",
            "One event on a ResNet-50 (25.6 million parameters, 224 × 224 pixels) with SGD, to half of the MACs:",
            "",
            "| criterion | event | of it scoring | the rest |",
            "|---|---|---|---|",
            *events,
            "",
            "Medians of steps and epochs that took turns, and how far their minima are apart. On the CPU: processor",
            "time of one thread. Memory: in the fourth epoch, each in a process of its own. Beyond its tensors the",
            "callback keeps a record of the original model, and the process what tracing it has imported.",
            "",
        ]
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
