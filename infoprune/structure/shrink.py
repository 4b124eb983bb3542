"""`shrink`: apply a plan to a model and its optimizers, wholly or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoprune.errors import PlanError, SurgeryError
from infoprune.structure import attributes
from infoprune.structure.memory import remember
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.tensors import OwnedTensor, owned_tensors

State = dict[str, Any]

SLICE = 1 << 18
"""So many entries of a tensor that loses along several dimensions are looked at at once."""


def shrink(
    model: nn.Module, plan: PruningPlan, optimizers: Optimizer | Sequence[Optimizer] = ()
) -> dict[nn.Parameter, nn.Parameter]:
    """Remove what the plan names from a model, in place, and from the state of its optimizers.

    Everything is checked and computed before anything is changed. Parameters that lose something become new
    ``nn.Parameter`` objects (an old one may be held by a DDP reducer) in every module that owns them, with
    ``requires_grad``, memory layout, hooks and custom attributes carried over and no gradient. Optimizers, their
    parameter groups and schedulers stay the same objects; state of the parameter's shape is cut with it.

    Args:
        model: the model that the plan was made for.
        plan: what goes.
        optimizers: every optimizer that updates the model; a single one need not be in a list.

    Returns:
        For every replaced parameter, the new one.

    Raises:
        PlanError: the plan was made for another model.
        SurgeryError: an optimizer keeps state that cannot be cut, or a layer cannot be; nothing was changed.
    """
    if not isinstance(plan, PruningPlan):
        raise PlanError(
            f"shrink needs a PruningPlan, got a {type(plan).__name__}; PruningPlan.load reads one from a file"
        )
    optimizers = _each_once(optimizers)
    owned = owned_tensors(model)
    check_belongs(plan, {name: tuple(entry.tensor.shape) for name, entry in owned.items()})
    names = {id(entry.tensor): name for name, entry in owned.items()}
    changed = attributes.changes(dict(model.named_modules()), plan, names)
    try:
        with torch.inference_mode(False), torch.no_grad():
            replaced = {name: _cut_owned(owned[name], plan) for name in plan.shapes if _is_cut(plan, name)}
            states = [_cut_state(optimizer, owned, plan, replaced) for optimizer in optimizers]
    finally:
        _kept.cache_clear()  # nothing stays behind when the cut is made
    old_values = [(module, key, getattr(module, key)) for module, key, _ in changed]
    mapping = _commit(owned, replaced, changed, optimizers, states)
    remember(model, plan, owned, old_values)
    return mapping


def _each_once(optimizers: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """The optimizers, whose state must not be cut twice."""
    given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    for optimizer in given:
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):  # wrappers of optimizers may do
            raise SurgeryError(f"optimizers are to hold optimizers, got a {type(optimizer).__name__}")
    return list({id(optimizer): optimizer for optimizer in given}.values())


def _is_cut(plan: PruningPlan, name: str) -> bool:
    return any(plan.removed[name].values())


def cut(tensor: Tensor, plan: PruningPlan, name: str) -> Tensor:
    """What the plan leaves of a tensor (a parameter, or anything of its shape), as a new contiguous tensor."""
    result = tensor.detach()
    layout = _memory_format(result)
    removed = sorted((dim, indices) for dim, indices in plan.removed[name].items() if indices)
    kept = [(dim, _kept(indices, result.shape[dim]).to(result.device)) for dim, indices in removed]
    if kept:
        result = _take(result, kept)
    if layout is not None:
        result = result.contiguous(memory_format=layout)
    return result


@lru_cache(maxsize=256)  # a layer, its norm and its optimizer state all keep the same
def _kept(removed: tuple[int, ...], size: int) -> Tensor:
    """The indices of a dimension that stay."""
    stay = np.ones(size, dtype=bool)
    stay[np.asarray(removed)] = False
    return torch.from_numpy(np.flatnonzero(stay))


def _take(tensor: Tensor, kept: Sequence[tuple[int, Tensor]]) -> Tensor:
    """The entries at the kept indices of some dimensions; in slices, so that what is in between stays small."""
    (dim, indices), *others = kept
    if not others:
        return tensor.index_select(dim, indices)
    shape = list(tensor.shape)
    for d, index in kept:
        shape[d] = len(index)
    result = tensor.new_empty(shape)
    slice_size = max(SLICE * tensor.shape[dim] // max(tensor.numel(), 1), 1) if tensor.is_cpu else len(indices)
    for target, part in zip(result.split(slice_size, dim), indices.split(slice_size), strict=True):
        piece = tensor.index_select(dim, part)
        for d, index in others:
            piece = piece.index_select(d, index)
        target.copy_(piece)
    return result


def _memory_format(tensor: Tensor) -> torch.memory_format | None:
    for layout, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            return layout
    return None


def _cut_owned(entry: OwnedTensor, plan: PruningPlan) -> Tensor:
    old = entry.tensor
    new = cut(old, plan, entry.name)
    if new.is_inference():
        new = new.clone()
    if not entry.is_parameter:
        return new
    if type(old) is not nn.Parameter:
        raise SurgeryError(
            f"{entry.name} is a {type(old).__name__}, not a plain parameter; prune the model before it is wrapped or "
            "sharded"
        )
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)  # marks such as _no_weight_decay
    if old._backward_hooks:
        parameter._backward_hooks = old._backward_hooks
    if getattr(old, "_post_accumulate_grad_hooks", None):
        for hook in old._post_accumulate_grad_hooks.values():
            parameter.register_post_accumulate_grad_hook(hook)
    return parameter


def _cut_state(
    optimizer: Optimizer, owned: Mapping[str, OwnedTensor], plan: PruningPlan, replaced: Mapping[str, Tensor]
) -> dict[str, State]:
    """The new optimizer state of every replaced parameter, by name."""
    new_states = {}
    for name in replaced:
        old = owned[name].tensor
        if old not in optimizer.state:
            continue
        state: State = {}
        for key, value in optimizer.state[old].items():
            if not isinstance(value, Tensor) or value.dim() == 0 or value.numel() == 1 != old.numel():
                state[key] = value
            elif value.shape == old.shape:
                state[key] = cut(value, plan, name)
            else:
                raise SurgeryError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name}, which has "
                    f"shape {tuple(old.shape)}; only state of the parameter's own shape can be cut with it. Use an "
                    "optimizer without factored or flattened state (SGD, Adam, AdamW, RMSprop, Adagrad), or prune "
                    "before training"
                )
        new_states[name] = state
    return new_states


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state is not one tensor a parameter.

    Raises:
        SurgeryError: names the optimizer.
    """
    flat = isinstance(optimizer, torch.optim.LBFGS) or type(optimizer).__name__ in (
        "ZeroRedundancyOptimizer",
        "Adafactor",
    )
    if flat:
        raise SurgeryError(
            f"{type(optimizer).__name__} keeps flattened, factored or sharded state that cannot be cut with the model; "
            "use SGD, Adam, AdamW, RMSprop or Adagrad, or prune before training starts"
        )


