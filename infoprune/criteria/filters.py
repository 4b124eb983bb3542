"""Find the layers that are scored, and the weights with which each of their filters computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

if TYPE_CHECKING:
    from infoprune.structure import Layer, Structure


def scored_layers(structure: Structure) -> list[Layer]:
    """Return the layers whose filters belong to a prunable group, each once, in forward order.

    Args:
        structure: the channel groups.
    """
    wanted = {layer.name for group in structure.prunable for layer, _ in structure.producers(group)}
    return [layer for layer in structure.layers if layer.name in wanted]


def weight_of(model: nn.Module, layer: Layer) -> Tensor:
    """Return the kernel that a layer computes with, its filters along the first dimension.

    Masks (``torch.nn.utils.prune``), weight norm, spectral norm and parametrizations count: a masked weight is zero.

    Args:
        model: the model.
        layer: one of its layers.

    Returns:
        (filters, ...) kernel.
    """
    path, _, attribute = layer.weight.rpartition(".")
    owner = model.get_submodule(path)
    parameter = getattr(owner, attribute).detach()
    with torch.no_grad():
        kernel = _computed_kernel(model, owner, layer.weight)
    # What is computed in another shape (a low-rank product, say) has no dimension that is known to hold the filters.
    return (parameter if kernel is None or kernel.shape != parameter.shape else kernel).movedim(layer.dim, 0)


def _computed_kernel(model: nn.Module, module: nn.Module, weight: str) -> Tensor | None:
    """Return what PyTorch's utilities compute from a weight of ``module`` before a forward; None if it is plain."""
    path, _, attribute = weight.rpartition(".")
    if ".parametrizations." in f".{weight}":
        owner, _, attribute = f".{path}".rpartition(".parametrizations.")
        return cast(Tensor, getattr(model.get_submodule(owner.strip(".")), attribute))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and attribute == f"{hook._tensor_name}_orig":
            return cast(Tensor, hook.apply_mask(module))
        if isinstance(hook, WeightNorm) and attribute == f"{hook.name}_v":
            return cast(Tensor, hook.compute_weight(module))
        if isinstance(hook, SpectralNorm) and attribute == f"{hook.name}_orig":
            return hook.compute_weight(module, do_power_iteration=False)
    return None


def as_filters(weight: Tensor, dtype: torch.dtype = torch.float64, copy: bool = True) -> Tensor:
    """Return a weight as filters on the CPU.

    Always the CPU and always float64, so that a plan does not depend on the device or the precision of a run.

    Args:
        weight: (filters, kernels, ...) weights of a layer.
        dtype: Their precision from here on.
        copy: Whether the result has memory of its own, so that it may be computed with in place.

    Returns:
        (filters, kernels, weights per kernel).
    """
    weight = weight.to("cpu", dtype, copy=copy)
    # A kernel may be computed from one number a filter, such as the width of a Gaussian.
    return weight.reshape(weight.shape[0], weight.shape[1] if weight.dim() > 1 else 1, -1)


def filters_of(model: nn.Module, layer: Layer) -> Tensor:
    """Return all filters of a layer, see :func:`as_filters`.

    Args:
        model: the model.
        layer: one of its layers.

    Returns:
        (N, C, K): N filters of C kernels with K weights.
    """
    return as_filters(weight_of(model, layer))
