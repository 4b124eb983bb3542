"""What would be refused at an event is refused when the fit starts, and trying leaves nothing behind."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from infoprune import FilterPruning
from infoprune.callbacks.engine import PruningEngine
from infoprune.criteria import Criterion
from infoprune.errors import DataError, InfopruneError
from tests.tiers import slow
from tests.tiny import CLASSES, TinyModule, loader, pruning, trainer


class NeedsMasks(Criterion):
    """Looks for something in the batches that they do not have."""

    needs_data = True

    def group_scores(self, model: Any, structure: Any, data: Any) -> dict[str, Tensor]:
        for _, targets in data:
            if targets.dim() < 3:
                raise DataError("NeedsMasks: the batches have no masks")
        raise AssertionError


class TooFewUnits(Criterion):
    def group_scores(self, model: Any, structure: Any, data: Any) -> dict[str, Tensor]:
        return {group.name: torch.ones(5) for group in structure.prunable}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": NeedsMasks()}, "the batches have no masks"),
        ({"criterion": TooFewUnits()}, r"shape \(5,\) for the \d+ units of group"),
        ({"criterion": "l1", "allocation": {"name": "per_layer", "ratios": {"conv9": 0.5}}}, "conv9"),
    ],
)
def test_refused_before_any_training(options: dict[str, Any], message: str) -> None:
    target = {} if "allocation" in options else {"macs": 0.5}
    fit = trainer(FilterPruning(**options, **target, schedule=[5]), epochs=6)
    with pytest.raises(InfopruneError, match=message):
        fit.fit(TinyModule(), loader())
    assert fit.global_step == 0


def everything(fit: pl.Trainer, module: pl.LightningModule) -> list[Any]:
    """Copies of all that a fit goes on from."""
    states = [optimizer.state_dict() for optimizer in fit.optimizers]
    tensors = [*module.state_dict().values(), *(p.grad for p in module.parameters() if p.grad is not None)]
    flags = [part.training for part in module.modules()]
    return [[tensor.clone() for tensor in tensors], str(states), flags, torch.get_rng_state()]


@pytest.mark.parametrize("allocation", ["auto", {"name": "information_loss", "images": 8}, "global"])
@pytest.mark.parametrize("criterion", [slow("capacity_independence"), "taylor"])
def test_nothing_is_left_behind(criterion: str, allocation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = PruningEngine.check_ahead, []

    def watched(self: PruningEngine, fit: pl.Trainer, module: pl.LightningModule) -> None:
        next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
        before = everything(fit, module)
        own(self, fit, module)
        seen.append((before, everything(fit, module)))

    monkeypatch.setattr(PruningEngine, "check_ahead", watched)
    callback = FilterPruning(criterion, macs=0.5, schedule=[1], allocation=allocation, calibration_images=16)
    fit = trainer(callback, epochs=2, limit_train_batches=1)
    fit.fit(TinyModule(), loader())
    (tensors, *rest, random), (tensors_after, *rest_after, random_after) = seen[0]
    assert len(tensors) == len(tensors_after) > 10
    assert all(map(torch.equal, tensors, tensors_after))
    assert rest == rest_after
    assert torch.equal(random, random_after)


def test_lazy_layers_that_the_sanity_check_gives_their_shape_are_pruned() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(CLASSES))
    module = TinyModule(net=net)
    trainer(pruning((1,)), epochs=2, num_sanity_val_steps=1).fit(module, loader(), loader())
    assert net[0].out_channels < 8
