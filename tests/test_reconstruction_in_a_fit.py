"""Fitting the layers behind a cut in a fit, which `FilterPruning` does by default where it looks at images."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import infoprune
from infoprune.data import CalibrationBatches
from infoprune.distributed import failed_only_by, on_all_ranks
from infoprune.errors import ConfigurationError, DataError
from infoprune.reconstruction import few_examples, reconstruct
from tests import warm
from tests.tiny import TinyModule, TinyNet, averaging, images, loader, same, trainer

NOT_FITTED = "the layers behind the cut are not fitted"


class Look(pl.Callback):
    """Keeps the network, and the average of its weights if there is one, after each start of an epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[nn.Module, nn.Module | None]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        averages = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]
        average = next((average.module.net for average in averages if average is not None), None)
        self.seen.append((copy.deepcopy(pl_module.net), copy.deepcopy(average)))


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(images())


def after_event(
    module: Callable[[], TinyModule] = TinyModule, data: Any = None, target: Any = None, **options: Any
) -> nn.Module:
    """Return the network right after an event before any training."""
    pl.seed_everything(3, verbose=False)
    look = Look()
    callback = infoprune.FilterPruning("l1", schedule=[0], round_to=1, **(target or {"macs": 0.5}), **options)
    trainer(callback, look, epochs=1).fit(module(), loader() if data is None else data)
    return look.seen[0][0]


def test_a_number_of_batches_fits_the_network_and_its_average():
    def run(**options: Any) -> Look:
        pl.seed_everything(3, verbose=False)
        look = Look()
        callback = infoprune.FilterPruning("l1", schedule=[1], filters=0.5, round_to=1, **options)
        trainer(callback, averaging(), look, epochs=2).fit(TinyModule(), loader())
        return look

    without, fitted, again = run(), run(reconstruction_batches=3), run(reconstruction_batches=3)
    assert same(without.seen[0][0], fitted.seen[0][0])
    for which in (0, 1):
        original, plain, net = without.seen[0][which], without.seen[1][which], fitted.seen[1][which]
        assert torch.equal(plain.stem.weight, net.stem.weight)
        assert not torch.equal(plain.conv2.weight, net.conv2.weight)
        assert same(net, again.seen[1][which])
        assert original.conv2.in_channels == 2 * net.conv2.in_channels


def test_by_default_layers_are_fitted_on_the_images_of_the_measurement():
    pl.seed_everything(3, verbose=False)
    original = TinyModule().net
    plain, fitted = after_event(reconstruction_batches=0), after_event()
    assert not same(plain, fitted)
    batches = few_examples(loader(), "test")
    plan = infoprune.structure.plan_of(plain)
    reconstruct(plain, original, batches, plan=plan)
    infoprune.recalibrate(plain, batches)
    assert same(plain, fitted)


def test_frozen_layers_stay_as_they_are():
    def frozen() -> TinyModule:
        module = TinyModule()
        module.net.conv2.requires_grad_(False)
        return module

    target = {"macs": 0.25}  # so that the residual stream is cut, too
    plain, fitted = after_event(frozen, target=target, reconstruction_batches=0), after_event(frozen, target=target)
    assert torch.equal(plain.conv2.weight, fitted.conv2.weight)
    assert not torch.equal(plain.head.weight, fitted.head.weight)


def test_frozen_norms_keep_their_statistics():
    def frozen() -> TinyModule:
        module = TinyModule()
        module.net.norm.requires_grad_(False)
        return module

    plain, fitted = after_event(frozen, reconstruction_batches=0), after_event(frozen)
    assert not torch.equal(plain.conv2.weight, fitted.conv2.weight)
    assert all(map(torch.equal, plain.norm.buffers(), fitted.norm.buffers()))


class Bytes(Dataset):  # type: ignore[type-arg]
    """Images of bytes, which the training step normalises."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = images()[index]
        return 128 + 30 * image, int(label)


class FromBytes(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Bytes(), 8)

    def calibration_batches(self, n_images: int, device: Any = "cpu") -> CalibrationBatches:
        def run() -> Any:
            return iter(self.train_dataloader())

        return CalibrationBatches(3, run, lambda: CalibrationBatches(3, run, None))


class Normalising(TinyModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(((batch[0] - 128) / 30, batch[1]), batch_idx)


def test_images_that_the_step_normalises_are_normalised_for_the_fit():
    fitted = after_event(Normalising, data=FromBytes())
    assert fitted.norm.running_mean.abs().max() < 2
    torch.testing.assert_close(fitted.state_dict(), after_event().state_dict(), rtol=1e-3, atol=1e-3)


class Counting(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        return super().forward(x)


def test_what_the_network_counts_is_as_without_the_fit():
    def counting() -> TinyModule:
        return TinyModule(net=Counting())

    assert after_event(counting).calls == after_event(counting, reconstruction_batches=0).calls


@pytest.mark.parametrize("target", [{"filters": 0.5}, {"macs": 0.5, "allocation": "uniform"}])
def test_where_nothing_is_measured_weights_stay_as_they_are(target: dict[str, Any]):
    assert same(after_event(target=target), after_event(target=target, reconstruction_batches=0))


def test_weights_of_a_fit_on_a_stream_stay_as_they_are():
    def run(**options: Any) -> nn.Module:
        return after_event(data=DataLoader(Stream(), 4), example_inputs=[1, 3, 8, 8], **options)

    assert same(run(), run(reconstruction_batches=0))


class Vectors(nn.Module):
    """Measure a mean image, which a single image gives no statistics of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x).mean((2, 3))))


def test_too_few_images_leave_the_weights_and_are_told(caplog: pytest.LogCaptureFixture):
    def run(**options: Any) -> nn.Module:
        return after_event(lambda: TinyModule(net=Vectors()), calibration_images=1, **options)

    with caplog.at_level(logging.WARNING):
        plain = run(reconstruction_batches=0)
        assert NOT_FITTED not in caplog.text
        assert same(run(), plain)
    assert NOT_FITTED in caplog.text
    with pytest.raises(DataError):
        run(reconstruction_batches=1, data=DataLoader(images(8), 1))


def test_a_fit_refuses_what_cannot_be_before_training():
    with pytest.raises(ConfigurationError, match="reconstruction_batches must be a whole number"):
        infoprune.FilterPruning("l1", schedule=[1], filters=0.5, reconstruction_batches=-1)
    stream = DataLoader(Stream(), 4)
    module = TinyModule()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    callback = infoprune.FilterPruning("l1", schedule=[1], filters=0.5, reconstruction_batches=2)
    with pytest.raises(ConfigurationError, match="reconstruction_batches=2 takes batches from the training data"):
        trainer(callback, epochs=2).fit(module, stream)


def verdicts(rank: int, folder: str) -> None:
    """Write for two errors of the second process whether all processes failed by errors about data."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for error in (DataError("too few"), OSError("full")):
        try:
            on_all_ranks(lambda error=error: _fail_on_second(rank, error))
        except Exception as failure:
            found.append(failed_only_by(failure, DataError))
    Path(folder, f"{rank}.txt").write_text(str(found))
    dist.destroy_process_group()


def _fail_on_second(rank: int, error: Exception) -> None:
    if rank == 1:
        raise error


def test_processes_agree_on_why_they_failed(tmp_path: Path):
    warm.spawn(verdicts, str(tmp_path))
    assert [Path(tmp_path, f"{rank}.txt").read_text() for rank in (0, 1)] == ["[True, False]"] * 2
