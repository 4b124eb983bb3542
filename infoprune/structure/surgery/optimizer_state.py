"""Cut the state that optimizers keep for each parameter, or refuse before anything is changed."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from infoprune.errors import SurgeryError
from infoprune.structure.surgery.held import with_wrapped

logger = logging.getLogger(__name__)

WAY_OUT = (
    "use SGD, Adam, AdamW, RMSprop, Adagrad or another whose state has the parameter's own shape, or prune before "
    "training starts"
)

LARGE = 1 << 20
"""Stand-ins of parameters with more entries are smaller."""

FLAT = ("LBFGS", "ZeroRedundancyOptimizer", "Adafactor")
"""Optimizers, by the name of their class, that keep flattened, sharded or factored state."""


def cut_state(
    optimizer: Optimizer, state: Any, shape: tuple[int, ...], cut: Callable[[Tensor], Tensor], where: str
) -> Any:
    """Return an optimizer's state for one parameter as it is after a cut.

    Tensors and arrays of the parameter's shape are cut, wherever they lie in dicts, lists, tuples and objects, which
    become new ones; numbers and tensors of one entry stay.

    Args:
        optimizer: named in errors.
        state: ``optimizer.state[parameter]`` or a part of it.
        shape: the parameter's shape before the cut.
        cut: what is done to tensors of that shape.
        where: the name of the parameter and of the part, for errors.

    Raises:
        SurgeryError: a tensor has another shape.
    """
    if isinstance(state, np.ndarray):
        tensor = _as_tensor(state)
        return state if tensor is None else cut_state(optimizer, tensor, shape, cut, where).numpy()
    if isinstance(state, Tensor):
        if state.dim() == 0 or state.numel() == 1 != math.prod(shape):
            return state
        if tuple(state.shape) != shape:
            raise SurgeryError(
                f"{type(optimizer).__name__} keeps {where} in shape {tuple(state.shape)}, and the parameter has "
                f"shape {shape}: only state of the parameter's own shape can be cut with it; {WAY_OUT}"
            )
        return cut(state)
    parts = dict(parts_of(state))
    if next(tensors_in(state), None) is None:
        return state
    return _with(
        state, {key: cut_state(optimizer, part, shape, cut, f"{where}[{key!r}]") for key, part in parts.items()}
    )


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a value, wherever they lie in dicts, lists, tuples and objects, each with its place.

    Arrays of NumPy are yielded as tensors.

    Args:
        value: anything; modules and functions are not entered.
        seen: the ``id`` of containers and objects that are left out; those that are entered are added.
    """
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, np.ndarray):
        yield from (("", tensor) for tensor in [_as_tensor(value)] if tensor is not None)
    elif id(value) not in seen:
        seen.add(id(value))
        for key, part in parts_of(value):
            for place, tensor in tensors_in(part, seen):
                name = f"parameter of shape {tuple(key.shape)}" if isinstance(key, Tensor) else f"{key!r:.40}"
                yield f"[{name}]{place}", tensor


def _as_tensor(array: np.ndarray) -> Tensor | None:
    """Return a copy of an array as a tensor; None if it holds no numbers."""
    return torch.from_numpy(array.copy()) if array.dtype.kind in "biufc" else None


def parts_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the key, index or attribute of each part of a container or object, and the part.

    Args:
        value: anything that an optimizer's state holds.
    """
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple | deque):
        yield from enumerate(value)
    elif isinstance(value, set | frozenset):
        yield from ((element, element) for element in value)
    elif not isinstance(value, type | nn.Module) and not inspect.isroutine(value):
        yield from getattr(value, "__dict__", {}).items()
        yield from ((name, getattr(value, name)) for name in slots_of(type(value)) if hasattr(value, name))


def slots_of(cls: type) -> Iterator[str]:
    """Yield the names of the attributes that a class and its bases keep in slots.

    Args:
        cls: the class.
    """
    for base in (base for base in cls.__mro__ if "__slots__" in vars(base)):
        yield from (name for name, member in vars(base).items() if inspect.ismemberdescriptor(member))


def _with(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a container or object of the same type with other parts."""
    if isinstance(value, tuple):
        return type(value)(*parts.values()) if hasattr(value, "_fields") else type(value)(parts.values())
    if isinstance(value, set | frozenset):
        return type(value)(parts.values())
    new = copy.copy(value)
    for key, part in parts.items():
        if isinstance(value, Mapping | list | deque):
            new[key] = part
        else:
            object.__setattr__(new, key, part)  # dataclasses may be frozen
    return new


