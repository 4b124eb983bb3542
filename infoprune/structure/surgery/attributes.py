"""Recompute the size attributes of PyTorch's layers (``out_channels``, ``groups``) after a cut."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infoprune.errors import PlanError
from infoprune.structure.plan import PruningPlan

GEOMETRY = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding"})
"""Attributes of convolution and pooling that hold sizes in space, which no cut of channels changes."""

SEQUENCES = (list, tuple, deque)
"""Kinds of containers whose items plans know by their places."""

Change: TypeAlias = tuple[nn.Module, str, Any]
"""A module, the name of one of its attributes, its new value."""

Widths: TypeAlias = Callable[[str], tuple[int, ...]]
"""Shape after the cut of one of a module's own tensors, by its short name."""


def changes(modules: Mapping[str, nn.Module], plan: PruningPlan, names: Mapping[int, str]) -> list[Change]:
    """Return every attribute that has to change with a plan.

    Args:
        modules: the modules of the model before (or after) the cut; their tensors' shapes are not looked at.
        plan: the plan.
        names: for each tensor of the model, by ``id``, the name that the plan knows it by.

    Raises:
        PlanError: an attribute that the plan rewrites is missing or has another value than the plan expects.
    """
    found: list[Change] = []
    for module in modules.values():
        if not (module._parameters or module._buffers or "parametrizations" in module._modules):
            continue
        own = ((key, names[id(tensor)]) for key, tensor in _own_tensors(module).items())
        cut = {key: name for key, name in own if name in plan.shapes}
        if cut:
            found += [
                (module, key, value) for key, value in _of_layer(module, cut, plan) if getattr(module, key) != value
            ]
    return [*found, *_of_plan(modules, plan), *_of_encoders(modules, plan)]


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own tensors; for a weight that it computes, the parameter of the weight's shape."""
    own = {
        key: tensor
        for held in (module._parameters, module._buffers)
        for key, tensor in held.items()
        if tensor is not None
    }
    parametrized = getattr(module, "parametrizations", {}) if "parametrizations" in module._modules else {}
    for key, originals in parametrized.items():
        own[key] = max(originals.parameters(recurse=False), key=Tensor.numel)
    computed = own.get("weight_orig", own.get("weight_v"))
    return own if computed is None else {"weight": computed, **own}


def _of_plan(modules: Mapping[str, nn.Module], plan: PruningPlan) -> Iterator[Change]:
    """Return the attribute changes that the plan itself names; numbers of one container are one change."""
    containers: dict[tuple[nn.Module, str], dict[tuple[str, ...], int]] = {}
    for path, (before, after) in plan.attributes.items():
        owner, _, key = path.rpartition(".")
        try:
            module = modules[owner]
            value = number(module, key)
        except (KeyError, AttributeError, LookupError) as error:
            raise PlanError(f"the plan rewrites {path}, which this model does not have") from error
        if value != before or not (type(value) is int or isinstance(value, np.integer)):
            raise PlanError(f"the plan was made for another model: {path} is {value!r:.60}, the plan expects {before}")
        name, places = _places(key)
        fewest = 0 if places else 1  # a part of a split may lose all of its channels
        if name in GEOMETRY or not fewest <= after <= before:
            raise PlanError(
                f"the plan rewrites {path} from {before} to {after}, and that is no width that a cut narrows"
            )
        if places:
            containers.setdefault((module, name), {})[places] = type(value)(after)
        else:
            yield module, name, type(value)(after)
    for (module, name), numbers in containers.items():
        yield module, name, _with_numbers(getattr(module, name), numbers)


def _of_encoders(modules: Mapping[str, nn.Module], plan: PruningPlan) -> Iterator[Change]:
    """Return the changes of PyTorch's encoders whose layers keep an odd number of heads.

    ``nn.TransformerEncoder`` packs padded inputs into nested tensors, which its layers take with an even number only.
    It looks at the number when it is built.
    """
    for path, module in modules.items():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            _, heads = plan.attributes.get(f"{path}.layers.0.self_attn.num_heads".lstrip("."), (0, 0))
            if heads % 2:
                yield module, "use_nested_tensor", False


def element(name: str, place: int | str) -> str:
    """Return the name that plans give to a number in a list or tuple, a dict or an object.

    Args:
        name: attribute that holds the container.
        place: index of the number in it, key or attribute.

    Example:
        >>> element("split_sizes", 1), element(element("config", "widths"), 0)
        ('split_sizes[1]', 'config[widths][0]')
    """
    return f"{name}[{place}]"


def number(module: nn.Module, key: str) -> Any:
    """Return the number that a module holds under a name from a plan.

    Args:
        module: the module that holds it.
        key: an attribute, or an element of one, such as ``split_sizes[1]`` and ``config[width]``.

    Raises:
        AttributeError, LookupError: it has nothing of that name.
    """
    name, places = _places(key)
    value = getattr(module, name)
    for place in places:
        value = _item(value, place)
    return value


