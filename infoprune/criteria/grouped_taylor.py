"""Estimate to first order how removing a unit, with all parameters coupled to it, changes the loss.

Sources: the estimate is Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019; taking it over
all coupled parameters is Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infoprune.calibration import batches, evaluating, run
from infoprune.criteria.criterion import CRITERIA, Criterion, Scores
from infoprune.criteria.payoffs import LOSSES, evaluate, get_objective
from infoprune.criteria.taylor import differentiable
from infoprune.distributed import all_or_none, mean_over_processes
from infoprune.errors import ConfigurationError
from infoprune.registry import check_count

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, Structure


@CRITERIA.register("grouped_taylor")
@dataclass(kw_only=True)
class GroupedTaylor(Criterion):
    """Sum ``|gradient x value|`` over every parameter element that is removed with a unit.

    Those are the unit's filters, their biases and norm parameters, and the kernels that read the unit in the next
    layers; `Taylor` uses the filters alone. The gradient is that of the mean loss over all images. Cost: one
    forward and one backward pass for each image.

    Args:
        loss: ``"cross_entropy"``, the import path of a function, or a function of (outputs, targets) that returns the
            mean loss of a batch.
        images: Number of calibration images over all processes; all of the data if it holds fewer.

    Raises:
        DataError: the data holds no image, or no targets.
        ConfigurationError: a group that the loss does not depend on.
    """

    loss: str | Callable[[Any, Any], Tensor] = "cross_entropy"
    images: int = 640

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.label, "images", self.images, 1)
        get_objective(self.loss, LOSSES, self.label, "loss")

    def group_scores(self, model: nn.Module, structure: Structure, data: Iterable[Any] | None) -> Scores:
        """Return group name -> (units,) estimates."""
        names = {slot.tensor for group in structure.prunable for slot in group.slots}
        parameters = {name: value for name, value in model.named_parameters() if name in names}
        gradients = self._mean_gradients(model, parameters, data or ())
        products = {name: (gradients[name] * parameters[name].detach().cpu()).abs() for name in gradients}
        return {group.name: self._sum_over_slots(group, products) for group in structure.prunable}

    def _mean_gradients(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], data: Iterable[Any]
    ) -> dict[str, Tensor]:
        """Return float64 gradients, on the CPU, of the mean loss over all processes' images; zeros where none."""
        objective = get_objective(self.loss, LOSSES, self.label, "loss")
        sums = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in parameters.items()}
        count = 0
        with differentiable(parameters.values()), evaluating(model), torch.enable_grad(), all_or_none():
            for inputs, targets, size in batches(model, data, self.images, self.label):
                if not size:
                    continue
                loss = evaluate(objective, run(model, inputs), targets, self.label)
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        sums[name] += size * gradient.to("cpu", torch.float64)
                count += size
        return {name: mean_over_processes(total, count) for name, total in sums.items()}

    def _sum_over_slots(self, group: ChannelGroup, products: dict[str, Tensor]) -> Tensor:
        """Return the sums (units,) of the products of one group."""
        total = torch.zeros(group.size, dtype=torch.float64)
        for slot in group.slots:
            if slot.tensor in products:  # buffers have no gradient
                rows = products[slot.tensor].movedim(slot.dim, 0)
                rows = rows.reshape(len(rows), -1).sum(dim=1)
                total.index_add_(0, torch.as_tensor(slot.unit), rows[torch.as_tensor(slot.index)])
        if not total.any():
            raise ConfigurationError(
                f"{self.label}: the loss does not depend on group {group.name!r}; freeze it or choose a data-free "
                "criterion such as 'l1'"
            )
        return total
