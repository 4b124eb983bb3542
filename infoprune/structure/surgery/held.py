"""Find parameters that a model's code holds a second time: in lists of its own, and in optimizers that it made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from infoprune.structure.module_state import OWN


def held_optimizers(model: nn.Module) -> list[Optimizer]:
    """Return the optimizers of its parameters that the modules of a model keep, alone or in a list, tuple or dict.

    Args:
        model: the model.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> net.optimizer = torch.optim.SGD(net.parameters(), 0.1)
        >>> held_optimizers(net) == [net.optimizer]
        True
    """
    own = set(map(id, model.parameters()))
    found = {id(item): item for _, _, value in own_attributes(model) for item in _items(value)}
    kept = [item for item in found.values() if isinstance(item, Optimizer)]
    return [item for item in kept if any(id(p) in own for group in item.param_groups for p in group["params"])]


def with_wrapped(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Return optimizers together with those that they wrap, as SAM and Lookahead do, each once.

    Args:
        optimizers: optimizers, some of which may wrap others.

    Example:
        >>> import torch
        >>> sam = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
        >>> sam.base_optimizer = torch.optim.Adam(sam.param_groups, 0.1)
        >>> len(with_wrapped([sam]))
        2
    """
    found: dict[int, Optimizer] = {}
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            inner = (item for value in vars(optimizer).values() for item in _items(value))
            waiting += [item for item in inner if isinstance(item, Optimizer)]
    return list(found.values())


def replace_held(model: nn.Module, replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Put new parameters where attributes of a model hold the old ones, alone or in containers, and as keys of dicts.

    Args:
        model: the model, which has been cut.
        replaced: old parameter -> new parameter, as `shrink` returns them.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> net.penalised = [net.weight]
        >>> new = nn.Parameter(torch.ones(1, 2))
        >>> replace_held(net, {net.weight: new})
        >>> net.penalised[0] is new
        True
    """
    new = {id(old): parameter for old, parameter in replaced.items()}
    for module, name, value in list(own_attributes(model)):
        if isinstance(value, dict) and any(id(key) in new for key in value):
            content = [(new.get(id(key), key), item) for key, item in value.items()]
            value.clear()
            value.update(content)
        if not any(id(item) in new for item in _items(value)):
            continue
        if isinstance(value, list):
            value[:] = [new.get(id(item), item) for item in value]
        elif isinstance(value, dict):
            value.update({key: new[id(item)] for key, item in value.items() if id(item) in new})
        elif isinstance(value, tuple):
            vars(module)[name] = tuple(new.get(id(item), item) for item in value)
        else:
            vars(module)[name] = new[id(value)]


def own_attributes(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield the attributes of all modules of a model, except those of every ``nn.Module``: (module, name, value).

    Args:
        model: the model.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in OWN:
                yield module, name, value


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if type(value) in (list, tuple) else [value]
