"""`PruningPlan`: the indices that a cut removes, as a value that can be written to and read from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infoprune.errors import PlanError, nearest
from infoprune.files import write_text_whole
from infoprune.structure.labels import Labels
from infoprune.structure.notebook import html_table
from infoprune.structure.plan_format import FORMAT, read_fields, write_ranges


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """The indices that are removed from each dimension of each parameter and buffer.

    Names, dimensions and indices are those of the model that the plan was made for.

    Attributes:
        removed: tensor name -> dimension -> sorted indices to remove.
        shapes: the shapes, before the cut, of the tensors in ``removed``.
        attributes: numbers in modules that follow a width, ``"encoder.hidden_dim" -> (before, after)``. Attributes of
            PyTorch's own layers (``in_channels``, ...) follow from the weights and are not listed.
        caches: attributes in which the model's code keeps what it has computed, ``"encoder.bias_of_device"``. What they
            hold has the old widths and is dropped with the cut.

    Example:
        >>> plan = PruningPlan({"conv.weight": {0: (1, 2)}}, {"conv.weight": (4, 3, 3, 3)})
        >>> plan.shape_after("conv.weight")
        (2, 3, 3, 3)
        >>> PruningPlan.from_json(plan.to_json()) == plan
        True
    """

    removed: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    caches: tuple[str, ...] = ()
    _arrays: dict[tuple[str, int], Labels] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        arrays: dict[tuple[str, int], Labels] = {}
        seen: dict[int, tuple[Labels, set[int]]] = {}  # many tensors share one tuple of indices
        for tensor, dims in self.removed.items():
            shape = self.shapes.get(tensor)
            if shape is None:
                raise PlanError(f"the plan cuts {tensor} but does not give its shape")
            for dim, indices in dims.items():
                if id(indices) not in seen:
                    seen[id(indices)] = (_as_array(tensor, indices), set())
                listed, sizes = seen[id(indices)]
                if not 0 <= dim < len(shape):
                    raise PlanError(f"the plan cuts dimension {dim} of {tensor}, which has shape {shape}")
                if shape[dim] not in sizes:
                    _check_indices(tensor, shape[dim], dim, listed)
                    sizes.add(shape[dim])
                arrays[tensor, dim] = listed
        object.__setattr__(self, "_arrays", arrays)

    def __repr__(self) -> str:
        indices = sum(len(gone) for dims in self.removed.values() for gone in dims.values())
        return f"PruningPlan({indices:,} indices of {len(self.removed)} tensors go)"

    def _repr_html_(self) -> str:
        cuts = [name for name in self.removed if self.shapes[name] != self.shape_after(name)]
        rows = [[name, str(self.shapes[name]), str(self.shape_after(name))] for name in cuts]
        return html_table(repr(self), ["tensor", "before", "after"], rows)

    @property
    def is_empty(self) -> bool:
        """Return whether the plan removes nothing."""
        return not any(indices for dims in self.removed.values() for indices in dims.values())

    def kept(self, tensor: str, dim: int) -> list[int]:
        """Return the indices that stay in one dimension.

        Args:
            tensor: name of a parameter or buffer.
            dim: one of its dimensions.
        """
        kept: list[int] = np.flatnonzero(self.keep_mask(tensor, dim)).tolist()
        return kept

    def keep_mask(self, tensor: str, dim: int) -> npt.NDArray[np.bool_]:
        """Return for every index of one dimension whether it stays.

        Args:
            tensor: name of a parameter or buffer.
            dim: one of its dimensions.

        Returns:
            (size before the cut,) booleans.
        """
        stays = np.ones(self.shapes[tensor][dim], dtype=bool)
        if (tensor, dim) in self._arrays:
            stays[self._arrays[tensor, dim]] = False
        return stays

    def indices(self, tensor: str, dim: int) -> Labels:
        """Return the indices that go from one dimension, as an array; slots that lose the same share it.

        Args:
            tensor: Name of the parameter or buffer.
            dim: The dimension.

        Returns:
            (removed,) ascending indices; empty if the dimension loses none.
        """
        return self._arrays[tensor, dim]

    def shape_after(self, tensor: str) -> tuple[int, ...]:
        """Return the shape that the plan leaves of a tensor.

        Args:
            tensor: Name of the parameter or buffer.
        """
        return self._shapes_after[tensor]

    @cached_property
    def _shapes_after(self) -> dict[str, tuple[int, ...]]:
        after = {}
        for tensor, shape in self.shapes.items():
            cut = self.removed.get(tensor, {})
            after[tensor] = tuple(size - len(cut.get(dim, ())) for dim, size in enumerate(shape))
        return after

    def then(self, later: PruningPlan) -> PruningPlan:
        """Combine this plan with ``later``, made for the shrunk model, into one plan for the original.

        Args:
            later: A plan in the coordinates of the model that this plan leaves.

        Raises:
            PlanError: ``later`` was made for other shapes than this plan leaves.
        """
        if not self.shapes and not self.attributes and not self.caches:
            return later
        removed = {tensor: dict(dims) for tensor, dims in self.removed.items()}
        shapes = dict(self.shapes)
        for tensor, dims in later.removed.items():
            if tensor in self.shapes and self.shape_after(tensor) != later.shapes[tensor]:
                raise PlanError(
                    f"the plans do not follow one another: the first leaves {tensor} at {self.shape_after(tensor)}, "
                    f"the second expects {later.shapes[tensor]}"
                )
            shapes.setdefault(tensor, later.shapes[tensor])
            if tensor not in self.shapes:
                removed[tensor] = dict(dims)
                continue
            mine = removed[tensor]
            for dim, indices in dims.items():
                left = self.kept(tensor, dim)
                mine[dim] = tuple(sorted({*mine.get(dim, ()), *(left[i] for i in indices)}))
        attributes = dict(self.attributes)
        for name, (before, after) in later.attributes.items():
            attributes[name] = (attributes.get(name, (before, before))[0], after)
        return PruningPlan(removed, shapes, attributes, tuple(dict.fromkeys([*self.caches, *later.caches])))

    # -- reading and writing ------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as primitives; runs of indices are written ``"0-3,7"``."""
        tensors = {
            tensor: {
                "shape": list(self.shapes[tensor]),
                "removed": {str(dim): write_ranges(indices) for dim, indices in sorted(dims.items())},
            }
            for tensor, dims in self.removed.items()
        }
        attributes = {name: list(values) for name, values in self.attributes.items()}
        data = {"format": FORMAT, "tensors": tensors, "attributes": attributes}
        return data | ({"caches": list(self.caches)} if self.caches else {})

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """Return the plan that :meth:`to_dict` wrote.

        Args:
            data: plain data, such as a checkpoint or a JSON file holds.

        Raises:
            PlanError: the data is not a plan, names what is wrong.
        """
        return cls(*read_fields(data))

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Return the plan that :meth:`to_json` wrote.

        Args:
            text: the whole JSON text.

        Raises:
            PlanError: the text is truncated or not a plan.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets nested as deeply
            raise PlanError(f"the pruning plan is truncated or not JSON: {error}") from error
        return cls.from_dict(data)

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file.

        Args:
            path: The file; it is written wholly or not at all.

        Raises:
            PlanError: the file cannot be written.
        """
        try:
            write_text_whole(path, self.to_json() + "\n")
        except OSError as error:
            raise PlanError(f"cannot write the pruning plan {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan from a JSON file.

        Args:
            path: a file that :meth:`save` wrote.

        Raises:
            PlanError: the file is missing, truncated or not a plan.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the pruning plan {path}: {error}") from error
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error


def _as_array(tensor: str, indices: tuple[int, ...]) -> Labels:
    try:
        return np.asarray(indices, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise PlanError(f"the plan's indices for {tensor} are no whole numbers of 64 bits: {error}") from error


def _check_indices(tensor: str, size: int, dim: int, listed: Labels) -> None:
    inside = 0 < len(listed) < size and listed[0] >= 0 and listed[-1] < size
    if inside and (listed[1:] > listed[:-1]).all():
        return
    outside = listed[(listed < 0) | (listed >= size)]
    if len(outside):
        raise PlanError(f"the plan removes index {outside[0]} of dimension {dim} of {tensor}, which has {size}")
    if (np.diff(listed) <= 0).any():
        raise PlanError(f"the plan's indices for dimension {dim} of {tensor} are repeated or not in order")
    if len(listed) == size:
        raise PlanError(f"the plan removes all {size} of dimension {dim} of {tensor}; at least one must stay")


def part_of(plan: PruningPlan, names: Mapping[str, str]) -> PruningPlan:
    """Return what a plan removes of some tensors; the plan is known to be sound, so that nothing is checked again.

    Args:
        plan: the plan.
        names: name of a tensor in the new plan -> its name in ``plan``.
    """
    part = object.__new__(PruningPlan)
    vars(part).update(
        removed={new: plan.removed[old] for new, old in names.items()},
        shapes={new: plan.shapes[old] for new, old in names.items()},
        attributes={},
        caches=(),
        _arrays={(new, dim): plan._arrays[old, dim] for new, old in names.items() for dim in plan.removed[old]},
    )
    return part


def check_belongs(plan: PruningPlan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a plan made for a model whose tensors have other names or shapes.

    Args:
        plan: The plan.
        shapes: Tensor name -> shape, of the model.

    Raises:
        PlanError: names the first tensor that differs.
    """
    for tensor, shape in plan.shapes.items():
        if tensor not in shapes:
            raise PlanError(f"the plan cuts {tensor!r}, which this model does not have{nearest(tensor, shapes)}")
        if tuple(shapes[tensor]) != tuple(shape):
            raise PlanError(
                f"the plan was made for another model: {tensor} has shape {tuple(shapes[tensor])}, "
                f"the plan expects {tuple(shape)}"
            )
