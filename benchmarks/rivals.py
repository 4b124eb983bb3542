"""Torch-Pruning's criteria and ways to share a cut, brought to a share of the MACs, for `benchmarks.accuracy`.

Torch-Pruning follows autograd, where the zeros of an option-A shortcut have no channels of their own: what is added to
them does not fit after a cut. So in CIFAR ResNets it cuts the convolutions inside the blocks and leaves the residual
streams whole, which is to its advantage: the streams are the dearest to lose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn

import infoprune
from infoprune.models import CifarResNet
from infoprune.models.cifar_resnet import BasicBlock

Batches = Sequence[tuple[Tensor, Tensor]]
TRIES = 12
"""Ratios that are tried for a budget: the ratio is then exact to a quarter of a per mille."""
IMPORTANCES: dict[str, Callable[[], tp.importance.Importance]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": tp.importance.GroupTaylorImportance,
    "bn_scale": tp.importance.BNScaleImportance,
}
SHARINGS = {
    "local": {"global_pruning": False},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}


def cut(
    model: nn.Module,
    example: Tensor,
    importance: str,
    sharing: str,
    macs: float,
    data: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> nn.Module:
    """Prune a copy of a model to at most a share of its MACs, with the ratio that comes nearest.

    Args:
        model: The trained network.
        example: One input.
        importance: A key of `IMPORTANCES`.
        sharing: A key of `SHARINGS`.
        macs: Share to keep.
        data: Batches for the gradients of ``"taylor"``.
        loss: Of outputs and targets, for the same.

    Raises:
        RuntimeError: no ratio below 1 meets the budget.
    """
    whole = infoprune.trace(model, example).cost().macs
    gradients = _gradients(model, data, loss) if importance == "taylor" else {}
    low, high, found = 0.0, 1.0, None
    for _ in range(TRIES):
        ratio = (low + high) / 2
        pruned = _pruned(model, example, importance, sharing, ratio, gradients)
        if pruned is not None and infoprune.trace(pruned, example).cost().macs > macs * whole:
            low = ratio
        else:
            high = ratio
            found = pruned if pruned is not None else found
    if found is None:
        raise RuntimeError(f"no ratio brings {importance}, {sharing} to {macs:.0%} of the MACs")
    return found


def _gradients(model: nn.Module, data: Batches, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor | None]:
    """Gradients of the mean loss, batch norm in eval mode."""
    trial = copy.deepcopy(model).eval()
    images = sum(len(targets) for _, targets in data)
    for inputs, targets in data:
        (loss(trial(inputs), targets) * len(targets) / images).backward()
    return {name: parameter.grad for name, parameter in trial.named_parameters()}


def _pruned(
    model: nn.Module, example: Tensor, importance: str, sharing: str, ratio: float, gradients: dict[str, Tensor | None]
) -> nn.Module | None:
    """One call of Torch-Pruning; None where what is left does not run."""
    trial = copy.deepcopy(model).eval()
    for name, parameter in trial.named_parameters():
        parameter.requires_grad_(True)
        parameter.grad = gradients.get(name)
    pruner = tp.pruner.BasePruner(
        trial,
        example,
        importance=IMPORTANCES[importance](),
        pruning_ratio=ratio,
        ignored_layers=_ignored(trial, example),
        **SHARINGS[sharing],
    )
    pruner.step()
    try:
        with torch.no_grad():
            trial(example)
    except RuntimeError:
        return None  # a layer without channels
    trial.zero_grad()
    return trial


def _ignored(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Return the layers whose outputs stay: the model's outputs and the residual streams of CIFAR ResNets."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    if not isinstance(model, CifarResNet):
        return layers[-1:]
    return [model.conv1, layers[-1], *(block.conv2 for block in model.modules() if isinstance(block, BasicBlock))]
