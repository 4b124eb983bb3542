"""`shrink`: apply a plan to a model and its optimizers, wholly or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoprune.errors import PlanError, SurgeryError
from infoprune.structure import module_state
from infoprune.structure.function_caches import forget_results
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.surgery import attributes
from infoprune.structure.surgery.held import with_wrapped
from infoprune.structure.surgery.history import remember
from infoprune.structure.surgery.in_place_swap import InPlaceSwap, nbytes
from infoprune.structure.surgery.optimizer_state import check_optimizer, cut_state
from infoprune.structure.surgery.slicing import forget
from infoprune.structure.surgery.transaction import Transaction
from infoprune.structure.tensors import OwnedTensor, owned_tensors

State = dict[str, Any]


def shrink(
    model: nn.Module,
    plan: PruningPlan,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    *,
    transaction: Transaction | None = None,
) -> dict[nn.Parameter, nn.Parameter]:
    """Remove what the plan names from a model, in place, and from the state of its optimizers.

    Everything is checked first; after a later failure or interrupt, all is as before, bit for bit. Parameters that
    lose something become new ``nn.Parameter`` objects (an old one may be held by a DDP reducer) in every module that
    owns them, with ``requires_grad``, memory layout, hooks and custom attributes carried over and no gradient. What the
    model's code keeps for the next call (``plan.caches``) is dropped. Optimizers, their parameter groups and schedulers
    stay the same objects; state of the parameter's shape is cut with it, in lists, dicts and objects too.

    New tensors of up to 64 MiB, or as much as the largest old one takes, are in memory beside the old ones. In a
    larger model the remaining old parameters are left empty; clone them before if you need them.

    Args:
        model: the model that the plan was made for.
        plan: what is removed.
        optimizers: every optimizer that updates the model; a single one need not be in a list.
        transaction: an open one of this model and these optimizers, which more is done in that may fail; it undoes the
            cut as well. Without one, the cut is made for good.

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
    optimizers = each_once(optimizers)
    owned = owned_tensors(model)
    check_belongs(plan, {name: tuple(entry.tensor.shape) for name, entry in owned.items()})
    names = {id(entry.tensor): name for name, entry in owned.items()}
    modules = dict(model.named_modules())
    for optimizer in optimizers:
        check_optimizer(optimizer)
    changed = attributes.changes(modules, plan, names)
    module_state.check_caches(modules, plan)
    old_values = [(module, key, getattr(module, key)) for module, key, _ in changed]
    largest_first = sorted(filter(partial(_is_cut, plan), plan.shapes), key=lambda name: -nbytes(owned[name].tensor))
    with transaction or Transaction([model], optimizers) as current, torch.inference_mode(False), torch.no_grad():
        current.swap.make_room([owned[name].tensor for name in largest_first])
        try:
            replaced = {name: _cut_owned(owned[name], plan, current.swap) for name in largest_first}
            states = [_cut_states(optimizer, owned, plan, replaced, current.swap) for optimizer in optimizers]
        finally:
            forget()  # nothing stays behind when the cut is made
        mapping = _put_in_place(owned, replaced, changed, optimizers, states)
        module_state.drop(modules, plan)
        forget_results(modules.values())
        remember(model, plan, owned, old_values)
    return mapping


def each_once(optimizers: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Return each optimizer once, and those that it wraps, so that all state is cut and none twice.

    Args:
        optimizers: One optimizer or several.
    """
    given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    for optimizer in given:
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):  # wrappers of optimizers may do
            raise SurgeryError(f"optimizers are to hold optimizers, got a {type(optimizer).__name__}")
    return with_wrapped(given)


def _is_cut(plan: PruningPlan, name: str) -> bool:
    return any(plan.removed[name].values())


def _cut_owned(entry: OwnedTensor, plan: PruningPlan, swap: InPlaceSwap) -> Tensor:
    old = entry.tensor
    if entry.is_parameter and type(old) is not nn.Parameter:
        raise SurgeryError(
            f"{entry.name} is a {type(old).__name__}, not a plain parameter; prune the model before it is wrapped or "
            "sharded"
        )
    new = swap.cut(old, plan.removed[entry.name])
    if new.is_inference():
        new = new.clone()
    if not entry.is_parameter:
        return new
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)  # marks such as _no_weight_decay
    if old._backward_hooks:
        parameter._backward_hooks = old._backward_hooks
    for hook in (old._post_accumulate_grad_hooks or {}).values():
        parameter.register_post_accumulate_grad_hook(hook)
    return parameter


def _cut_states(
    optimizer: Optimizer,
    owned: Mapping[str, OwnedTensor],
    plan: PruningPlan,
    replaced: Mapping[str, Tensor],
    swap: InPlaceSwap,
) -> dict[str, State]:
    """Return the new optimizer state of every replaced parameter, by name."""
    new_states = {}
    for name in replaced:
        old = owned[name].tensor
        if old in optimizer.state:
            cut = partial(swap.cut, removed=plan.removed[name])
            new_states[name] = {
                key: cut_state(optimizer, value, tuple(plan.shapes[name]), cut, f"{key!r} of {name}")
                for key, value in optimizer.state[old].items()
            }
    return new_states


def _put_in_place(
    owned: Mapping[str, OwnedTensor],
    replaced: Mapping[str, Tensor],
    changed: Sequence[attributes.Change],
    optimizers: Sequence[Optimizer],
    states: Sequence[Mapping[str, State]],
) -> dict[nn.Parameter, nn.Parameter]:
    """Install the cut tensors in the model and its optimizers; return the new parameter of each old one."""
    mapping = {e.tensor: replaced[n] for n, e in owned.items() if n in replaced and e.is_parameter}
    for name, tensor in replaced.items():
        owned[name].replace(tensor)
    attributes.rewrite(changed)
    for optimizer, new in zip(optimizers, states, strict=True):
        for group in optimizer.param_groups:
            group["params"] = [mapping.get(p, p) for p in group["params"]]
        for name, state in new.items():
            optimizer.state.pop(owned[name].tensor, None)  # a wrapper may share the state of what it wraps
            optimizer.state[replaced[name]] = state
    return mapping  # type: ignore[return-value]
