"""Many events, and many fits, in one process leave nothing behind."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import lightning.pytorch as pl
import pytest

from infoprune import FilterPruning
from tests.alive import alive, resident
from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_fifty_events() -> None:
    """Old parameters, optimizer state, traces and hooks of 50 events are all gone; Lightning's own ModelPruning keeps
    them."""
    counts: dict[int, tuple[Counter[str], float]] = {}

    class Count(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch in (5, 50):
                counts[trainer.current_epoch] = alive(), resident()

    module = TinyModule(net=TinyNet(width=64, inner=64))
    callback = FilterPruning("l1", filters=0.1, round_to=1, schedule=list(range(1, 51)))
    run = trainer(callback, Count(), epochs=51, limit_train_batches=1)
    run.fit(module, loader(4))
    assert len(callback.history) == 50
    assert module.net.stem.out_channels == 6
    (early, memory_before), (late, memory_after) = counts[5], counts[50]
    assert late == early
    assert memory_after - memory_before < 20


@pytest.mark.parametrize("fits", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_many_fits(fits: int) -> None:
    """A Trainer, its module and its callback are freed when nobody holds them any more."""
    seen: list[Any] = []
    counts = []
    for fit in range(fits):
        module, callback = TinyModule(), pruning((1,))
        trainer(callback, epochs=2, limit_train_batches=1).fit(module, loader(4))
        seen += [weakref.ref(module), weakref.ref(callback)]
        del module, callback
        if fit in (2, fits - 1):
            counts.append(alive())
    assert not any(reference() for reference in seen)
    assert counts[0] == counts[1]
