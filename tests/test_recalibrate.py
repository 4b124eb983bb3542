"""Recalibrated batch norm holds the exact statistics of what it saw, and nothing else of the model changes."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import infoprune
from infoprune.data import DigitsDataModule
from infoprune.errors import ConfigurationError, DataError
from infoprune.models import CifarResNet
from tests import warm
from tests.tiny import same

SIZES = (9, 1, 4, 16)
NORM = nn.modules.batchnorm._BatchNorm
NAN = torch.full((2, 3, 6, 6), float("nan"))


def batches(channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 + 2 * torch.randn(n, channels, 6, 6, generator=generator) for n in SIZES]


def network(dropout: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 5, 3),
        nn.BatchNorm2d(5),
    )


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def by_hand(model: nn.Module, data: list[Tensor]) -> dict[str, Tensor]:
    """The statistics of all inputs of each batch norm, while batches are normalised as in training."""
    model = copy.deepcopy(model).double().eval()
    norms = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    seen: dict[str, list[Tensor]] = {name: [] for name in norms}
    for name, norm in norms.items():
        norm.train()
        norm.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    with torch.no_grad():
        for batch in data:
            model(batch.double())
    found = {}
    for name, parts in seen.items():
        rows = torch.cat([part.movedim(1, -1).flatten(0, -2) for part in parts])
        found[f"{name}.running_mean"], found[f"{name}.running_var"] = rows.mean(dim=0), rows.var(dim=0)
    return found


def assert_close(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    own = dict(model.named_buffers())
    for name, value in wanted.items():
        torch.testing.assert_close(own[name].double(), value, rtol=1e-5, atol=1e-6)


def test_statistics_are_those_of_all_values_pooled() -> None:
    model = network().train()
    infoprune.recalibrate(model, [(images, None) for images in batches()])
    assert_close(model, by_hand(network(dropout=0.0), batches()))


def test_vectors_and_layers_that_run_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.relu(self.norm(x)))

    data = [torch.randn(n, 4) for n in (5, 7)]
    model = Twice()
    infoprune.recalibrate(model, data)
    assert_close(model, by_hand(Twice(), data))


def test_low_precision_is_measured_in_float32() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1)).bfloat16()
    images = torch.full((64, 1, 32, 32), 1.0).bfloat16()
    images[0, 0, 0, 0] = 3.0
    infoprune.recalibrate(model, [images])
    assert model[0].running_mean.item() == pytest.approx(images.double().mean().item(), rel=2**-8)
    assert model[0].running_var.item() == pytest.approx(images.double().var().item(), rel=2**-8)


def test_nothing_else_changes() -> None:
    model = network().train()
    model[1].eval()
    model[5].momentum = None
    weights = [parameter.clone() for parameter in model.parameters()]
    flags = [module.training for module in model.modules()]

    def noisy() -> Iterator[Tensor]:
        for batch in batches():
            yield batch + torch.rand(()) + random.random() + np.random.rand()

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    infoprune.recalibrate(model, noisy())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert torch.is_grad_enabled()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [model[1].momentum, model[5].momentum] == [0.1, None]
    assert [int(model[i].num_batches_tracked) for i in (1, 5)] == [4, 4]


def test_takes_so_many_batches_and_no_more() -> None:
    taken = []

    def endless() -> Iterator[Tensor]:
        for number in itertools.count():
            taken.append(number)
            yield batches()[number % 4]

    model = network()
    infoprune.recalibrate(model, endless(), batches=2)
    assert taken == [0, 1]
    assert_close(model, by_hand(network(dropout=0.0), batches()[:2]))


def test_layers_out_of_reach_keep_what_they_have() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.aside.running_mean.fill_(7.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Aside()
    infoprune.recalibrate(model, batches())
    assert model.aside.running_mean.tolist() == [7.0] * 3
    assert int(model.aside.num_batches_tracked) == 0
    assert model.used.running_mean.min() > 2


def test_a_cut_network_is_measured_as_it_is() -> None:
    model = network()
    infoprune.prune(model, torch.zeros(1, 3, 6, 6), "l1", filters=0.5)
    infoprune.recalibrate(model, batches())
    assert_close(model, by_hand(model, batches()))
    assert len(model[1].running_mean) == 4


@pytest.mark.parametrize(
    ("data", "count", "error", "message"),
    [
        ([], None, DataError, "the data holds no batch"),
        (batches(), 0, ConfigurationError, "batches must be a whole number of at least 1, got 0"),
        (
            [*batches(), torch.full((2, 3, 6, 6), float("nan"))],
            None,
            ConfigurationError,
            r"1: the statistics of its inputs",
        ),
        ([*batches(), torch.zeros(2, 4, 6, 6)], None, DataError, "expected input.* 3 channels, but got 4"),
        (["images"], None, DataError, "a batch must be a tensor"),
    ],
)
def test_errors_leave_the_statistics(data: Any, count: int | None, error: type[Exception], message: str) -> None:
    model = network().train()
    model[1].running_mean.fill_(2.0)
    before = statistics(model)
    with pytest.raises(error, match=message):
        infoprune.recalibrate(model, data, batches=count)
    assert unchanged(model, before)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_single_value_has_no_variance() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
    before = statistics(model)
    with pytest.raises(DataError, match="1 saw a single value of each channel"):
        infoprune.recalibrate(model, [torch.randn(1, 3)])
    assert unchanged(model, before)


def test_models_without_running_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4))
    with pytest.raises(ConfigurationError, match="Sequential has no batch norm with running statistics"):
        infoprune.recalibrate(model, batches())


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    infoprune.recalibrate(model, batches()[:3])  # process 1 gets one batch, process 0 two
    torch.save(statistics(model), Path(folder) / f"{rank}.pt")
    try:
        infoprune.recalibrate(model, [batches()[0], "images"])
    except Exception as error:
        (Path(folder) / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    warm.spawn(work, str(tmp_path))
    alone = network()
    infoprune.recalibrate(alone, batches()[:3])
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in statistics(alone).items():
        torch.testing.assert_close(first[name], value)
        assert torch.equal(first[name], second[name])
    assert "process 1 failed, so all processes stop" in (tmp_path / "0.txt").read_text()
    assert "a batch must be a tensor" in (tmp_path / "1.txt").read_text()


def test_prune_recalibrates_with_its_data() -> None:
    model, other = network(), network()
    infoprune.prune(model, torch.zeros(1, 3, 6, 6), "hrank", filters=0.5, data=batches(), recalibration_batches=3)
    infoprune.prune(other, torch.zeros(1, 3, 6, 6), "hrank", filters=0.5, data=batches())
    assert not same(model, other)
    infoprune.recalibrate(other, batches(), batches=3)
    assert same(model, other)


def test_a_datamodule_is_data_as_its_trainer_would_show_it() -> None:
    data = DigitsDataModule(batch_size=256)
    data.prepare_data()
    with pytest.raises(DataError, match=r'DigitsDataModule has no training data yet .*setup\("fit"\)'):
        infoprune.recalibrate(CifarResNet(depth=8, in_channels=1), data, 1)
    data.setup("fit")
    images = torch.zeros(1, 1, 8, 8)
    shown = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    torch.manual_seed(0)
    model = CifarResNet(depth=8, in_channels=1, width=8)
    other = copy.deepcopy(model)
    infoprune.prune(model, images, "hrank", macs=0.6, data=data, recalibration_batches=2)
    infoprune.prune(other, images, "hrank", macs=0.6, data=shown, recalibration_batches=2)
    assert same(model, other)
    with pytest.raises(DataError, match=r"the images are bytes, .* pass the data module itself"):
        infoprune.recalibrate(model, data.train_dataloader(), 1)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, ConfigurationError, "recalibration_batches=2 takes batches from data: pass batches"),
        (iter(batches()), ConfigurationError, "pass a list or a loader, not an iterator"),
        ([NAN], ConfigurationError, "the statistics of its inputs"),
    ],
)
def test_prune_that_cannot_recalibrate_leaves_the_model(data: Any, error: type[Exception], message: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, held = copy.deepcopy(model), list(model.parameters())
    with pytest.raises(error, match=message):
        infoprune.prune(
            model, torch.zeros(1, 3, 6, 6), "l1", filters=0.5, data=data, recalibration_batches=2, optimizers=optimizer,
            reconstruction_batches=0,
        )  # fmt: skip
    assert same(model, before)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], held, strict=True))


def test_a_failure_while_statistics_are_put_in_place_undoes_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    with torch.no_grad(), monkeypatch.context() as patched:  # the frozen norm is written first, the last one fails
        first = nn.BatchNorm2d.load_state_dict
        calls = iter([first, fail])
        patched.setattr(nn.BatchNorm2d, "load_state_dict", lambda self, state: next(calls)(self, state))
        data = [torch.rand(4, 3, 6, 6)] * 2
        with pytest.raises(MemoryError, match="no room"):
            infoprune.prune(model, data[0], "l1", filters=0.5, data=data, recalibration_batches=2, optimizers=optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
    assert infoprune.plan_of(model).is_empty
