"""What `FilterPruning` costs: nothing between events, little at one.

- *Idle*: time of a step and of an epoch with the callback (its only event still to come) and without, in turns.
- *Afterwards*: time of a training step of a network that was pruned in a fit, and of one built with its widths.
- *An event*: tracing, deciding, rehearsing, surgery and records on a ResNet-50, and scoring apart.

Run from the repository root, on a machine that does nothing else:

    python -m benchmarks.callback_overhead                # writes benchmarks/results/callback_overhead.md
"""

from __future__ import annotations

import argparse
import logging
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
    """Steps and epochs with and without the callback, in turns."""
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
    return [*rows, f"| idle, in the callback's own hook of a step | | {hook:.5f} ms | |"]


def compared(what: str, plain: list[float], other: list[float]) -> str:
    """A row with the medians of two samples, and how far they are apart."""
    first, second = statistics.median(plain), statistics.median(other)
    return f"| {what} | {first * 1e3:.2f} ms | {second * 1e3:.2f} ms | {second / first - 1:+.2%} |"


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
    """Steps of a network that was pruned in a fit, and of one that was built so, in turns."""
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


def event(criterion: str, device: str) -> tuple[float, float]:
    """Seconds of one event on a ResNet-50 in a fit, and of the scoring within."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = now()
            result = function(*args, **options)
            seconds[name] = seconds.get(name, 0.0) + now() - start
            return result

        return call

    callback = FilterPruning(criterion, macs=0.5, schedule=1)
    callback.on_train_epoch_start = timed("event", callback.on_train_epoch_start)  # type: ignore[method-assign]
    kind = type(callback.criterion)
    score = kind.__call__
    kind.__call__ = timed("scoring", score)  # type: ignore[method-assign]
    try:
        module = Plain(torchvision.models.resnet50(num_classes=10), (3, 64, 64))
        fit(module, 2, callback, _OneBatch(), batch=2, device=device)
    finally:
        kind.__call__ = score  # type: ignore[method-assign]
    return seconds["event"], seconds["scoring"]


class _OneBatch(pl.Callback):
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.limit_train_batches = 1


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
    rows = [*idle(options.epochs, options.device), afterwards(10 * options.epochs, options.device)]
    events = []
    for criterion in ("l1", "capacity_independence"):
        whole, scoring = event(criterion, options.device)
        events.append(f"| {criterion} | {whole:.2f} s | {scoring:.2f} s | {whole - scoring:.2f} s |")
    text = "\n".join(
        [
            "# What FilterPruning costs",
            "",
            f"`python -m benchmarks.callback_overhead` on {describe()}.",
            "",
            "| | without | with | difference |",
            "|---|---|---|---|",
            *rows,
            "",
            "One event on a ResNet-50 (25.6 million parameters) with SGD momentum, to half of the MACs:",
            "",
            "| criterion | event | of it scoring | the rest |",
            "|---|---|---|---|",
            *events,
            "",
            "Medians of steps and epochs that took turns. On the CPU: processor time of one thread.",
            "",
        ]
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