def _commit(
    owned: Mapping[str, OwnedTensor],
    replaced: Mapping[str, Tensor],
    changed: Sequence[attributes.Change],
    optimizers: Sequence[Optimizer],
    states: Sequence[Mapping[str, State]],
) -> dict[nn.Parameter, nn.Parameter]:
    """Put everything in place; should anything fail, put everything back."""
    for optimizer in optimizers:
        check_optimizer(optimizer)
    mapping = {e.tensor: replaced[n] for n, e in owned.items() if n in replaced and e.is_parameter}
    groups = [(group, list(group["params"])) for optimizer in optimizers for group in optimizer.param_groups]
    kept_states = [
        {owned[n].tensor: optimizer.state[owned[n].tensor] for n in s}
        for optimizer, s in zip(optimizers, states, strict=True)
    ]
    old_values = [(module, key, getattr(module, key)) for module, key, _ in changed]
    try:
        for name, tensor in replaced.items():
            owned[name].replace(tensor)
        attributes.rewrite(changed)
        for group, params in groups:
            group["params"] = [mapping.get(p, p) for p in params]
        for optimizer, new in zip(optimizers, states, strict=True):
            for name, state in new.items():
                del optimizer.state[owned[name].tensor]
                optimizer.state[replaced[name]] = state
    except BaseException:
        for name in replaced:
            owned[name].replace(owned[name].tensor)
        for module, key, value in old_values:
            setattr(module, key, value)
        for group, params in groups:
            group["params"] = params
        for optimizer, kept, new in zip(optimizers, kept_states, states, strict=True):
            for name in new:
                optimizer.state.pop(replaced[name], None)
            optimizer.state.update(kept)
        raise
    return mapping  # type: ignore[return-value]
