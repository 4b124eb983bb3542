"""Check weights before scoring and scores after it: finite values, kind and shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from infoprune.errors import ConfigurationError


def check_weights(model: nn.Module) -> None:
    """Raise a ConfigurationError that names the layer if a model holds NaN or infinite parameters or norm statistics.

    Such a value appears only in the scores of some criteria, but later in the outputs of every smaller model.

    Args:
        model: the model.
    """
    held = list(_weights(model))
    vectors: dict[Any, list[Tensor]] = {}
    for _, _, tensor in held:
        if type(tensor) is Tensor and tensor.dim() == 1 and tensor.layout is torch.strided:
            vectors.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    # Most tensors are short vectors of norms, for which one sum of all takes less time than a sum of each.
    finite = {id(tensor) for alike in vectors.values() if math.isfinite(torch.cat(alike).sum()) for tensor in alike}
    for layer, key, tensor in held:
        if id(tensor) not in finite:
            check_finite(tensor, layer, "its weights" if key == "weight" else f"the values of its {key}")


def _weights(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield all parameters and norm statistics that hold numbers: the layer, the attribute, the values."""
    for name, module in model.named_modules():
        # Other buffers may be infinite on purpose: masks of attention, for one.
        statistics = module._buffers if isinstance(module, _NormBase) else {}
        for key, tensor in [*module._parameters.items(), *statistics.items()]:
            if tensor is not None and tensor.is_floating_point() and not tensor.is_meta:
                yield name or type(module).__name__, key, tensor.detach()


def check_finite(values: Tensor, layer: str, what: str) -> None:
    """Raise a ConfigurationError that names the layer if ``values`` hold a NaN or an infinity.

    Args:
        values: Any tensor.
        layer: The layer that it belongs to.
        what: What it is, for the message: ``"its weights"``.
    """
    # One NaN or infinity shows in the sum. So may an overflow, which is no fault.
    bad = 0 if math.isfinite(values.sum()) else int((~torch.isfinite(values)).sum())
    if bad:
        raise ConfigurationError(
            f"{layer}: {what} hold {bad} NaN or infinite values of {values.numel()}; load a valid checkpoint "
            f"before pruning"
        )


def check_mapping(caller: str, scores: Any, of: str) -> None:
    """Raise a ConfigurationError unless scores are a mapping.

    Args:
        caller: How messages refer to the criterion.
        scores: What it returned.
        of: What is scored: ``"layer"`` or ``"group"``.
    """
    if not isinstance(scores, Mapping):
        raise ConfigurationError(
            f"{caller} gives {type(scores).__name__}; return a dict from the name of each {of} to its scores"
        )


def as_scores(caller: str, values: Any, shape: tuple[int, ...], of: str) -> Tensor:
    """Return scores as float64 on the CPU.

    Args:
        caller: How messages refer to the criterion.
        values: What it returned.
        shape: The shape that the scores must have.
        of: What is scored, for messages: ``"the 8 filters of layer 'conv1'"``.

    Raises:
        ConfigurationError: no tensor of real numbers, another shape, NaN or infinite values.
    """
    if not isinstance(values, Tensor) or values.is_complex():
        what = "complex scores" if isinstance(values, Tensor) else f"values of type {type(values).__name__}"
        raise ConfigurationError(f"{caller} gives {what} for {of}; return a tensor of real numbers, one for each")
    if tuple(values.shape) != shape:
        raise ConfigurationError(
            f"{caller} gives scores of shape {tuple(values.shape)} for {of}; return one score for each, shape {shape}"
        )
    if values.is_meta:
        raise ConfigurationError(f"{caller} gives scores on the meta device for {of}; return a tensor with numbers")
    scores = values.detach().to_dense().to("cpu", torch.float64)
    bad = 0 if math.isfinite(scores.sum()) else int((~torch.isfinite(scores)).sum())
    if bad:
        raise ConfigurationError(
            f"{caller} gives {bad} NaN or infinite scores of {scores.numel()} for {of}; return finite numbers"
        )
    return scores
