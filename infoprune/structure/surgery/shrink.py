"""`shrink`: apply a plan to a model and its optimizers, wholly or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoprune.errors import PlanError, SurgeryError
from infoprune.structure import module_state
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.surgery import attributes
from infoprune.structure.surgery.history import remember
from infoprune.structure.surgery.slicing import Removed, cut, cut_off, forget, join
from infoprune.structure.tensors import OwnedTensor, on_meta, owned_tensors

State = dict[str, Any]

EXTRA_BYTES = 1 << 26
"""So many bytes of new tensors may be in memory beside the old ones, or as many as the largest old one has. Beyond them
an old one is given up for the part of it that goes: both parts take no more memory than the whole, and make it up."""


def shrink(
    model: nn.Module, plan: PruningPlan, optimizers: Optimizer | Sequence[Optimizer] = ()
) -> dict[nn.Parameter, nn.Parameter]:
    """Remove what the plan names from a model, in place, and from the state of its optimizers.

    All is checked first, and a failure later puts back what was there, bit for bit. Parameters that lose something
    become new ``nn.Parameter`` objects (an old one may be held by a DDP reducer) in every module that owns them, with
    ``requires_grad``, memory layout, hooks and custom attributes carried over and no gradient. What the model's code
    keeps for the next call (``plan.caches``) is dropped. Optimizers, their
    parameter groups and schedulers stay the same objects; state of the parameter's shape is cut with it.

    New tensors of up to 64 MiB, or as much as the largest old one takes, are in memory beside the old ones. In a model
    of which more is left, the remaining old parameters are left empty; clone them before, should they be needed.

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
    modules = dict(model.named_modules())
    changed = attributes.changes(modules, plan, names)
    old_values = [(module, key, getattr(module, key)) for module, key, _ in changed]
    largest_first = sorted(filter(partial(_is_cut, plan), plan.shapes), key=lambda name: -_bytes(owned[name].tensor))
    exchange = InPlaceSwap(_room([owned[name].tensor for name in largest_first]))
    with torch.inference_mode(False), torch.no_grad():
        try:
            replaced = {name: _cut_owned(owned[name], plan, exchange) for name in largest_first}
            states = [_cut_states(optimizer, owned, plan, replaced, exchange) for optimizer in optimizers]
            mapping = _commit(owned, replaced, changed, optimizers, states)
        except BaseException:
            exchange.undo()
            raise
        finally:
            forget()  # nothing stays behind when the cut is made
    module_state.drop(modules, plan)
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


class InPlaceSwap:
    """Cuts tensors and can undo it, without much more memory than they take themselves."""

    def __init__(self, room: int) -> None:
        self._room = room  # bytes of new tensors beside the old ones
        self._given_up: list[tuple[Tensor, Tensor, Tensor, list[Tensor], Removed]] = []

    def cut(self, old: Tensor, removed: Removed) -> Tensor:
        """What stays of a tensor. The tensor itself is left as it is or, where memory would get short, empty.

        While its parts are made, an emptied one takes its size once more; the largest had better come first.
        """
        stays = cut(old, removed)
        if _bytes(stays) <= self._room or not _can_be_emptied(old):
            self._room -= _bytes(stays)
        else:
            self._given_up.append((old, on_meta(old), stays, cut_off(old, removed), removed))
            old.data = old.new_empty(0)
        return stays

    def undo(self) -> None:
        """Give every emptied tensor its values back."""
        while self._given_up:
            old, like, stays, rests, removed = self._given_up.pop()
            old.data = join(stays, rests, like, removed)


def _room(old: Sequence[Tensor]) -> int:
    """How many bytes of new tensors may be in memory beside these old ones."""
    return max([EXTRA_BYTES, *map(_bytes, old)])


def _can_be_emptied(tensor: Tensor) -> bool:
    """Whether a tensor is the one that its memory is for: not one of several views of it, nor expanded."""
    strided = tensor.layout is torch.strided and not tensor.is_inference()
    return strided and tensor.untyped_storage().nbytes() == _bytes(tensor)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # Tensor.nbytes refuses sparse ones


def _cut_owned(entry: OwnedTensor, plan: PruningPlan, exchange: InPlaceSwap) -> Tensor:
    old = entry.tensor
    if entry.is_parameter and type(old) is not nn.Parameter:
        raise SurgeryError(
            f"{entry.name} is a {type(old).__name__}, not a plain parameter; prune the model before it is wrapped or "
            "sharded"
        )
    new = exchange.cut(old, plan.removed[entry.name])
    if new.is_inference():
        new = new.clone()
    if not entry.is_parameter:
        return new
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)  # marks such as _no_weight_decay
    if old._backward_hooks:
        parameter._backward_hooks = old._backward_hooks
    if getattr(old, "_post_accumulate_grad_hooks", None):
        for hook in old._post_accumulate_grad_hooks.values():
            parameter.register_post_accumulate_grad_hook(hook)
    return parameter


def _cut_states(
    optimizer: Optimizer,
    owned: Mapping[str, OwnedTensor],
    plan: PruningPlan,
    replaced: Mapping[str, Tensor],
    exchange: InPlaceSwap,
) -> dict[str, State]:
    """The new optimizer state of every replaced parameter, by name."""
    new_states = {}
    for name in replaced:
        old = owned[name].tensor
        if old not in optimizer.state:
            continue
        state: State = {}
        for key, value in optimizer.state[old].items():
            if not isinstance(value, Tensor) or value.dim() == 0 or value.numel() == 1 != math.prod(plan.shapes[name]):
                state[key] = value
            elif value.shape == plan.shapes[name]:
                state[key] = exchange.cut(value, plan.removed[name])
            else:
                raise SurgeryError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name}, which has "
                    f"shape {plan.shapes[name]}; only state of the parameter's own shape can be cut with it. Use an "
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
