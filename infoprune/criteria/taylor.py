"""Estimate to first order how removing a filter changes the loss.

Sources: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (``of="weights"``: the
squared sum of gradient x weight over a filter, averaged over mini-batches), and "Pruning Convolutional Neural
Networks for Resource Efficient Inference", ICLR 2017 (``of="activations"``: the absolute mean of gradient x
activation over a feature map, averaged over images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.calibration import batches, evaluating, run
from infoprune.criteria.activations.tap import ActivationTap, as_maps, check_seen, per_filter
from infoprune.criteria.criterion import CRITERIA, LayerCriterion
from infoprune.criteria.filters import scored_layers
from infoprune.criteria.payoffs import LOSSES, evaluate, get_objective
from infoprune.distributed import all_or_none, mean_over_processes, sum_over_processes
from infoprune.registry import check_choice, check_count

if TYPE_CHECKING:
    from infoprune.structure import Layer, Structure


@CRITERIA.register("taylor")
@dataclass(kw_only=True)
class Taylor(LayerCriterion):
    """Estimate the change of the loss. Cost: one forward and one backward pass for each image.

    Scores of different layers have one scale, so those of coupled layers are summed directly.

    Args:
        of: ``"activations"`` or ``"weights"``, see above.
        loss: ``"cross_entropy"``, the import path of a function, or a function of (outputs, targets) that returns the
            mean loss of a batch.
        images: Number of calibration images over all processes; all of the data if it holds fewer.

    Raises:
        DataError: the data holds no image, or no targets.
        ConfigurationError: a layer that the loss does not depend on, or whose activations cannot be observed.
    """

    normalize: str = "none"
    combine: str = "sum"
    of: str = "activations"
    loss: str | Callable[[Any, Any], Tensor] = "cross_entropy"
    images: int = 640

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.label, "of", self.of, ("activations", "weights"))
        check_count(self.label, "images", self.images, 1)
        get_objective(self.loss, LOSSES, self.label, "loss")

    def layer_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> dict[str, Tensor]:
        """Return layer name -> (filters,) estimates."""
        layers = scored_layers(structure)
        weights = {layer.name: model.get_parameter(layer.weight) for layer in layers}
        of = self._of_weights if self.of == "weights" else self._of_activations
        with differentiable(weights.values()), evaluating(model), torch.enable_grad():
            return of(model, layers, weights, batches(model, data or (), self.images, self.label))

    def _of_weights(
        self, model: nn.Module, layers: list[Layer], weights: dict[str, nn.Parameter], data: Iterable[Any]
    ) -> dict[str, Tensor]:
        """Return the squared sums of gradient x weight over each filter, averaged over mini-batches."""
        sums: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        sizes = []
        with all_or_none():
            for inputs, targets, size in data:
                loss = self._loss(run(model, inputs), targets) if size else torch.zeros(())
                gradients = _gradients(loss, weights.values()) if size else [None] * len(layers)
                for layer, gradient in zip(layers, gradients, strict=True):
                    weight = weights[layer.name].detach().movedim(layer.dim, 0)
                    check_seen(layer, gradient is not None or not size, self.label)
                    product = torch.zeros_like(weight) if gradient is None else gradient.movedim(layer.dim, 0) * weight
                    sums[layer.name].append(size * product.flatten(1).sum(dim=1).to("cpu", torch.float64))
                sizes.append(float(size))
        total = sum_over_processes(torch.tensor(sizes, dtype=torch.float64))[:, None]
        return {
            name: (sum_over_processes(torch.stack(rows)) / total).square().mean(dim=0) for name, rows in sums.items()
        }

    def _of_activations(
        self, model: nn.Module, layers: list[Layer], weights: dict[str, nn.Parameter], data: Iterable[Any]
    ) -> dict[str, Tensor]:
        """Return the absolute mean of gradient x activation over each map, averaged over images."""
        kinds = {layer.name: layer.kind for layer in layers}
        sums = {layer.name: torch.zeros(weights[layer.name].shape[layer.dim], dtype=torch.float64) for layer in layers}
        count = 0

        def observe(name: str, activation: Tensor) -> None:
            value = as_maps(activation.detach().clone(), kinds[name])  # what follows may overwrite it

            def add(gradient: Tensor) -> None:
                product = as_maps(gradient, kinds[name]) * value * len(value)  # the loss is a mean over images
                scores = product.mean(dim=(2, 3)).abs().sum(dim=0).to("cpu", torch.float64)
                sums[name] += per_filter(scores, len(sums[name]))

            if activation.requires_grad:  # a layer may run without gradients, as a momentum encoder does
                activation.register_hook(add)

        tap = ActivationTap({weight: name for name, weight in weights.items()}, observe)
        with all_or_none():
            for inputs, targets, size in data:
                if size:
                    with tap:
                        outputs = run(model, inputs)
                    tap.finish()
                    _gradients(self._loss(outputs, targets), weights.values())
                    count += size
            for layer in layers:
                check_seen(layer, layer.name in tap.seen or not count, self.label)
        return {name: mean_over_processes(values, count) for name, values in sums.items()}

    def _loss(self, outputs: Any, targets: Any) -> Tensor:
        return evaluate(get_objective(self.loss, LOSSES, self.label, "loss"), outputs, targets, self.label)


def _gradients(loss: Tensor, weights: Iterable[nn.Parameter]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, list(weights), allow_unused=True)


@contextmanager
def differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let all of these parameters require gradients in the block; afterwards only those that did before.

    Args:
        parameters: the parameters.
    """
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
