"""Run a model on real numbers: unchanged, masked, or with the tensors that a plan would leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infoprune.inputs import Inputs
from infoprune.structure.function_caches import cached_functions, emptied
from infoprune.structure.labels import Labels, LabelSpace
from infoprune.structure.labels.tensor_labels import TensorLabels, labels_of, set_labels
from infoprune.structure.module_outputs import ModuleOutputs
from infoprune.structure.module_state import attributes_restored, drop
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.surgery import attributes
from infoprune.structure.surgery.slicing import cut
from infoprune.structure.tensors import OwnedTensor, owned_tensors, swapped
from infoprune.structure.tracing.examples import plain
from infoprune.structure.tracing.execution import Operator, execute
from infoprune.structure.tracing.rules import tensors_in
from infoprune.structure.tracing.rules.reduction import reduced_dims
from infoprune.structure.tracing.tracer import Tracer, run_labelled

STATISTICS = ("aten.mean", "aten.var", "aten.std", "aten.var_mean", "aten.std_mean")

_SINGULAR = frozenset({
    "aten.div", "aten.floor_divide", "aten.remainder", "aten.fmod", "aten.addcdiv", "aten.reciprocal", "aten.rsqrt",
    "aten.pow", "aten.log", "aten.log2", "aten.log10", "aten.logit", "aten.lgamma", "aten.digamma",
})  # fmt: skip
"""Operators whose results may be infinite, or no numbers, where operands are zero."""

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}

_RANDOM = {
    "aten.rand": 0.5,
    "aten.rand_like": 0.5,
    "aten.randn": 0.5,
    "aten.randn_like": 0.5,
    "aten.normal": 0.5,
    "aten.normal_": 0.5,
    "aten.uniform_": 0.5,
    "aten.exponential_": 0.5,
    "aten.bernoulli": 1.0,
    "aten.bernoulli_": 1.0,
}
"""Operators that draw numbers, and what stands for each of them: how many are drawn may depend on widths."""


class NumericRun:
    """Run a model in eval mode, on its inputs, with tensors that replace its own.

    The model is not copied and not changed: its tensors and attributes are swapped for the duration of a run. Buffers
    are copied for each run, since code may write to them.

    Args:
        model: the model.
        inputs: its inputs.
        double: compute in float64, whatever dtypes the code asks for.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, double: bool = False) -> None:
        self._model = model
        self._inputs = tree_map_only(Tensor, _widened, plain(inputs)) if double else plain(inputs)
        self._double = double
        self._owned = owned_tensors(model)
        self._modules = dict(model.named_modules())
        self._cached_functions = cached_functions(self._modules.values())

    def plain(self, caches: Sequence[str] = ()) -> list[Tensor]:
        """Return the outputs of the model as it is.

        Args:
            caches: paths of attributes in which the model's code keeps tensors; empty during the run.

        Returns:
            The output tensors, in a fixed order.
        """
        tensors = {name: self._own(entry) for name, entry in self._owned.items()}
        return self._run(tensors, _NumericTracer(LabelSpace(), self._double), PruningPlan(caches=tuple(caches)))

    def shrunk(self, plan: PruningPlan, noted: ModuleOutputs | None = None) -> list[Tensor]:
        """Return the outputs of the model with the tensors and attributes that a plan would leave.

        Args:
            plan: what would go.
            noted: where to note the outputs of every module too.

        Returns:
            Every tensor that the model returns, in order.
        """
        tensors = {
            name: self._converted(cut(entry.tensor, plan.removed[name])) if name in plan.removed else self._own(entry)
            for name, entry in self._owned.items()
        }
        names = {id(entry.tensor): name for name, entry in self._owned.items()}
        changed = attributes.changes(self._modules, plan, names)
        return self._run(tensors, _NumericTracer(LabelSpace(), self._double), plan, changed, noted=noted)

    def masked(self, plan: PruningPlan, noted: ModuleOutputs | None = None) -> list[Tensor]:
        """Return the outputs of the model with zeros where a plan removes something.

        Args:
            plan: a plan of the model.
            noted: records the outputs of modules on the way.

        Raises:
            PlanError: the plan does not belong to the model.
        """
        check_belongs(plan, {name: tuple(entry.tensor.shape) for name, entry in self._owned.items()})
        space, tensors, gone = LabelSpace(), {}, [np.empty(0, dtype=np.int64)]
        labelled = []
        for name, entry in self._owned.items():
            tensor, removed = self._own(entry), plan.removed.get(name, {})
            tensor = tensor.clone() if removed and tensor.data_ptr() == entry.tensor.data_ptr() else tensor
            axes = [*space.add_tensor(name, tensor.shape)]
            for dim, indices in removed.items():
                places = np.array(indices, dtype=np.int64)
                tensor.index_fill_(dim, torch.from_numpy(places).to(tensor.device), 0)
                axes[dim] = _in_two(axes[dim], places)
                gone.append(axes[dim][places])
            tensors[name] = tensor
            labelled.append((tensor, TensorLabels(entry.axes(axes), zero=True, origin=name)))
        tracer = _MaskedTracer(space, self._double, np.concatenate(gone))
        return self._run(tensors, tracer, plan, labelled=labelled, noted=noted)

    def _own(self, entry: OwnedTensor) -> Tensor:
        tensor = self._converted(entry.tensor.detach())
        return tensor if entry.is_parameter or tensor.data_ptr() != entry.tensor.data_ptr() else tensor.clone()

    def _converted(self, tensor: Tensor) -> Tensor:
        return _widened(tensor) if self._double else tensor

    @torch.inference_mode(False)
    def _run(
        self,
        tensors: Mapping[str, Tensor],
        tracer: _NumericTracer,
        plan: PruningPlan,
        changed: Sequence[attributes.Change] = (),
        labelled: Sequence[tuple[Tensor, TensorLabels]] = (),
        noted: ModuleOutputs | None = None,
    ) -> list[Tensor]:
        with ExitStack() as stack:
            stack.enter_context(attributes_restored(self._modules.values()))
            stack.enter_context(emptied(self._cached_functions))
            stack.enter_context(attributes.rewritten(changed))
            stack.enter_context(swapped(self._owned, tensors))
            if self._double:
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float64)
            drop(self._modules, plan)
            for module in self._modules.values():
                module.__dict__["training"] = False
                if isinstance(module, nn.RNNBase):
                    module.__dict__["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]
            if noted is not None:
                names = {id(module): name for name, module in self._modules.items()}
                stack.enter_context(noted.noted(names, tracer.kept))
            return run_labelled(tracer, self._model, self._inputs, labelled).tensors


def _in_two(axis: Labels, removed: np.ndarray) -> Labels:
    """Return one label for all indices that are removed and one for those that stay.

    Then labels vary only along the dimension that is cut, however a view splits it.

    >>> _in_two(np.arange(10, 15), np.array([1, 3])).tolist()
    [10, 11, 10, 11, 10]
    """
    goes = np.zeros(len(axis), dtype=bool)
    goes[removed] = True
    return np.where(goes, axis[np.argmax(goes)], axis[np.argmin(goes)])


class _NumericTracer(Tracer):
    """Run operators on real numbers, in float64 if asked to, with the same random numbers in every run."""

    def __init__(self, space: LabelSpace, double: bool) -> None:
        super().__init__(space, {})
        self._double = double

    def kept(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that stays."""
        return tensor

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._double:
            args, kwargs = _in_double(operator, args, kwargs)
        result = self._computed(operator, args, kwargs)
        constant = _RANDOM.get(operator.name)
        return result if constant is None else result.fill_(constant)

    def _computed(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; its result needs no labels where nothing is masked."""
        return execute(operator, args, kwargs, tensors_in(args, kwargs))


class _MaskedTracer(_NumericTracer):
    """Restrict normalisation over channels to the channels that stay."""

    def __init__(self, space: LabelSpace, double: bool, removed: np.ndarray) -> None:
        super().__init__(space, double)
        self._removed = removed

    def kept(self, tensor: Tensor, dims: Iterable[int] | None = None) -> Tensor:
        """Return the part of a tensor that stays along some dimensions, else along all; itself where that is all."""
        narrow = tensor
        for dim in range(tensor.dim()) if dims is None else dims:
            stay = self._stay(tensor, dim)
            narrow = narrow if stay is None else narrow.index_select(dim, stay)
        return narrow

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().observe(operator, args, kwargs)
        name = operator.name
        if name in STATISTICS:
            narrow = self.kept(args[0], reduced_dims(name, args, kwargs, args[0].dim()))
            return result if narrow is args[0] else _labelled(operator.func(narrow, *args[1:], **kwargs), result)
        for dim in _normalised_dims(name, args):
            stay = self._stay(args[0], dim)
            if stay is not None:
                return self._over_kept(operator.func, name, args, kwargs, result, dim, stay)
        for out in tensors_in([result]):
            self._silence(out)
        if name in ("aten.div", "aten.div_") and isinstance(args[1], Tensor) and _has_nan(result):
            # Removed channels are zero, and 0 / 0 would spread to those that stay.
            result.masked_fill_(result.isnan() & (args[1] == 0), 0)
        if name.rstrip("_") in _SINGULAR:
            self._settle(result)
        return result

    def _computed(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and label its results, which tells where they are masked."""
        return Tracer.observe(self, operator, args, kwargs)

    def _silence(self, out: Tensor) -> None:
        """Set the removed part of a kernel to zero, since its statistics are of the channels that stay."""
        labels = labels_of(out)
        if labels.zero and labels.origin is not None and _has_nan(out):
            for dim in range(out.dim()):
                gone = self._gone(out, dim)
                if gone is not None and out.stride(dim):
                    _without_repeats(out).index_fill_(dim, _places(gone, out), 0)

    def _settle(self, out: Tensor) -> None:
        """Set removed channels to zero where they have no finite values: a zero weight times infinity is no number."""
        for dim in range(out.dim()) if _has_nan(out) else ():
            gone = self._gone(out, dim)
            if gone is not None and not out.isfinite().all():
                places = _places(gone, out)
                part = out.index_select(dim, places)
                out.index_copy_(dim, places, part.where(part.isfinite(), 0))

    def _stay(self, tensor: Tensor, dim: int) -> Tensor | None:
        """Return the indices of a dimension that the plan leaves; None if it leaves all."""
        gone = self._gone(tensor, dim)
        return None if gone is None else _places(~gone, tensor)

    def _gone(self, tensor: Tensor, dim: int) -> np.ndarray | None:
        """Return a mask over a dimension of what the plan removes; None if it removes nothing."""
        axis = labels_of(tensor).axes[dim]
        gone = None if axis is None else np.isin(axis, self._removed)
        return gone if gone is not None and gone.any() else None

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


def _has_nan(tensor: Tensor) -> bool:
    """Return whether a tensor's dtype has a NaN."""
    return tensor.is_floating_point() or tensor.is_complex()


def _places(mask: np.ndarray, tensor: Tensor) -> Tensor:
    """Return the indices where a mask is set, on the device of a tensor."""
    return torch.from_numpy(np.flatnonzero(mask)).to(tensor.device)


def _without_repeats(tensor: Tensor) -> Tensor:
    """Return a view on an expanded tensor that holds each value of its memory once, so that it can be written to."""
    for dim, stride in enumerate(tensor.stride()):
        tensor = tensor if stride else tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor


def _labelled(outs: Any, like: Any) -> Any:
    """Copy the labels of tensors to the results of an operator, and return these."""
    for out, other in zip(tensors_in([outs]), tensors_in([like]), strict=True):
        set_labels(out, labels_of(other))
    return outs


def _normalised_dims(name: str, args: Sequence[Any]) -> Sequence[int]:
    """Return the dimensions over which an operator normalises, as far as they may hold channels."""
    rank = args[0].dim() if args and isinstance(args[0], Tensor) else 0
    if "group_norm" in name:
        return range(1, 2)
    if name in ("aten.native_layer_norm", "aten._fused_rms_norm"):
        return range(rank - len(args[1]), rank)
    if name == "aten.native_batch_norm" and args[5]:  # of kernels, to standardise them
        return range(2, rank)
    return ()


def _widened(tensor: Tensor) -> Tensor:
    wider = _WIDER.get(tensor.dtype)
    return tensor if wider is None else tensor.to(wider)


def _in_double(
    operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace requests for lower precision by float64, and convert the tensors that result.

    The tensor that an in-place operator writes to keeps its dtype.
    """
    if kwargs.get("dtype") in _WIDER:
        kwargs = kwargs | {"dtype": _WIDER[kwargs["dtype"]]}
    dtypes = {tensor.dtype for tensor in tensors_in(args, kwargs)}
    if dtypes & _WIDER.keys() and dtypes & set(_WIDER.values()) and not operator.name.endswith("_"):
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
    return args, kwargs
