"""Batch norm is measured anew at the events of a fit, and in averaged copies."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from infoprune.data import DigitsDataModule
from infoprune.errors import ConfigurationError, DataError
from tests.tiny import TinyModule, averaging, images, loader, pruning, same, trainer


class Norms(pl.Callback):
    """Keeps a copy of the network right after an event. Put it behind FilterPruning."""

    def __init__(self) -> None:
        self.after: list[nn.Module] = []
        self.drawn: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.after.append(copy.deepcopy(pl_module.net))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.drawn.append(torch.rand(()).item())


class Noisy(torch.utils.data.TensorDataset):
    """A training transform that draws random numbers."""

    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return image + 5 + random.random() + torch.rand(()), label


def test_an_event_recalibrates_with_transformed_training_batches_and_draws_nothing_from_the_run() -> None:
    def run(**options: Any) -> Norms:
        pl.seed_everything(3, verbose=False)
        norms = Norms()
        data = torch.utils.data.DataLoader(Noisy(*images().tensors), 8, shuffle=True)
        trainer(pruning(1, filters=0.5, **options), norms, epochs=2).fit(TinyModule(), data)
        return norms

    without, first, again = run(), run(recalibration_batches=2), run(recalibration_batches=2)
    assert first.drawn == without.drawn
    assert same(first.after[1], again.after[1])
    assert same(first.after[0], without.after[0])
    assert first.after[1].norm.running_mean.shape == (6,)
    assert int(first.after[1].norm.num_batches_tracked) == 2
    sample = torch.stack([images()[i * 24 // 16][0] for i in range(16)]) + 6  # mean of the noise: 1
    stem = first.after[1].stem(sample)
    torch.testing.assert_close(first.after[1].norm.running_mean, stem.mean(dim=(0, 2, 3)), rtol=0.05, atol=0.05)
    assert not same(first.after[1].norm, without.after[1].norm)


class Grey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.head = nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(self.norm(x))).mean(dim=(2, 3)))


def test_a_datamodule_shows_its_augmented_images() -> None:
    norms, data = Norms(), DigitsDataModule(batch_size=32, seed=5)
    run = trainer(pruning(0, filters=0.5, recalibration_batches=3), norms, epochs=1, limit_train_batches=1)
    run.fit(TinyModule(net=Grey()), datamodule=data)
    shown = torch.cat([x for x, _ in data.calibration_batches(96, 32, augment=True)])
    torch.testing.assert_close(norms.after[0].norm.running_mean, shown.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norms.after[0].norm.running_var, shown.var(dim=(0, 2, 3)))


@pytest.mark.parametrize("first", [True, False])
def test_averaged_copies_are_measured_with_their_own_weights(first: bool) -> None:
    average = averaging()
    copies: list[Any] = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            assert average._average_model is not None
            copies.append(copy.deepcopy(average._average_model.module.net))

    callbacks = [average, pruning(1, filters=0.5, recalibration_batches=3)]
    trainer(*(callbacks if first else callbacks[::-1]), Look(), epochs=2).fit(TinyModule(), loader())
    mean = copies[1].stem(images().tensors[0]).mean(dim=(0, 2, 3))
    torch.testing.assert_close(copies[1].norm.running_mean, mean, rtol=1e-4, atol=1e-5)


def test_recalibration_that_cannot_be_is_refused_before_training() -> None:
    class Plain(TinyModule):
        def __init__(self) -> None:
            super().__init__(net=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3)))
            self.net(torch.zeros(1, 3, 8, 8))

    def refused(error: type[Exception], message: str, module: TinyModule, data: Any, **options: Any) -> None:
        before = copy.deepcopy(module)
        with pytest.raises(error, match=message):
            trainer(pruning(1, **options), epochs=2).fit(module, data)
        assert same(module, before)

    refused(ConfigurationError, "Sequential has no batch norm", Plain(), loader(), recalibration_batches=1)
    module = TinyModule()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    stream = torch.utils.data.DataLoader(Stream(), 4)
    refused(
        ConfigurationError,
        "recalibration_batches=2 takes batches from the training data",
        module,
        stream,
        recalibration_batches=2,
    )
    refused(
        DataError,
        "the training set has",
        TinyModule(net=Grey()),
        DigitsDataModule(batch_size=1000),
        recalibration_batches=9,
    )
    with pytest.raises(ConfigurationError, match="recalibration_batches must be a whole number of at least 0, got -1"):
        pruning(1, recalibration_batches=-1)


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(images())
