"""Copies of a network within a LightningModule: momentum encoders and averages, which follow it, and teachers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from infoprune.errors import ConfigurationError, nearest
from infoprune.structure import PruningPlan

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.callbacks.engine.training_step import WatchedStep


T = TypeVar("T")


def with_followers(plan: PruningPlan, follow: Mapping[str, str]) -> PruningPlan:
    """Return a plan under which copies lose what their originals lose.

    Args:
        plan: what is removed, by the LightningModule's names.
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


def followers_within(follow: Mapping[str, str], path: str) -> dict[str, str]:
    """Return the copies that are in the network together with their originals, by the network's names.

    Args:
        follow: path of each copy in the LightningModule -> path of its original.
        path: path of the network in the LightningModule.
    """
    prefix = f"{path}." if path else ""
    return {
        copy.removeprefix(prefix): original.removeprefix(prefix)
        for copy, original in follow.items()
        if copy.startswith(prefix) and original.startswith(prefix)
    }


def check_followers(module: pl.LightningModule, follow: Mapping[str, str]) -> None:
    """Refuse copies whose tensors differ from their originals'.

    Args:
        module: the LightningModule.
        follow: path of each copy -> path of its original.

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


@dataclass(frozen=True)
class Copies:
    """Copies of trained parts of a LightningModule, which no optimizer trains: path of the copy -> of its original.

    Attributes:
        following: copies that follow: they are averages of PyTorch, the training step updates them or compares their
            weights with those of their originals, or they replace their originals in eval mode.
        assumed: copies that most likely follow, as averages that are updated later: their weights are those of their
            originals, and the training step does not run them, as it would run a teacher.
        unclear: copies that may follow, or may be teachers, which stay as they are.
    """

    following: dict[str, str]
    assumed: dict[str, str]
    unclear: dict[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.following, **self.assumed, **self.unclear})


def find_copies(
    trainer: pl.Trainer, module: pl.LightningModule, run_in_eval: set[str], watched: WatchedStep | None
) -> Copies:
    """Find the copies within a LightningModule.

    A copy is not trained itself, and has the class of a trained part and tensors of the same names and shapes, among
    them weights of two dimensions or more (a frozen norm is no copy). Where it might be an ordinary layer, which both
    modes run and an optimizer holds, its values have to be the same as well.

    Args:
        trainer: the Trainer, with its optimizers.
        module: its LightningModule.
        run_in_eval: paths of the modules that eval mode runs.
        watched: what the training step did; None if that is not known.
    """
    in_optimizer = optimized(trainer, module)
    calls = watched.calls if watched is not None else []
    updated = watched.updated if watched is not None else set()
    in_eval = _own_parameters(module, run_in_eval)
    in_step = _own_parameters(module, (call.path for call in calls))
    trained = in_optimizer & _own_parameters(module, (c.path for c in calls if c.learns)) if calls else in_optimizer
    parts = {path: part for path, part in module.named_modules() if path}
    originals = {path: part for path, part in parts.items() if _ids(part) & trained}
    found = Copies({}, {}, {})
    for path, part in parts.items():
        own = _ids(part)
        if own & trained or any(path.startswith(f"{other}.") for other in found):
            continue
        # Scales and shifts of a frozen norm resemble those of every other norm.
        if not any(parameter.dim() > 1 for parameter in part.parameters()):
            continue
        # An average is run by validation, a momentum encoder by the training step; both modes run an ordinary layer.
        both_modes = bool(own & in_eval) and (bool(own & in_step) or not calls)
        # An update without gradients tells a momentum encoder from a teacher, which is run in training only too.
        is_updated = any(name.startswith(f"{path}.") for name in updated)
        might_be_layer = not is_updated and (both_modes or bool(own & in_optimizer))
        original = _original_of(path, part, originals, only_equal=might_be_layer)
        if original is None:
            continue
        stands_in = own & in_eval and not _ids(originals[original]) & in_eval
        compared = watched is not None and watched.met.meets(path)
        if stands_in or compared or is_updated or _is_average(module, path):
            found.following[path] = original
        elif watched is not None and not watched.runs(part) and _same_values(part, originals[original]):
            found.assumed[path] = original
        else:
            found.unclear[path] = original
    return found


def optimized(trainer: pl.Trainer, module: nn.Module) -> set[int]:
    """Return the identities of the parameters that are trained.

    What requires gradients but is in no optimizer is not: so momentum encoders are often left.

    Args:
        trainer: the Trainer, with its optimizers.
        module: its LightningModule.
    """
    groups = (group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return {id(p) for group in groups for p in group} & {id(p) for p in module.parameters() if p.requires_grad}


def _is_average(module: nn.Module, path: str) -> bool:
    """Return whether a part is kept by an ``AveragedModel`` of PyTorch, or is one."""
    names = path.split(".")
    return any(
        isinstance(module.get_submodule(".".join(names[:depth])), AveragedModel) for depth in range(1, len(names) + 1)
    )


def unclear_copies(unclear: Mapping[str, str]) -> ConfigurationError:
    """Return the error for copies of which it is not known whether they follow or are teachers.

    Args:
        unclear: path of each copy -> path of its original.
    """
    names = ", ".join(f"{copy!r} has the tensors of {original!r}" for copy, original in unclear.items())
    follow = ", ".join(f"{copy!r}: {original!r}" for copy, original in unclear.items())
    return ConfigurationError(
        f"{names}, which is to be pruned, and is not trained. If it follows (a momentum encoder, an average), give "
        f"FilterPruning follow={{{follow}}}, so that it shrinks alike; if it is to stay as it is (a teacher), give "
        "follow={}"
    )


def fingerprint(tensors: Iterable[Tensor]) -> float:
    """Return a number that changes when the values of tensors change.

    Args:
        tensors: the tensors; those without plain numbers are left out.
    """
    plain = [tensor.detach() for tensor in tensors if not is_lazy(tensor) and _has_numbers(tensor)]
    return float(sum(tensor.double().sum() for tensor in plain))


def _has_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _own_parameters(module: nn.Module, paths: Iterable[str]) -> set[int]:
    return {id(p) for path in paths for p in module.get_submodule(path).parameters(recurse=False)}


def _original_of(path: str, part: nn.Module, originals: Mapping[str, nn.Module], *, only_equal: bool) -> str | None:
    """Return the part of the same class and tensors; among several the one with the same values, else name."""
    kind = type(part), _shapes(part)
    alike = [name for name, other in originals.items() if (type(other), _shapes(other)) == kind]
    equal = [name for name in alike if _same_values(part, originals[name])]
    alike = equal if equal or only_equal else alike
    return max(alike, key=lambda name: SequenceMatcher(None, path, name).ratio(), default=None)


def _same_values(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.parameters(), second.parameters()))


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
