"""The filters that will go get smaller, by exactly the penalty's gradient; the others are left alone; then they go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from infoprune.callbacks import SparsityWarmup
from infoprune.errors import ConfigurationError
from tests.tiers import slow
from tests.tiny import TinyModule, loader, pruning, same, trainer


class Steps(pl.Callback):
    """The network and its gradients before each step. Once before, once behind SparsityWarmup."""

    def __init__(self) -> None:
        self.networks: list[nn.Module] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.networks.append(copy.deepcopy(pl_module.net))
        self.gradients.append({name: p.grad.clone() for name, p in pl_module.net.named_parameters()})


class Ends(pl.Callback):
    """The network at the end of each epoch."""

    def __init__(self) -> None:
        self.networks: list[nn.Module] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.networks.append(copy.deepcopy(pl_module.net))


def run(*callbacks: Any, epochs: int = 4, module: Any = None, **options: Any) -> TinyModule:
    pl.seed_everything(2, verbose=False)
    module = TinyModule() if module is None else module
    trainer(*callbacks, epochs=epochs, **options).fit(module, loader())
    return module


def removed(kept: list[int]) -> list[int]:
    return [unit for unit in range(12) if unit not in kept]


MAKERS = {  # the parameters that make the units of each group of TinyNet
    "stem": ("stem.weight", "norm.weight", "norm.bias", "conv2.weight", "conv2.bias"),
    "conv1": ("conv1.weight", "conv1.bias"),
}


@pytest.mark.parametrize("penalty", ["growing_l2", "group_lasso"])
@pytest.mark.parametrize("first", [True, slow(False)], ids=["before FilterPruning", "behind it"])
def test_exactly_the_penalty_is_added_to_the_filters_that_go(penalty: str, first: bool) -> None:
    cut, warmup = pruning(3, filters=0.5), SparsityWarmup(2, penalty, 0.3)
    before, behind = Steps(), Steps()
    callbacks = [before, *([warmup, cut] if first else [cut, warmup]), behind]
    run(*callbacks)
    gone = {name: removed(kept) for name, kept in cut.history[0].kept.items()}
    assert {name: len(units) for name, units in gone.items()} == {"stem": 6, "conv1": 6}
    for step, (network, plain, added) in enumerate(
        zip(before.networks, before.gradients, behind.gradients, strict=True)
    ):
        warm = 3 <= step < 9  # epochs 1 and 2, three batches each
        for name in plain:
            difference = added[name] - plain[name]
            group = next((group for group, makers in MAKERS.items() if name in makers), None)
            wanted = torch.zeros_like(difference)
            if warm and group is not None:
                units = gone[group]
                weight = network.get_parameter(name)[units]
                if penalty == "growing_l2":
                    wanted[units] = 0.3 * (step - 2) / 6 * weight
                else:
                    parts = [
                        network.get_parameter(maker)[units].flatten(1)
                        if network.get_parameter(maker).dim() > 1
                        else network.get_parameter(maker)[units][:, None]
                        for maker in MAKERS[group]
                    ]
                    norm = torch.cat(parts, dim=1).norm(dim=1)
                    wanted[units] = 0.3 * weight / norm.view(-1, *[1] * (weight.dim() - 1))
            torch.testing.assert_close(
                difference, wanted.detach(), rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n} {m}"
            )


def test_norms_of_doomed_filters_fall_and_the_others_do_not() -> None:
    cut, ends = pruning(4, filters=0.5, criterion="random"), Ends()
    module = run(cut, SparsityWarmup(3, strength=3.0), ends, epochs=5)
    gone = removed(cut.history[0].kept["conv1"])
    stay = cut.history[0].kept["conv1"]
    first, last = (network.conv1.weight.flatten(1).norm(dim=1) for network in (ends.networks[0], ends.networks[3]))
    assert (last[gone] / first[gone]).max() < 0.5
    assert (last[stay] / first[stay]).min() > 0.9
    assert module.net.conv1.out_channels == 6


def test_the_event_removes_what_was_announced_whatever_the_scores_are_then() -> None:
    """Random scores with another seed at the event would choose others; without the warm-up it is the event's own."""
    decided: list[dict[str, list[int]]] = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            announced = cut._engine.pending
            decided.append({} if announced is None else dict(announced.plan.removed["conv1.weight"]))

    cut = pruning(3, filters=0.5, criterion="taylor", calibration_images=8)
    run(cut, SparsityWarmup(2, strength=1e-9), Look())
    alone = pruning(3, filters=0.5, criterion="taylor", calibration_images=8)
    run(alone)
    assert decided[0] == {}
    assert decided[1] == decided[2] != {}
    assert removed(cut.history[0].kept["conv1"]) == list(decided[1][0])
    assert cut.history[0].kept != alone.history[0].kept
    assert decided[3] == {}


