"""Copies of a network within a LightningModule: momentum encoders and averages, which follow it, and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from infoprune.errors import ConfigurationError, nearest
from infoprune.structure import PruningPlan
from infoprune.structure.tensors import owned_tensors

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.structure import Structure


T = TypeVar("T")


def with_followers(plan: PruningPlan, follow: Mapping[str, str]) -> PruningPlan:
    """Return a plan under which copies lose what their originals lose.

    Args:
        plan: what goes, by the LightningModule's names.
        follow: path of each copy -> path of its original.

    Example:
        >>> plan = PruningPlan({"net.weight": {0: (1,)}}, {"net.weight": (4, 3)})
        >>> sorted(with_followers(plan, {"momentum": "net"}).removed)
        ['momentum.weight', 'net.weight']
    """
    caches = _with_followers(dict.fromkeys(plan.caches), follow)
    return PruningPlan(
        _with_followers(plan.removed, follow),
        _with_followers(plan.shapes, follow),
        _with_followers(plan.attributes, follow),
        tuple(caches),
    )


def _with_followers(entries: Mapping[str, T], follow: Mapping[str, str]) -> dict[str, T]:
    result = dict(entries)
    for copy, original in follow.items():
        for name, value in entries.items():
            if name.startswith(f"{original}."):
                result[copy + name.removeprefix(original)] = value
    return result


def followers_within(follow: Mapping[str, str], path: str) -> list[str]:
    """Return the copies that lie within the network at a path, by its names; they are not pruned on their own."""
    prefix = f"{path}." if path else ""
    return [copy.removeprefix(prefix) for copy in follow if copy.startswith(prefix)]


def check_followers(module: pl.LightningModule, follow: Mapping[str, str]) -> None:
    """Refuse copies whose tensors differ from their originals'.

    Raises:
        ConfigurationError: a path does not exist, or the two have other tensors; names the first that differs.
    """
    for copy, original in follow.items():
        first, second = (_shapes(_submodule(module, path)) for path in (copy, original))
        for name in first | second:
            if first.get(name) != second.get(name):
                raise ConfigurationError(
                    f"follow: {copy!r} is no copy of {original!r}: {name} has shape {first.get(name)} in the one and "
                    f"{second.get(name)} in the other"
                )


def check_no_copies(trainer: pl.Trainer, module: pl.LightningModule, network: nn.Module, structure: Structure) -> None:
    """Refuse what looks like a copy where the user has not spoken of any.

    Args:
        trainer: the Trainer, with its optimizers.
        module: its LightningModule.
        network: the part of it that is pruned.
        structure: the network's structure.

    Raises:
        ConfigurationError: names both and what to say.
    """
    twins = _twins(trainer, module, network, structure)
    if twins is not None:
        copy, original = twins
        raise ConfigurationError(
            f"{copy!r} has the tensors of {original!r}, which is to be pruned, and is not trained. If it follows "
            f"{original!r} (a momentum encoder, an average), give FilterPruning follow={{{copy!r}: {original!r}}}, so "
            "that it shrinks alike; if it is to stay as it is (a teacher), give follow={}"
        )


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        known = [name for name, _ in module.named_modules() if name]
        raise ConfigurationError(
            f"follow: {type(module).__name__} has no submodule {path!r}{nearest(path, known)}"
        ) from error


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _twins(trainer: pl.Trainer, module: nn.Module, network: nn.Module, structure: Structure) -> tuple[str, str] | None:
    """A module that is neither trained nor run, and one of the same class and shapes that is to be pruned."""
    tensors = {name: id(entry.tensor) for name, entry in owned_tensors(network).items()}
    run = {tensors[layer.weight] for layer in structure.layers}
    pruned = {tensors[slot.tensor] for group in structure.prunable for slot in group.slots}
    optimized = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in module.parameters() if p.requires_grad} & optimized
    originals: dict[Any, str] = {}
    others: dict[Any, str] = {}
    for path, part in module.named_modules():
        own = {id(parameter) for parameter in part.parameters()}
        kind = (type(part), tuple(_shapes(part).items()))
        if path and own & pruned:
            originals.setdefault(kind, path)
        elif own and not own & (run | trained):
            others.setdefault(kind, path)
    return next(((path, originals[kind]) for kind, path in others.items() if kind in originals), None)