def _places(key: str) -> tuple[str, tuple[str, ...]]:
    """Split ``config[widths][0]`` into the attribute and the places in it: ``("config", ("widths", "0"))``."""
    name, *places = re.findall(r"[^\[\]]+", key)
    return name, tuple(places)


def _item(held: Any, place: str) -> Any:
    if isinstance(held, SEQUENCES):
        if not place.isdecimal():
            raise LookupError(f"{place} is no place in a {type(held).__name__}")
        return held[int(place)]
    return (held if isinstance(held, dict) else getattr(held, "__dict__", {}))[place]


def _with_numbers(held: Any, numbers: Mapping[tuple[str, ...], int]) -> Any:
    """Return a copy of a container with some numbers replaced: others may hold the same container."""
    inside: dict[str, dict[tuple[str, ...], int]] = {}
    for (place, *rest), number in numbers.items():
        inside.setdefault(place, {})[tuple(rest)] = number
    items = {
        place: rest[()] if () in rest else _with_numbers(_item(held, place), rest) for place, rest in inside.items()
    }
    if isinstance(held, SEQUENCES):
        return _like(held, [items.get(str(place), item) for place, item in enumerate(held)])
    if isinstance(held, dict):
        return type(held)({**held, **items})
    kind: Any = type(held)
    changed = kind.__new__(kind)
    vars(changed).update(vars(held), **items)  # past __setattr__, which frozen dataclasses refuse
    return changed


def _of_layer(module: nn.Module, cut: dict[str, str], plan: PruningPlan) -> Iterator[tuple[str, Any]]:
    """Return new values of the size attributes of one of PyTorch's layers; nothing for other modules."""

    def after(key: str) -> tuple[int, ...]:
        return plan.shape_after(cut[key])

    if (isinstance(module, _ConvNd) or _is_deformable(module)) and "weight" in cut:
        # A group that loses all of its filters is removed, with the channels that it reads.
        rows = plan.keep_mask(cut["weight"], 0).reshape(int(module.groups), -1)  # type: ignore[arg-type]
        groups = int(rows.any(axis=1).sum())  # groups that keep filters
        # The second dimension of the weight counts the channels of one group only, and a transposed one is read first.
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
        # Without scale and shift only the running statistics know the width.
        yield "num_features", after(next(iter(cut)))[0]
    elif isinstance(module, nn.GroupNorm) and "weight" in cut:
        yield "num_channels", after("weight")[0]
        # One group for each channel goes with its channel; other groups keep their number.
        if module.num_groups == module.num_channels:
            yield "num_groups", after("weight")[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and "weight" in cut:
        yield "normalized_shape", after("weight")
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and "weight" in cut:
        yield "embedding_dim", after("weight")[1]
    elif isinstance(module, nn.PReLU) and "weight" in cut:
        yield "num_parameters", after("weight")[0]
    elif isinstance(module, nn.MultiheadAttention):
        # One projection of all three has rows for queries, keys and values; the columns are what it reads.
        if "in_proj_weight" in cut:
            for key in ("embed_dim", "kdim", "vdim"):
                yield key, after("in_proj_weight")[1]
        for key, weight, dim in (("embed_dim", "q", 0), ("kdim", "k", 1), ("vdim", "v", 1)):
            if f"{weight}_proj_weight" in cut:
                yield key, after(f"{weight}_proj_weight")[dim]


def _is_deformable(module: nn.Module) -> bool:
    """Return whether a module is torchvision's deformable convolution; torchvision need not be there."""
    return (type(module).__module__, type(module).__name__) == ("torchvision.ops.deform_conv", "DeformConv2d")


@contextmanager
def rewritten(changed: Sequence[Change]) -> Iterator[None]:
    """Set attributes to new values until the end of the block.

    Args:
        changed: (module, attribute, new value) each.
    """
    before = [(module, key, getattr(module, key)) for module, key, _ in changed]
    of_class = [(module, key) for module, key, _ in changed if key not in vars(module)]
    try:
        rewrite(changed)
        yield
    finally:
        rewrite(before)
        for module, key in of_class:
            vars(module).pop(key, None)


def rewrite(changed: Sequence[Change]) -> None:
    """Set attributes to their new values.

    Args:
        changed: (module, attribute, new value) each.
    """
    for module, key, value in changed:
        own = vars(module)
        if key in own:  # a plain number: nn.Module.__setattr__ would only be slower
            own[key] = _like(own[key], value)
        else:
            setattr(module, key, _like(getattr(module, key), value))


def _like(old: Any, new: Any) -> Any:
    if not isinstance(old, SEQUENCES) or type(new) is type(old):
        return new
    if isinstance(old, deque):
        return type(old)(new, old.maxlen)
    return old._make(new) if hasattr(old, "_make") else type(old)(new)  # a named tuple takes its fields one by one
