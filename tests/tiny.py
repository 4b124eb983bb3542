"""A small Lightning project for tests: a residual CNN, random images, a Trainer without side effects."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from infoprune import FilterPruning

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
for noise in (".*does not have many workers.*", ".*smaller than the logging interval.*", ".*exists and is not empty.*"):
    warnings.filterwarnings("ignore", noise)

WIDTH = 12
CLASSES = 3


class TinyNet(nn.Module):
    """Two prunable groups: the residual stream (``stem``, ``conv2``) and the inside of the block (``conv1``)."""

    def __init__(self, width: int = WIDTH, inner: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.conv2(torch.relu(self.conv1(x)))
        return self.head(x.mean((2, 3)))


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class TinyModule(pl.LightningModule):
    """An ordinary LightningModule that has never heard of pruning."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer] = sgd,
        scheduler: Callable[[Optimizer], Any] | None = None,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net = TinyNet() if net is None else net
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        return optimizer if self.make_scheduler is None else ([optimizer], [self.make_scheduler(optimizer)])


def images(count: int = 24, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 8, 8, generator=generator), torch.randint(CLASSES, (count,), generator=generator)
    )


def loader(batch_size: int = 8, count: int = 24) -> DataLoader[Any]:
    """Batches in a fixed order, so that two runs see the same."""
    return DataLoader(images(count), batch_size)


def trainer(*callbacks: Any, epochs: int = 3, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **(defaults | options))


def pruning(schedule: Any = (1, 2), **options: Any) -> FilterPruning:
    target = {} if {"filters", "amount", "params", "allocation"} & set(options) else {"macs": 0.5}
    schedule = list(schedule) if isinstance(schedule, tuple) else schedule
    options = {"allocation": "uniform"} | options  # every layer is cut, whatever it is worth
    return FilterPruning(options.pop("criterion", "l1"), schedule=schedule, **target, **options)


def averaging(**options: Any) -> Any:
    """An averaged copy of the model, where Lightning has it."""
    if not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("WeightAveraging came with Lightning 2.6")
    return pl.callbacks.EMAWeightAveraging(decay=0.5, **options)


def widths(module: nn.Module) -> list[int]:
    return [m.weight.shape[0] for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold bit-identical tensors."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(identical(first[key], second[key]) for key in first)


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are bit-identical, NaN being identical to NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


class Sound(pl.Callback):
    """Checks after every epoch start that optimizers and model agree, and remembers what an event did.

    Put it behind FilterPruning.
    """

    def __init__(self) -> None:
        self.events = 0
        self.widths: list[list[int]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.widths.append(widths(pl_module))
        self.events += len(self.widths) > 1 and self.widths[-1] != self.widths[-2]
        in_optimizers = [p for o in trainer.optimizers for group in o.param_groups for p in group["params"]]
        assert {p for p in pl_module.parameters() if p.requires_grad} <= set(in_optimizers)
        assert set(in_optimizers) <= set(pl_module.parameters())
        assert all(p.grad is None or p.grad.shape == p.shape for p in in_optimizers)
        for optimizer in trainer.optimizers:
            assert set(optimizer.state) <= set(in_optimizers)
            for parameter, state in optimizer.state.items():
                for value in state.values():
                    assert not torch.is_tensor(value) or value.dim() == 0 or value.shape == parameter.shape
