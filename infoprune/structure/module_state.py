"""Save and restore the attributes of modules that a forward pass may change.

Code that computes something once for each device or size (``self.bias_of[device] = self.bias[:, self.places]``) fills a
dict of its own, or an attribute that was None; other code builds a layer at its first call, or hangs hooks on its
layers and notes that it did. A trace must not leave anything of it, dry runs must find what the trace found, and a
cut has to drop what was computed with the old widths.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from infoprune.errors import PlanError
from infoprune.random_state import RewindableIterator, restorers
from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.plan import PruningPlan

Container: TypeAlias = "dict[Any, Any] | list[Any] | set[Any]"

_CONTAINERS = (dict, list, set)
ABSENT = object()
"""What an attribute holds that is not there."""

OWN = frozenset(vars(nn.Module()))
"""What every module has."""

_OWN_CONTAINERS = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, _CONTAINERS))
"""Of this, the registers of parameters, buffers, modules and hooks: nearly all of them are empty."""

_PLAIN = frozenset({type(None), bool, int, float, str, tuple, Tensor, nn.Parameter})
"""What most attributes are that are neither containers nor generators."""


class Attributes:
    """A snapshot of the attributes of modules, of the containers in them, and of random generators."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._before = [(module, dict(module.__dict__)) for module in modules]
        self._contents: dict[int, tuple[Container, Container | tuple[()]]] = {}
        self._empty: list[Container] = []
        self._fillable: list[tuple[nn.Module, str]] = []
        others: list[Any] = []  # generators, perhaps
        holds: dict[type, bool] = dict.fromkeys(_PLAIN, False)  # whether values of a type are containers
        for module, attributes in self._before:
            registers: list[Container] = [  # those of scripted modules are of other types
                one for name in _OWN_CONTAINERS if isinstance(one := attributes.get(name), _CONTAINERS)
            ]
            self._contents.update({id(one): (one, one.copy()) for one in registers if one})
            self._empty += [one for one in registers if not one]
            for name, value in attributes.items():
                if name in OWN:
                    continue
                kind = type(value)
                container = holds.get(kind)
                if container is None:
                    container = holds[kind] = issubclass(kind, _CONTAINERS)
                if container:
                    self._note(value)
                    others += (inner for inner in _values(value) if isinstance(inner, RewindableIterator))
                elif kind not in _PLAIN:
                    others.append(value)
                if container or value is None:
                    self._fillable.append((module, name))
        self._restorers = restorers(others)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore, at the end of the block, all attributes and the contents of all containers."""
        with without_loggers(module for module, _ in self._before):
            try:
                yield
            finally:
                self.restore()

    def restore(self) -> None:
        """Restore the attributes of the modules."""
        for module, attributes in self._before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for restore in self._restorers:
            restore()
        for container, content in self._contents.values():
            if container or content:
                _refill(container, content)
        for register in self._empty:
            if register:
                register.clear()

    def changed(self) -> Iterator[tuple[nn.Module, str, Any]]:
        """Return the attributes that have changed, each with its former value; `ABSENT` if there was none."""
        for module, attributes in self._before:
            for name, value in module.__dict__.items():
                if name in OWN:
                    continue
                before = attributes.get(name, ABSENT)
                if before is not value:
                    yield module, name, before
                elif isinstance(value, _CONTAINERS):
                    content = self._contents[id(value)][1] if id(value) in self._contents else ()
                    if not _holds(value, content):
                        yield module, name, type(value)(content)

    def filled(self, own: Iterable[Tensor]) -> Iterator[tuple[nn.Module, str]]:
        """Yield the attributes, dicts or formerly None, that have received tensors of the model or labelled tensors.

        Args:
            own: the model's parameters and buffers.
        """
        ids = {id(tensor) for tensor in own}
        for module, name in self._fillable:
            value = module.__dict__.get(name)
            new: list[Tensor] = []
            if isinstance(value, Tensor):
                new = [value]
            elif isinstance(value, dict) and id(value) in self._contents:
                known = {id(one) for one in _values(self._contents[id(value)][1])}
                new = [one for one in value.values() if isinstance(one, Tensor) and id(one) not in known]
            if any(id(tensor) in ids or labels_of(tensor).labelled for tensor in new):
                yield module, name

    def _note(self, container: Container) -> None:
        """Copy a container and the containers in it, without copying the other values."""
        if id(container) in self._contents:
            return
        kind = dict if isinstance(container, dict) else list if isinstance(container, list) else set
        self._contents[id(container)] = (container, kind(container))
        for inner in _values(container):
            if isinstance(inner, _CONTAINERS):
                self._note(inner)


@contextmanager
def without_loggers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave out, until the end of the block, the hooks by which W&B watches parameters: they would seem to use them.

    Args:
        modules: the modules; their submodules are not looked into.
    """
    watched = [module for module in modules if any(map(is_of_a_logger, module._forward_hooks.values()))]
    before = [(module._forward_hooks, dict(module._forward_hooks)) for module in watched]
    for hooks, content in before:
        for key in (key for key, hook in content.items() if is_of_a_logger(hook)):
            del hooks[key]
    try:
        yield
    finally:
        for hooks, content in before:
            _refill(hooks, content)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward hooks other than a logger's.

    Args:
        module: the module; its submodules are not looked into.
    """
    return not all(map(is_of_a_logger, module._forward_hooks.values()))


def is_of_a_logger(hook: Any) -> bool:
    """Return whether a hook is one of W&B's, which only reads.

    Args:
        hook: a hook of a module or parameter.
    """
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "wandb"


def _values(container: Container | tuple[()]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _holds(container: Container, content: Container | tuple[()]) -> bool:
    """Return whether a container holds just these objects, in this order."""
    same_keys = len(container) == len(content) and all(map(operator.is_, container, content))
    return same_keys and all(map(operator.is_, _values(container), _values(content)))


def _refill(container: Container, content: Container | tuple[()]) -> None:
    """Restore the contents of a container, if they have changed."""
    if _holds(container, content):
        return
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def put_back(modules: Mapping[str, nn.Module], found: Mapping[tuple[str, str], Any]) -> None:
    """Set attributes of modules to the values that a pass found there.

    Args:
        modules: the model's modules by name.
        found: (name of a module, attribute) -> value, or `ABSENT`. A container is copied.
    """
    for (path, name), value in found.items():
        if path not in modules:
            continue
        attributes = modules[path].__dict__
        if value is ABSENT:
            attributes.pop(name, None)
        else:
            attributes[name] = type(value)(value) if isinstance(value, _CONTAINERS) else value


@contextmanager
def attributes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore train/eval flags and all other attributes of modules at the end of the block.

    Args:
        modules: the modules; their submodules are not looked into.
    """
    with Attributes(modules).restored():
        yield


