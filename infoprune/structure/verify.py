"""`verify`: a shrunk model computes what the masked original computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infoprune.structure.labels import LabelSpace
from infoprune.structure.labels.tensor_labels import TensorLabels, labels_of, set_labels
from infoprune.structure.module_state import attributes_restored, drop
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.tensors import copied, owned_tensors
from infoprune.structure.tracing.rules import tensors_in
from infoprune.structure.tracing.rules.reduction import reduced_dims
from infoprune.structure.tracing.tracer import Inputs, Operator, Tracer, run_labelled

STATISTICS = ("aten.mean", "aten.var", "aten.std", "aten.var_mean")


@dataclass(frozen=True)
class Verification:
    """The largest error of each output tensor, relative to that output's largest value.

    Attributes:
        errors: one number per output tensor, in order.
        tolerance: what counts as equal.
    """

    errors: tuple[float, ...]
    tolerance: float

    @property
    def max_error(self) -> float:
        """The largest of all errors."""
        return max(self.errors, default=0.0)

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return bool(self.errors) and self.max_error <= self.tolerance


def verify(
    original: nn.Module, shrunk: nn.Module, plan: PruningPlan, example_inputs: Inputs, tolerance: float = 1e-8
) -> Verification:
    """Compare a shrunk model with a masked copy of the original, both in float64 and eval mode.

    In the masked copy everything that the plan removes is zero; layer and group norms, which look at all channels at
    once, take their statistics over the channels that stay. Both models are copied, so neither is changed, and what
    their code keeps for the next call is computed anew.

    Args:
        original: the model before the cut.
        shrunk: the model after it.
        plan: what was removed.
        example_inputs: as for :func:`infoprune.trace`.
        tolerance: relative error that still counts as equal.

    Returns:
        The error of each output; ``.ok`` says whether all are within the tolerance.

    Raises:
        PlanError: the plan does not belong to ``original``.
    """
    masked, narrow = (copied(model).double() for model in (original, shrunk))
    for model in (masked, narrow):
        drop(dict(model.named_modules()), plan)
    inputs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example_inputs)
    with attributes_restored([*masked.modules(), *narrow.modules()]), torch.no_grad():
        masked.eval()
        narrow.eval()
        expected = _run_masked(masked, plan, inputs)
        actual = run_labelled(_Doubled(LabelSpace(), {}), narrow, inputs, []).tensors
    return Verification(tuple(_error(e, a) for e, a in zip(expected, actual, strict=True)), tolerance)


def _error(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    expected, actual = expected.double(), actual.double()
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = ((expected - actual).abs().max() / scale).item()
    return error if error == error else float("inf")


def _run_masked(model: nn.Module, plan: PruningPlan, inputs: Inputs) -> list[Tensor]:
    """Run a copy of the original with zeros where the plan removes something."""
    owned = owned_tensors(model)
    check_belongs(plan, {name: tuple(entry.tensor.shape) for name, entry in owned.items()})
    space = LabelSpace()
    operands, gone = [], []
    for name, entry in owned.items():
        axes = [space.add_slot(name, dim, size) for dim, size in enumerate(entry.tensor.shape)]
        operands.append((entry.tensor, TensorLabels(entry.axes(axes), zero=True, origin=name)))
        for dim, indices in plan.removed.get(name, {}).items():
            entry.tensor.data.index_fill_(dim, torch.tensor(indices, device=entry.tensor.device), 0)
            gone.append(axes[dim][list(indices)])
    removed = np.concatenate([np.empty(0, dtype=np.int64), *gone])
    return run_labelled(_Masked(space, removed), model, inputs, operands).tensors


class _Doubled(Tracer):
    """Keeps a model in float64 whose code asks for less (``x.float()``)."""

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
            kwargs = kwargs | {"dtype": torch.float64}
        return super().observe(operator, args, kwargs)


class _Masked(_Doubled):
    """Lets normalisations over channels see only the channels that stay."""

    def __init__(self, space: LabelSpace, removed: np.ndarray) -> None:
        super().__init__(space, {})
        self._removed = removed

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().observe(operator, args, kwargs)
        name = operator.name
        if name in STATISTICS:
            narrow = args[0]
            for dim in reduced_dims(name, args, kwargs, args[0].dim()):
                narrow = narrow if (stay := self._stay(args[0], dim)) is None else narrow.index_select(dim, stay)
            return result if narrow is args[0] else _labelled(operator.func(narrow, *args[1:], **kwargs), result)
        for dim in _normalised_dims(name, args):
            stay = self._stay(args[0], dim)
            if stay is not None:
                return self._over_kept(operator.func, name, args, kwargs, result, dim, stay)
        for out in tensors_in([result]):
            self._silence(out)
        return result

    def _silence(self, out: Tensor) -> None:
        """Keep what is removed of a kernel zero: its statistics are of what stays, or may divide zero by zero."""
        labels = labels_of(out)
        if labels.zero and labels.origin is not None and out.is_floating_point():
            for dim in range(out.dim()):
                stay = self._stay(out, dim)
                if stay is not None:
                    gone = torch.ones(out.shape[dim], dtype=torch.bool, device=out.device).index_fill_(0, stay, False)
                    out.index_fill_(dim, gone.nonzero()[:, 0], 0)

    def _stay(self, tensor: Tensor, dim: int) -> Tensor | None:
        """The indices of a dimension that the plan leaves, if it does not leave all."""
        axis = labels_of(tensor).axes[dim]
        gone = None if axis is None else np.isin(axis, self._removed)
        return None if gone is None or not gone.any() else torch.from_numpy(np.flatnonzero(~gone)).to(tensor.device)

    def _over_kept(
        self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], full: Any, dim: int, index: Tensor
    ) -> Any:
        narrow = list(args)
        narrow[0] = args[0].index_select(dim, index)
        if "group_norm" in name:
            narrow[1:3] = [t if t is None else t.index_select(0, index) for t in args[1:3]]
            narrow[4] = len(index)
            narrow[6] = len(index) if args[6] == args[4] else args[6]
        elif "layer_norm" in name or "rms_norm" in name:
            first = args[0].dim() - len(args[1])
            narrow[1] = list(narrow[0].shape[first:])
            for i in (2, 3):
                if len(args) > i and isinstance(args[i], Tensor):
                    narrow[i] = args[i].index_select(dim - first, index)
        outs = func(*narrow, **kwargs)
        first_out = tensors_in([full])[0]
        placed = torch.zeros_like(first_out)
        placed.index_copy_(dim, index, tensors_in([outs])[0])
        set_labels(placed, labels_of(first_out))
        return (placed, *full[1:]) if isinstance(full, tuple) else placed


def _labelled(outs: Any, like: Any) -> Any:
    """The results of an operator, with the labels of others."""
    for out, other in zip(tensors_in([outs]), tensors_in([like]), strict=True):
        set_labels(out, labels_of(other))
    return outs


def _normalised_dims(name: str, args: Sequence[Any]) -> Sequence[int]:
    """The dimensions over which an operator normalises, as far as they may hold channels."""
    rank = args[0].dim() if args and isinstance(args[0], Tensor) else 0
    if "group_norm" in name:
        return range(1, 2)
    if name in ("aten.native_layer_norm", "aten._fused_rms_norm"):
        return range(rank - len(args[1]), rank)
    if name == "aten.native_batch_norm" and args[5]:  # of kernels, to standardise them
        return range(2, rank)
    return ()