def test_every_event_has_its_warmup_and_nothing_happens_outside() -> None:
    before, behind = Steps(), Steps()
    cut = pruning((2, 3, 6), filters=0.4)
    run(before, cut, SparsityWarmup(2), behind, epochs=8)
    changed = [
        any(not torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(before.gradients, behind.gradients, strict=True)
    ]
    epochs = [any(changed[3 * epoch : 3 * epoch + 3]) for epoch in range(8)]
    assert epochs == [True, True, True, False, True, True, False, False]
    assert len(cut.history) == 3


def test_a_strength_of_zero_is_no_penalty() -> None:
    assert same(run(pruning(3, filters=0.5), SparsityWarmup(2, strength=0.0)), run(pruning(3, filters=0.5)))


@pytest.mark.parametrize("start", [1, *(pytest.param(start, marks=pytest.mark.slow) for start in (0, 2))])
def test_a_resumed_run_ends_bit_identical(start: int, tmp_path: Path) -> None:
    def fit(**options: Any) -> TinyModule:
        pl.seed_everything(2, verbose=False)
        module = TinyModule()
        saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        callbacks = [SparsityWarmup(2), pruning(3, filters=0.5, criterion="taylor", calibration_images=8), saver]
        trainer(*callbacks, epochs=4, enable_checkpointing=True).fit(module, loader(), **options)
        return module

    whole = fit()
    assert same(whole, fit(ckpt_path=tmp_path / f"epoch={start}.ckpt"))


def test_manual_optimization_accumulation_and_mixed_precision() -> None:
    class Manual(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    for module, options in (
        (Manual(), {}),
        (TinyModule(), {"accumulate_grad_batches": 3}),
        (TinyModule(), {"precision": "bf16-mixed"}),
    ):
        cut, ends = pruning(3, filters=0.5, criterion="random"), Ends()
        run(cut, SparsityWarmup(2, "group_lasso", 0.5), ends, module=module, **options)
        gone = removed(cut.history[0].kept["conv1"])
        first, last = (
            network.conv1.weight.flatten(1).norm(dim=1)[gone] for network in (ends.networks[0], ends.networks[2])
        )
        assert (last < 0.9 * first).all()


def test_what_is_logged() -> None:
    class Look(pl.Callback):
        def __init__(self) -> None:
            self.norms: list[float | None] = []

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            value = trainer.callback_metrics.get("sparsity/doomed_norm")
            self.norms.append(None if value is None else value.item())

    look = Look()
    run(pruning(3, filters=0.5), SparsityWarmup(2, strength=3.0), look)
    assert look.norms[:2] == [None, None]
    assert look.norms[2] is not None
    assert look.norms[3] is not None
    assert look.norms[3] < look.norms[2]


def test_what_cannot_be_is_refused() -> None:
    module = TinyModule()
    before = copy.deepcopy(module)
    for callbacks, message in (
        ([SparsityWarmup()], "SparsityWarmup works with FilterPruning"),
        ([SparsityWarmup(), pruning(0)], "no time before an event at epoch 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            trainer(*callbacks).fit(module, loader())
        assert same(module, before)
    for options, message in (
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"penalty": "lasso"}, "did you mean 'group_lasso'"),
        ({"strength": -1.0}, "strength must be a number of at least 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            SparsityWarmup(**options)