def check_caches(modules: Mapping[str, nn.Module], plan: PruningPlan) -> None:
    """Refuse a plan that drops as a cache anything but None, a tensor or a dict of tensors.

    Args:
        modules: path -> module of the whole model.
        plan: names the caches that are to be dropped.

    Raises:
        PlanError: names the attribute.
    """
    for path, module, name in _caches(modules, plan):
        value = vars(module)[name]
        empty = value is None or (isinstance(value, dict) and not value)
        tensors = isinstance(value, Tensor) or (isinstance(value, dict) and any(map(_is_tensor, value.values())))
        if name in OWN or not (empty or tensors):
            raise PlanError(f"the plan drops {path}, which holds a {type(value).__name__} and is no cache of tensors")


def drop(modules: Mapping[str, nn.Module], plan: PruningPlan) -> None:
    """Empty the caches that a plan names, as far as these modules have them.

    Args:
        modules: the model's modules by name.
        plan: ``plan.caches`` are paths of attributes.
    """
    for _, module, name in _caches(modules, plan):
        value = vars(module)[name]
        if isinstance(value, dict):
            value.clear()
        else:
            vars(module)[name] = None


def _caches(modules: Mapping[str, nn.Module], plan: PruningPlan) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the caches of a plan that modules have: path, module and attribute."""
    for path in plan.caches:
        owner, _, name = path.rpartition(".")
        if owner in modules and name in vars(modules[owner]):
            yield path, modules[owner], name


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
