"""Estimate to second order how removing a filter changes the loss, with a diagonal Fisher matrix.

Sources: LeCun et al., "Optimal Brain Damage", NIPS 1989; for whole filters (OBD-C) Wang et al., "EigenDamage:
Structured Pruning in the Kronecker-Factored Eigenbasis", ICML 2019, arXiv 1905.05934.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.calibration import batches, evaluating, rows_of, run
from infoprune.criteria.activations.tap import check_seen
from infoprune.criteria.criterion import CRITERIA, LayerCriterion
from infoprune.criteria.filters import scored_layers
from infoprune.criteria.payoffs import LOSSES, evaluate, get_objective
from infoprune.criteria.taylor import differentiable
from infoprune.distributed import all_or_none, mean_over_processes
from infoprune.registry import check_count

if TYPE_CHECKING:
    from infoprune.structure import Structure


@CRITERIA.register("hessian")
@dataclass(kw_only=True)
class Hessian(LayerCriterion):
    """Sum half of Fisher information x weight² over a filter's weights. Cost: a backward pass for each image.

    The Fisher information of a weight is the mean over images of its squared gradient, for the targets in the data
    (the *empirical* Fisher matrix). Images are run one by one, because each image's gradient is needed. Scores of
    different layers have one scale, so those of coupled layers are summed directly.

    Args:
        loss: ``"cross_entropy"``, the import path of a function, or a function of (outputs, targets) that returns the
            mean loss of a batch.
        images: Number of calibration images over all processes; all of the data if it holds fewer.

    Raises:
        DataError: the data holds no image, or no targets, or the model does not run on a batch of one image.
        ConfigurationError: a layer that the loss does not depend on.
    """

    normalize: str = "none"
    combine: str = "sum"
    loss: str | Callable[[Any, Any], Tensor] = "cross_entropy"
    images: int = 128

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.label, "images", self.images, 1)
        get_objective(self.loss, LOSSES, self.label, "loss")

    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Return layer name -> (filters,) estimates."""
        layers = scored_layers(structure)
        weights = [model.get_parameter(layer.weight) for layer in layers]
        objective = get_objective(self.loss, LOSSES, self.label, "loss")
        sums = [
            torch.zeros(weight.shape[layer.dim], dtype=torch.float64)
            for layer, weight in zip(layers, weights, strict=True)
        ]
        seen = [False] * len(layers)
        count = 0
        with differentiable(weights), evaluating(model), torch.enable_grad(), all_or_none():
            for inputs, targets, size in batches(model, data or (), self.images, self.label):
                for row in range(size):
                    image, target = rows_of((inputs, targets), size, slice(row, row + 1))
                    loss = evaluate(objective, run(model, image), target, self.label)
                    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
                    for i, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
                        if gradient is not None:
                            product = (gradient * weights[i].detach()).movedim(layer.dim, 0).flatten(1)
                            sums[i] += product.to("cpu", torch.float64).square().sum(dim=1) / 2
                            seen[i] = True
                count += size
            for layer, reached in zip(layers, seen, strict=True):
                check_seen(layer, reached or not count, self.label)
        return {layer.name: mean_over_processes(total, count) for layer, total in zip(layers, sums, strict=True)}
