"""`SparsityWarmup`: penalise the filters that the next event removes, for some epochs before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from infoprune.callbacks._compat import DualNamespaceCallback
from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.callbacks.trainer_checks import find_pruning
from infoprune.errors import ConfigurationError
from infoprune.registry import check_choice, check_count, check_number
from infoprune.structure import PruningPlan, Structure

PENALTIES = ("growing_l2", "group_lasso")
SMALLEST = 1e-12


@dataclass(frozen=True)
class Part:
    """The place of a group's units in one parameter that makes their channels (filter, bias or norm).

    Attributes:
        parameter: its name.
        dim: dimension along which the units lie.
        index: (k,) positions along it.
        unit: (k,) the unit, counted within the group, that each position belongs to.
    """

    parameter: str
    dim: int
    index: Tensor
    unit: Tensor


def parts_of(network: nn.Module, structure: Structure, plan: PruningPlan) -> list[list[Part]]:
    """Return for each group which parts of parameters make the units that a plan removes.

    Layers that read the units are left out.

    Args:
        network: the module that ``structure`` was traced from.
        structure: its channel groups.
        plan: what is to be removed.
    """
    filters = {(layer.weight, layer.dim) for layer in structure.layers}
    parameters = dict(network.named_parameters())
    groups = []
    for group in structure.prunable:
        doomed = {
            int(unit)
            for slot in group.slots
            for position, unit in zip(slot.index, slot.unit, strict=True)
            if position in plan.removed.get(slot.tensor, {}).get(slot.dim, ())
        }
        parts = []
        for slot in group.slots:
            makes = (slot.tensor, slot.dim) in filters or getattr(parameters.get(slot.tensor), "ndim", 0) == 1
            if doomed and makes and slot.tensor in parameters:
                chosen = np.isin(slot.unit, sorted(doomed))
                index, unit = (torch.as_tensor(values[chosen]) for values in (slot.index, slot.unit))
                parts.append(Part(slot.tensor, slot.dim, index, unit))
        if parts:
            groups.append(parts)
    return groups


def rows(tensor: Tensor, part: Part) -> Tensor:
    """Return the units' rows of a parameter or gradient: (k, ...).

    Args:
        tensor: the parameter, or its gradient.
        part: where the units are in it.
    """
    return tensor.index_select(part.dim, part.index.to(tensor.device)).movedim(part.dim, 0)


def unit_norms(network: nn.Module, parts: list[Part]) -> Tensor:
    """Return the L2 norm of each unit over all parameters that make it: (units,), 0 for units that stay.

    Args:
        network: the network.
        parts: the parts of one group's units.
    """
    first = network.get_parameter(parts[0].parameter)
    squares = torch.zeros(int(max(part.unit.max() for part in parts)) + 1, device=first.device)
    for part in parts:
        own = rows(network.get_parameter(part.parameter).detach(), part).float().square()
        squares.index_add_(0, part.unit.to(own.device), own.reshape(len(own), -1).sum(dim=1))
    return squares.sqrt()


class SparsityWarmup(DualNamespaceCallback):
    """Penalise the filters that the next event of `FilterPruning` will remove.

    Some epochs before an event, `FilterPruning` decides in advance which filters the event will remove. Until the
    event, the gradient of a penalty is added to the gradients of these filters, of their biases and of their norms'
    weights before every optimizer step, so that other filters replace them and little is lost when they are removed.
    The loss, the other filters' gradients and the layers that read the filters do not change.

    - ``"growing_l2"`` adds ``s x w`` with s growing evenly from 0 to ``strength`` (Wang et al., "Neural Pruning via
      Growing Regularization", ICLR 2021).
    - ``"group_lasso"`` adds ``strength x w / |w|``, with |w| over all parameters of a unit (Wen et al., "Learning
      Structured Sparsity in Deep Neural Networks", NeurIPS 2016), for the units to be removed only.

    It is added after gradients have been unscaled and averaged over processes, and is clipped with them. Adaptive
    optimizers (Adam) rescale it as they do every gradient. The callback's position in the list does not matter, and a
    resumed run gives the same result. Logged: ``sparsity/doomed_norm`` at the end of each epoch of a warm-up, the mean
    norm of the units that will be removed.

    Args:
        epochs: length of the warm-up before each event; shorter if the previous event or the start is nearer.
        penalty: ``"growing_l2"`` or ``"group_lasso"``.
        strength: final strength of the penalty; None: 1.0 for ``growing_l2``, 0.05 for ``group_lasso``. For comparison:
            weight decay is mostly between 1e-4 and 5e-3.
        module: where several `FilterPruning` callbacks prune parts of the model: the ``module`` of the one meant.

    Raises:
        ConfigurationError: when a fit starts: no `FilterPruning`, or all of its events are at epoch 0.

    Example:
        >>> callbacks = [FilterPruning("l1", macs=0.5, schedule=5), SparsityWarmup(epochs=3)]
    """

    def __init__(
        self, epochs: int = 1, penalty: str = "growing_l2", strength: float | None = None, *, module: str | None = None
    ) -> None:
        super().__init__()
        check_count("SparsityWarmup", "epochs", epochs, 1)
        check_choice("SparsityWarmup", "penalty", penalty, PENALTIES)
        if strength is not None:
            check_number("SparsityWarmup", "strength", strength, 0)
        self.epochs = epochs
        self.penalty = penalty
        self.strength = strength if strength is not None else {"growing_l2": 1.0, "group_lasso": 0.05}[penalty]
        self.module = module
        self._groups: list[list[Part]] | None = None
        self._span = (0, 0)
        self._progress = 0.0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not any(self._pruning(trainer).schedule.epochs):
            raise ConfigurationError(
                "SparsityWarmup has no time before an event at epoch 0: schedule the event later, or leave it out"
            )

    def _pruning(self, trainer: pl.Trainer) -> FilterPruning:
        return find_pruning(trainer, self.module, "SparsityWarmup")

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._groups = None  # of an earlier run

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        epoch, pruning = trainer.current_epoch, self._pruning(trainer)
        if self._groups is not None and not self._span[0] <= epoch < self._span[1]:
            self._groups = None
        if self._groups is None and not pruning.is_due(epoch):  # behind the event, wherever this callback stands
            self._begin(trainer, pl_module, pruning)
        batches = trainer.num_training_batches
        share = (batch_idx + 1) / batches if math.isfinite(batches) else 1.0
        start, end = self._span
        self._progress = (epoch - start + share) / max(end - start, 1)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: FilterPruning) -> None:
        epochs = (0, *pruning.schedule.epochs)
        end = next((epoch for epoch in epochs if epoch > trainer.current_epoch), None)
        if end is None:
            return
        start = max(end - self.epochs, *(epoch for epoch in epochs if epoch < end))
        if trainer.current_epoch < start:
            return
        pending = pruning.plan_next_event(trainer, pl_module)
        if pending is not None:
            self._span = (start, end)
            self._groups = parts_of(pruning.network(pl_module), *pending)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._groups is None:
            return
        network = self._pruning(trainer).network(pl_module)
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        growth = self._progress if self.penalty == "growing_l2" else 1.0
        for parts in self._groups:
            norms = unit_norms(network, parts) if self.penalty == "group_lasso" else None
            for part in parts:
                parameter = network.get_parameter(part.parameter)
                if id(parameter) in mine and parameter.grad is not None:
                    _add(parameter, part, growth * self.strength, norms)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._groups is not None:
            network = self._pruning(trainer).network(pl_module)
            norms = torch.cat([unit_norms(network, parts) for parts in self._groups])
            pl_module.log("sparsity/doomed_norm", norms[norms > 0].mean() if norms.any() else norms.sum())


def _add(parameter: Tensor, part: Part, factor: float, norms: Tensor | None) -> None:
    """Add the penalty's gradient of some units to the gradient of one parameter."""
    assert parameter.grad is not None
    penalty = factor * rows(parameter.detach(), part)
    if norms is not None:
        divisors = norms.clamp(min=SMALLEST)[part.unit.to(norms.device)].to(penalty)
        penalty = penalty / divisors.view(-1, *[1] * (penalty.dim() - 1))
    index = part.index.to(parameter.device)
    parameter.grad.index_add_(part.dim, index, penalty.movedim(0, part.dim).to(parameter.grad.dtype))
