"""The numbers in PyTorch's own layers that describe shapes, recomputed from what is left of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Size, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infoprune.errors import PlanError
from infoprune.structure.plan import PruningPlan

Change: TypeAlias = tuple[nn.Module, str, Any]
"""A module, the name of one of its attributes, its new value."""

Widths: TypeAlias = Callable[[str], tuple[int, ...]]
"""Shape after the cut of one of a module's own tensors, by its short name."""


def changes(model: nn.Module, plan: PruningPlan, names: dict[int, str]) -> list[Change]:
    """Every attribute that has to change with a plan.

    Args:
        model: the model before (or after) the cut; its tensors' shapes are not looked at.
        plan: the plan.
        names: for each tensor of the model, by ``id``, the name that the plan knows it by.

    Raises:
        PlanError: an attribute that the plan rewrites is missing or has another value than the plan expects.
    """
    found: list[Change] = []
    for module in model.modules():
        own = {key: names[id(t)] for key, t in [*module._parameters.items(), *module._buffers.items()] if t is not None}
        cut = {key: name for key, name in own.items() if name in plan.shapes}
        if cut:
            found += [
                (module, key, value) for key, value in _of_layer(module, cut, plan) if getattr(module, key) != value
            ]
    for path, (before, after) in plan.attributes.items():
        owner, _, key = path.rpartition(".")
        try:
            module = model.get_submodule(owner)
            value = getattr(module, key)
        except AttributeError as error:
            raise PlanError(f"the plan rewrites {path}, which this model does not have") from error
        if value != before:
            raise PlanError(f"the plan was made for another model: {path} is {value!r}, the plan expects {before}")
        found.append((module, key, after))
    return found


def _of_layer(module: nn.Module, cut: dict[str, str], plan: PruningPlan) -> Iterator[tuple[str, Any]]:
    """New values of the attributes of one of PyTorch's layers; other modules have none that we know of."""

    def after(key: str) -> tuple[int, ...]:
        return plan.shape_after(cut[key])

    if isinstance(module, _ConvNd) and "weight" in cut:
        groups = _groups_left(plan, cut["weight"], module.groups)
        first, second = after("weight")[:2]
        transposed = isinstance(module, _ConvTransposeNd)
        yield "groups", groups
        yield "in_channels", first if transposed else second * groups
        yield "out_channels", second * groups if transposed else first
    elif isinstance(module, nn.Linear) and "weight" in cut:
        yield "out_features", after("weight")[0]
        yield "in_features", after("weight")[1]
    elif isinstance(module, nn.Bilinear) and "weight" in cut:
        yield from zip(("out_features", "in1_features", "in2_features"), after("weight"), strict=True)
    elif isinstance(module, _NormBase):
        yield "num_features", after(next(iter(cut)))[0]
    elif isinstance(module, nn.GroupNorm) and "weight" in cut:
        yield "num_channels", after("weight")[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and "weight" in cut:
        yield "normalized_shape", after("weight")
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and "weight" in cut:
        yield "embedding_dim", after("weight")[1]
    elif isinstance(module, nn.PReLU) and "weight" in cut:
        yield "num_parameters", after("weight")[0]
    elif isinstance(module, nn.MultiheadAttention):
        if "in_proj_weight" in cut:
            for key in ("embed_dim", "kdim", "vdim"):
                yield key, after("in_proj_weight")[1]
        for key, weight, dim in (("embed_dim", "q", 0), ("kdim", "k", 1), ("vdim", "v", 1)):
            if f"{weight}_proj_weight" in cut:
                yield key, after(f"{weight}_proj_weight")[dim]


def _groups_left(plan: PruningPlan, weight: str, groups: int) -> int:
    """How many of a convolution's groups still have rows."""
    if groups == 1:
        return 1
    width = plan.shapes[weight][0] // groups
    return len({row // width for row in plan.kept(weight, 0)})


@contextmanager
def rewritten(changed: Sequence[Change]) -> Iterator[None]:
    """Let attributes have other values for a while."""
    before = [(module, key, getattr(module, key)) for module, key, _ in changed]
    try:
        for module, key, value in changed:
            setattr(module, key, _like(getattr(module, key), value))
        yield
    finally:
        for module, key, value in before:
            setattr(module, key, value)


def rewrite(changed: Sequence[Change]) -> None:
    """Give attributes their new values for good."""
    for module, key, value in changed:
        setattr(module, key, _like(getattr(module, key), value))


def _like(old: Any, new: Any) -> Any:
    return Size(new) if isinstance(old, Size) else new
