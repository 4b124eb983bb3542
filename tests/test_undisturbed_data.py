"""Training sees the same with FilterPruning as without: data that draw, iterators that a module holds, queues."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from infoprune import FilterPruning
from infoprune.random_state import RewindableIterator
from tests.tiny import trainer

PIXELS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.arange(1.0, 65.0)


class Augmented(Dataset[tuple[Tensor, int]]):
    """Scales each image by a random number, from a generator of its own or of a transform."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return PIXELS[index] * (0.5 + self.draw()), index % 4


class Transform:
    def __init__(self) -> None:
        self.inner = {"scale": functools.partial(random.Random.uniform, random.Random(0), 0.0, 1.0)}

    def __call__(self) -> float:
        return float(self.inner["scale"]())


class Mixing:
    """A ``collate_fn`` with a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        share = torch.rand(1, generator=self.generator)
        return torch.stack([x for x, _ in rows]) * share, torch.tensor([y for _, y in rows])


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "NumPy's generator": lambda: DataLoader(Augmented(np.random.default_rng(0).random), 8),
    "a subset with a transform": lambda: DataLoader(Subset(Augmented(Transform()), range(16)), 8),
    "a function that has bound one": lambda: DataLoader(Augmented(functools.partial(_drawn, random.Random(0))), 8),
    "collate_fn": lambda: DataLoader([(x, i % 4) for i, x in enumerate(PIXELS)], 8, collate_fn=Mixing()),
}


def _drawn(generator: random.Random) -> float:
    return generator.random()


class Module(pl.LightningModule):
    """Notes what its training step sees; may take from an iterator that it holds."""

    def __init__(self, make: Callable[[], Iterator[Tensor]] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        self.make = make
        self.seen: list[float] = []

    def on_fit_start(self) -> None:
        self.others = {"unlabelled": self.make()} if self.make else {}
        self.other = self.make() if self.make else None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        taken = [next(it) for it in (self.other, self.others.get("unlabelled")) if it is not None]
        self.seen += [float(x.sum()), *map(float, taken)]
        for number in taken:
            number.add_(1)  # in its own copy
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


def seen(loader: DataLoader[Any], pruned: bool, make: Callable[[], Iterator[Tensor]] | None = None) -> list[float]:
    module = Module(make)
    callbacks: list[pl.Callback] = [FilterPruning("l1", macs=0.5, schedule=1)] if pruned else []
    trainer(*callbacks, epochs=2).fit(module, loader)
    assert (module.net[0].out_channels < 8) == pruned
    return module.seen


@pytest.mark.parametrize("kind", LOADERS)
def test_data_that_draw_from_generators_of_their_own_draw_what_they_would(kind: str) -> None:
    assert seen(LOADERS[kind](), pruned=True) == seen(LOADERS[kind](), pruned=False)


ITERATORS: dict[str, Callable[[], Iterator[Tensor]]] = {
    "generator": lambda: (number.clone() for number in NUMBERS),
    "cycle": lambda: itertools.cycle(list(NUMBERS.clone())),
    "loader": lambda: iter(DataLoader(NUMBERS, 1)),
    "four batches": lambda: iter(list(NUMBERS[:4].clone())),
}


@pytest.mark.parametrize("kind", ITERATORS)
def test_an_iterator_of_the_module_gives_what_it_would(kind: str) -> None:
    data = [(x, i % 4) for i, x in enumerate(PIXELS)]
    with_events, without = (seen(DataLoader(data, 8), pruned, ITERATORS[kind]) for pruned in (True, False))
    assert with_events == without


def test_a_rewindable_iterator_passes_on_what_its_source_has() -> None:
    loader = iter(DataLoader(NUMBERS, 4))
    stand_in = RewindableIterator(loader)
    assert stand_in._dataset is loader._dataset
    assert iter(stand_in) is stand_in
    stand_in.record()
    first = next(stand_in)
    stand_in.record()
    assert stand_in.stop()
    assert torch.equal(next(stand_in), first), "the inner record began at the first batch"


class Contrastive(pl.LightningModule):
    """MoCo as its authors write it: no forward, keys of a momentum copy in a queue, a pointer into it."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 8))
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", torch.randn(8, 16))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def training_step(self, batch: Any, index: int) -> Tensor:
        x = batch[0]
        with torch.no_grad():
            for own, copied in zip(self.query.parameters(), self.key.parameters(), strict=True):
                copied.data.mul_(0.9).add_(own.data, alpha=0.1)
            keys = self.key(x)
        loss = F.cross_entropy(self.query(x) @ self.queue.clone(), torch.zeros(len(x), dtype=torch.long))
        start = int(self.pointer)
        self.queue[:, start : start + len(x)] = keys.T
        self.pointer[0] = (start + len(x)) % 16
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.query.parameters(), 0.01)


class Unmoved(pl.Callback):
    """Compare what the module holds before the first batch with what it held at the start; so a pointer at an event."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.pointer = int(module.pointer)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 0:
            moved = [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, self.before[name])]
            assert not moved
        elif index == 0:
            assert int(module.pointer) == self.pointer


@pytest.mark.parametrize("criterion", ["l1", "hrank"])
def test_a_queue_and_a_momentum_copy_stay_as_they_are_before_training_and_at_events(criterion: str) -> None:
    module = Contrastive()
    loader = DataLoader([(x, 0) for x in PIXELS], 8)
    trainer(FilterPruning(criterion, macs=0.5, schedule=1), Unmoved(), epochs=2).fit(module, loader)
    assert module.query[0].out_channels < 8
    assert module.key[0].out_channels == module.query[0].out_channels


class Awkward(Augmented):
    """Answers anything, and holds more than anyone wants to look at."""

    def __init__(self, draw: Any) -> None:
        super().__init__(draw)
        self.table = [{number: (number,) for number in range(200)} for _ in range(200)]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name == "__getitems__" else KeyError(name)  # which loaders ask for


def test_data_whose_code_answers_anything_are_looked_at_past_it() -> None:
    loaders = (DataLoader(Awkward(np.random.default_rng(0).random), 8) for _ in range(2))
    assert seen(next(loaders), pruned=True) == seen(next(loaders), pruned=False)