# -- what can be known before training --------------------------------------------------------------------------------


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that keeps what cannot be cut with its parameters.

    Args:
        optimizer: An optimizer with its state.

    Raises:
        SurgeryError: names the optimizer and what it keeps.
    """
    if any(cls.__name__ in FLAT for cls in type(optimizer).__mro__):
        raise SurgeryError(
            f"{type(optimizer).__name__} keeps flattened, factored or sharded state that cannot be cut with the model; "
            f"{WAY_OUT}"
        )
    _check_held(optimizer, _parameters(optimizer))


def check_optimizer_ahead(optimizer: Optimizer) -> None:
    """Refuse an optimizer that will keep what cannot be cut: a copy of it takes a step on stand-ins of its parameters.

    Args:
        optimizer: An optimizer that has not taken a step yet. One with lazy parameters passes: they have no shape yet.

    Raises:
        SurgeryError: names the optimizer and what it would keep.
    """
    if any(map(is_lazy, _parameters(optimizer))):
        return  # they get their shapes in the first forward pass, and their state is checked at the event
    check_optimizer(optimizer)
    trial = optimizer if optimizer.state else _after_steps(optimizer)
    if trial is None:
        return
    for parameter in _parameters(trial):
        state = trial.state.get(parameter, {})
        cut_state(optimizer, state, tuple(parameter.shape), lambda tensor: tensor, "state of a parameter")
    check_optimizer(trial)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_held(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Refuse an optimizer with tensors outside of the state of its parameters, which a cut would miss."""
    own, shapes = {id(p) for p in parameters}, {tuple(p.shape) for p in parameters if p.numel() > 1}
    groups = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    flat = {(entries,) for entries in (*groups, sum(groups)) if entries > 1}
    seen = {
        id(part)
        for one in with_wrapped([optimizer])
        for part in (one, one.state, *(group["params"] for group in one.param_groups))
    }
    by_other_keys = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    for name, value in [*vars(optimizer).items(), ("state", by_other_keys)]:  # by the parameters' names, say
        for place, tensor in tensors_in(value, seen):
            shape = tuple(tensor.shape)
            if id(tensor) in own or shape in shapes | flat:
                of_shape = "a parameter's shape" if shape in shapes else "as many entries as its parameters have,"
                what = "a parameter" if id(tensor) in own else f"a tensor of {of_shape} {shape}"
                raise SurgeryError(
                    f"{type(optimizer).__name__} keeps {what} in {name}{place}, where it would not be cut; {WAY_OUT}"
                )


def _after_steps(optimizer: Optimizer, steps: int = 2) -> Optimizer | None:
    """Return a copy that has taken steps on stand-ins of its parameters; None if it takes none without their model."""
    stand_ins = {id(p): _stand_in(p) for p in _parameters(optimizer)}
    once = {tuple(p.shape): p for p in reversed(stand_ins.values())}
    trial: Optimizer = type(optimizer).__new__(type(optimizer))
    with torch.random.fork_rng(), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        try:
            # A scheduler's wrapper of step, and hooks, belong to the original and would act on it.
            own = {key: value for key, value in vars(optimizer).items() if key != "step" and "_hooks" not in key}
            vars(trial).update(copy.deepcopy(own, dict(stand_ins)))
            for key in vars(optimizer).keys() - own.keys() - {"step"}:
                vars(trial)[key] = type(vars(optimizer)[key])()
            for group in trial.param_groups:
                group["params"] = [p for p in group["params"] if once.get(tuple(p.shape)) is p]
            for _ in range(steps):
                trial.step(lambda: 0.0)
        except Exception as error:  # the step of a third-party optimizer may need anything
            logger.info(
                "%s takes no step without its model (%s): its state is checked at the event", type(optimizer), error
            )
            return None
    return trial


def _stand_in(parameter: Tensor) -> nn.Parameter:
    """Return a parameter of the same shape, unless that is large, with a gradient."""
    shape = [size if parameter.numel() <= LARGE else min(size, 256) for size in parameter.shape]
    values = torch.linspace(0.1, 1.0, math.prod(shape), dtype=torch.float64).reshape(shape)
    stand_in = nn.Parameter(values.to(parameter.device, parameter.dtype))
    stand_in.grad = 0.1 * stand_in.detach()
    return stand_in
