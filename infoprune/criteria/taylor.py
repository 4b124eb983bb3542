"""First-order estimate of what removing a filter does to the loss.

Sources: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (``of="weights"``: the
squared sum of gradient x weight over a filter, averaged over mini-batches), and "Pruning Convolutional Neural
Networks for Resource Efficient Inference", ICLR 2017 (``of="activations"``: the absolute mean of gradient x
activation over a feature map, averaged over images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.criteria.activations import ActivationTap, as_maps, check_seen, per_filter
from infoprune.criteria.calibration import batches, evaluating, run
from infoprune.criteria.criterion import CRITERIA, LayerCriterion, scored_layers
from infoprune.criteria.distributed import sum_over_processes
from infoprune.criteria.objective import LOSSES, Objective, evaluate, get_objective
from infoprune.registry import check_choice, check_count

if TYPE_CHECKING:
    from infoprune.structure import Layer, Structure


@CRITERIA.register("taylor")
@dataclass(kw_only=True)
class Taylor(LayerCriterion):
    """Estimated change of the loss. Cost: one forward and one backward pass for each image.

    Scores of different layers are on one scale, so coupled layers are summed as they are.

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
        """Layer name -> (filters,) estimates."""
        layers = scored_layers(structure)
        weights = {layer.name: model.get_parameter(layer.weight) for layer in layers}
        add_batch = self._of_weights if self.of == "weights" else self._of_activations
        sums = {layer.name: torch.zeros(weights[layer.name].shape[layer.dim], dtype=torch.float64) for layer in layers}
        count = 0
        frozen = [weight for weight in weights.values() if not weight.requires_grad]
        loss = get_objective(self.loss, LOSSES, self.label, "loss")
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            with evaluating(model), torch.enable_grad():
                for inputs, targets, size in batches(model, data or (), self.images, self.label):
                    count += add_batch(model, layers, weights, loss, inputs, targets, size, sums)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
        total = sum_over_processes(torch.tensor(float(count), dtype=torch.float64))
        return {name: sum_over_processes(values) / total for name, values in sums.items()}

    def _of_weights(
        self,
        model: nn.Module,
        layers: list[Layer],
        weights: dict[str, nn.Parameter],
        loss: Objective,
        inputs: Any,
        targets: Any,
        size: int,
        sums: dict[str, Tensor],
    ) -> int:
        """Add the squared sums of one mini-batch."""
        value = evaluate(loss, run(model, inputs), targets, self.label)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for layer, gradient in zip(layers, gradients, strict=True):
            check_seen(layer, gradient is not None, self.label)
            product = (gradient * weights[layer.name].detach()).movedim(layer.dim, 0)
            sums[layer.name] += product.flatten(1).sum(dim=1).square().to("cpu", torch.float64)
        return 1

    def _of_activations(
        self,
        model: nn.Module,
        layers: list[Layer],
        weights: dict[str, nn.Parameter],
        loss: Objective,
        inputs: Any,
        targets: Any,
        size: int,
        sums: dict[str, Tensor],
    ) -> int:
        """Add the absolute means over the maps of one batch's images."""
        kinds = {layer.name: layer.kind for layer in layers}

        def observe(name: str, activation: Tensor) -> None:
            value = as_maps(activation.detach().clone(), kinds[name])  # what follows may overwrite it

            def add(gradient: Tensor) -> None:
                product = as_maps(gradient, kinds[name]) * value * size  # the loss is a mean over images
                scores = product.mean(dim=(2, 3)).abs().sum(dim=0).to("cpu", torch.float64)
                sums[name] += per_filter(scores, len(sums[name]))

            activation.register_hook(add)

        tap = ActivationTap({weight: name for name, weight in weights.items()}, observe)
        with tap:
            outputs = run(model, inputs)
        tap.finish()
        for layer in layers:
            check_seen(layer, layer.name in tap.seen, self.label)
        value = evaluate(loss, outputs, targets, self.label)
        torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        return size
