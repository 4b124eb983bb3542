"""Measuring what cutting each channel group costs: one group at a time, batch norm renewed, outputs compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from infoprune.allocation.batch_statistics import BatchStatistics
from infoprune.allocation.curves import Round
from infoprune.allocation.divergence import NAMES, Distance, distances_for, scored
from infoprune.allocation.select import lowest_units
from infoprune.allocation.suffix import Prefix, advance, first_uses, resume
from infoprune.calibration import batch_size, on_device, rows_of, run, split_batch
from infoprune.criteria.activations.suffix_replay import ReplayError
from infoprune.criteria.shapley.scoring_run import suffix_shares
from infoprune.distributed import all_or_none, process, sum_over_processes, world_size
from infoprune.errors import DataError
from infoprune.snapshot import snapshot
from infoprune.structure.tensors import owned_tensors

if TYPE_CHECKING:
    from infoprune.criteria import Scores
    from infoprune.progress import Progress
    from infoprune.structure import ChannelGroup, GroupSlot, Structure

DEAR = 0.02
"""A group that costs more at its middle level is measured above it, any other below: there the solution lies."""

BATCH = 64
"""Smaller batches are joined up to so many images: statistics of few images are none."""

Quality = Callable[[nn.Module], float]
"""A user's own measure of a model; higher is better."""


class LossMeter:
    """Measures models that are cut, against the model as it is.

    The cuts are made in a copy, by setting the weights that read removed channels to zero. In the copy every batch norm
    normalises by the statistics of the batch at hand, as it would with statistics measured anew after the cut. The
    original's outputs are taken in the same way, so that no cut costs nothing.

    On several processes pass the same data everywhere: each process measures every n-th group on all images, and all
    get the numbers that a single process would have found.

    Args:
        model: The model that ``structure`` was traced from. It is not changed.
        structure: Its channel groups.
        scores: Which units of a group go first: the lowest.
        data: Batches of training images.
        images: At most so many are used.
        evaluate: Measures the quality of a model instead of the distance of its outputs from the original's.
        owner: Who asks, for messages.

    Attributes:
        unit: What the losses are, in words.
        images: How many images are used.

    Raises:
        DataError: there is no image, or the outputs cannot be compared.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        scores: Scores,
        data: Iterable[Any],
        images: int,
        evaluate: Quality | None,
        owner: str,
    ) -> None:
        self.owner = owner
        self.groups = {group.name: group for group in structure.prunable if group.name in scores}
        self.model = snapshot(model)
        for parameter in self.model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs
        self._scores = scores
        self._tensors = {name: owned.tensor for name, owned in owned_tensors(self.model).items()}
        self._readers = {name: _readers(structure, group) for name, group in self.groups.items()}
        self._evaluate = evaluate
        behind = suffix_shares(structure)
        self._work = {name: behind[structure.producers(group)[0][0].name] for name, group in self.groups.items()}
        self._batches: list[_Batch] = []
        self.unit = "drop of the given quality"
        with self._ready():
            if evaluate is not None:
                self.images, self._best = 0, self._finite(evaluate(self.model), "the whole model")
                return
            inputs = list(_joined(_first(data, images, owner)))
            self.images = sum(size for _, _, size in inputs)
            device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            self._batches = [self._batch(on_device(device, _channels_last(x)), y, size) for x, y, size in inputs]
        self.unit = " + ".join(dict.fromkeys(NAMES[distance] for distance in self._batches[0].distances))

    def work(self, levels: Mapping[str, Sequence[int]]) -> float:
        """Return how much a round measures at most, in runs of the whole model; a progress bar advances by that."""
        return sum(self._work[name] * len(_near(widths, None)) for name, widths in levels.items())

    def round(self, widths: Mapping[str, int], levels: Mapping[str, Sequence[int]], bar: Progress) -> Round:
        """Cut each group of the model with these widths to each of its levels alone, and measure what that costs.

        Args:
            widths: Group name -> units that the model has.
            levels: Group name -> smaller widths, from the largest; those beside the solution are measured.
            bar: Is told about every run.
        """
        names = list(self.groups)
        table = [(name, width) for name in names for width in levels.get(name, ())]
        losses = torch.zeros(2, len(table) + 1, dtype=torch.float64)  # losses, and which of them were measured
        mine = set(names[process() :: world_size()])
        with self._ready(), all_or_none(), self._cut(widths):
            if process() == 0:
                losses[0, 0] = self._loss_of_whole_runs("these widths")
            measured = self._measured({name: levels[name] for name in names if name in mine and name in levels}, bar)
            for place, key in enumerate(table, 1):
                if key in measured:
                    losses[:, place] = torch.tensor([measured[key], 1.0])
        losses, seen = sum_over_processes(losses)
        curves: dict[str, dict[int, float]] = {}
        for (name, width), loss, known in zip(table, losses[1:].tolist(), seen[1:].tolist(), strict=True):
            if known:
                curves.setdefault(name, {})[width] = loss
        return Round(dict(widths), losses[0].item(), curves)

    def _measured(self, levels: Mapping[str, Sequence[int]], bar: Progress) -> dict[tuple[str, int], float]:
        if self._evaluate is not None:
            return self._evaluated(levels, bar)
        sums: dict[tuple[str, int], float] = {}
        near: dict[str, list[int]] = {}
        for batch in self._batches:
            prefix: Prefix | None = Prefix()
            for name in sorted(levels, key=lambda name: batch.place(self._weights(name))):
                if batch.resumes and prefix is not None:
                    prefix = advance(self.model, batch.inputs, prefix, self._weights(name))
                middle = levels[name][len(levels[name]) // 2]
                first = self._loss_at(name, middle, batch, prefix)
                near.setdefault(name, _near(levels[name], first / batch.size))  # decided on the first batch
                for width in near[name]:
                    loss = first if width == middle else self._loss_at(name, width, batch, prefix)
                    sums[name, width] = sums.get((name, width), 0.0) + loss
                bar.advance(self._work[name] * len(near[name]) * batch.size / self.images)
        return {key: total / self.images for key, total in sums.items()}

    def _loss_at(self, name: str, width: int, batch: _Batch, prefix: Prefix | None) -> float:
        """Return the loss of a batch, summed over its images, where a group is cut to a width."""
        if prefix is None:
            return 0.0  # the run never uses this group
        with self._cut({name: width}):
            return self._loss(batch, resume(self.model, batch.inputs, prefix), f"{name} at {width} units")

    def _evaluated(self, levels: Mapping[str, Sequence[int]], bar: Progress) -> dict[tuple[str, int], float]:
        assert self._evaluate is not None
        losses = {}
        for name, widths in levels.items():
            for width in widths:
                with self._cut({name: width}):
                    quality = self._finite(self._evaluate(self.model), f"{name} at {width} units")
                losses[name, width] = self._best - quality
            bar.advance(self._work[name] * len(widths))
        return losses

    def _loss_of_whole_runs(self, what: str) -> float:
        if self._evaluate is not None:
            return self._best - self._finite(self._evaluate(self.model), what)
        losses = (self._loss(batch, run(self.model, batch.inputs), what) for batch in self._batches)
        return sum(losses) / self.images

    def _loss(self, batch: _Batch, outputs: Any, what: str) -> float:
        """Return the loss of a batch, summed over its images and over the outputs."""
        pairs = zip(batch.distances, batch.outputs, scored(outputs), strict=True)
        total = 0.0
        for distance, original, changed in pairs:
            values = distance(original, changed)
            total += values.double().sum().item() * (batch.size / len(values))
        return self._finite(total, what)

    def _finite(self, value: float, what: str) -> float:
        if not torch.isfinite(torch.tensor(float(value))):
            raise DataError(f"{self.owner}: the outputs of the model with {what} are not finite; freeze that group")
        return float(value)

    def _batch(self, inputs: Any, targets: Any, size: int) -> _Batch:
        weights = (weight for name in self.groups for weight in self._weights(name))
        outputs, order = first_uses(self.model, inputs, weights)
        found = scored(outputs)
        if not all(bool(torch.isfinite(output).all()) for output in found):
            raise DataError(f"{self.owner}: the outputs of the whole model are not finite on the calibration images")
        distances = distances_for(found, on_device(found[0].device, targets), size)
        batch = _Batch(inputs, size, found, distances, {key: place for place, key in enumerate(order)})
        batch.resumes = self._resumes_truly(batch)
        return batch

    def _resumes_truly(self, batch: _Batch) -> bool:
        """Return whether resuming at the last group gives what the whole run gave.

        It does not where the model computes outside of torch's sight (scripted functions, NumPy).
        """
        last = max(self.groups, key=lambda name: batch.place(self._weights(name)), default=None)
        if last is None:
            return False
        prefix = advance(self.model, batch.inputs, Prefix(), self._weights(last))
        if prefix is None:
            return True
        try:
            again = scored(resume(self.model, batch.inputs, prefix))
        except (ReplayError, DataError):
            return False
        return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(again, batch.outputs, strict=True))

    def _weights(self, name: str) -> list[Tensor]:
        return [self._tensors[slot.tensor] for slot in self._readers[name]]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with torch.no_grad(), BatchStatistics():
            yield

    @contextmanager
    def _cut(self, widths: Mapping[str, int]) -> Iterator[None]:
        """Inside, the copy computes as if these groups had so many units."""
        saved: dict[str, Tensor] = {}
        for name, width in widths.items():
            gone = torch.zeros(self.groups[name].size, dtype=torch.bool)
            gone[lowest_units(self._scores[name], len(gone) - width)] = True
            for slot in self._readers[name]:
                weight = self._tensors[slot.tensor]
                if slot.tensor not in saved:
                    saved[slot.tensor] = weight.clone()
                places = torch.as_tensor(slot.index)[gone[torch.as_tensor(slot.unit)]]
                weight.index_fill_(slot.dim, places.to(weight.device), 0)
        try:
            yield
        finally:
            for name, values in saved.items():
                self._tensors[name].copy_(values)


class _Batch:
    """A batch, what the whole model makes of it, and how to compare with that."""

    def __init__(
        self, inputs: Any, size: int, outputs: list[Tensor], distances: list[Distance], order: Mapping[int, int]
    ) -> None:
        self.inputs, self.size, self.outputs, self.distances = inputs, size, outputs, distances
        self.resumes = True
        self._order = order

    def place(self, weights: Iterable[Tensor]) -> int:
        """Return how early the first of some weights is used; behind all others if none is."""
        return min((self._order.get(id(p), len(self._order)) for p in weights), default=len(self._order))


def _readers(structure: Structure, group: ChannelGroup) -> list[GroupSlot]:
    """Return the slots that read a group's channels; all of its slots where only activations meet, as in attention.

    A channel that nobody reads is gone. What makes it stays as it is, so that nothing divides by a norm of zeros, and
    layer norm keeps its scale.
    """
    made = {layer.weight: layer.dim for layer in structure.layers}
    readers = [slot for slot in group.slots if slot.tensor in made and slot.dim != made[slot.tensor]]
    return readers or list(group.slots)


def _near(levels: Sequence[int], loss: float | None) -> list[int]:
    """Return the levels on the side of the middle where the solution lies, the middle included.

    >>> _near([12, 8, 4], 0.001), _near([12, 8, 4], 0.5)
    ([8, 4], [12, 8])
    """
    middle = len(levels) // 2
    return list(levels[: middle + 1] if loss is not None and loss > DEAR else levels[middle:])


def _channels_last(inputs: Any) -> Any:
    return tree_map(
        lambda leaf: (
            leaf.contiguous(memory_format=torch.channels_last) if isinstance(leaf, Tensor) and leaf.dim() == 4 else leaf
        ),
        inputs,
    )


def _first(data: Iterable[Any], images: int, owner: str) -> Iterator[tuple[Any, Any, int]]:
    """Return the first images of some data, in batches as they come."""
    left = images
    for batch in data:
        inputs, targets = split_batch(batch, owner)
        size = batch_size(inputs, owner)
        if size > left:
            inputs, targets = rows_of((inputs, targets), size, slice(left))
        yield inputs, targets, min(size, left)
        left -= size
        if left <= 0:
            return
    if left == images:
        raise DataError(f"{owner}: the data hold no image; pass batches of training images")


def _joined(batches: Iterable[tuple[Any, Any, int]]) -> Iterator[tuple[Any, Any, int]]:
    """Small batches, joined where their tensors have one row for each image."""
    waiting: list[tuple[Any, Any, int]] = []
    for batch in batches:
        if waiting and not _fit(waiting[-1], batch):
            yield _join(waiting)
            waiting = []
        waiting.append(batch)
        if sum(size for _, _, size in waiting) >= BATCH:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _fit(one: tuple[Any, Any, int], other: tuple[Any, Any, int]) -> bool:
    pairs = [tree_leaves(batch[:2]) for batch in (one, other)]
    if len(pairs[0]) != len(pairs[1]):
        return False
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() and b.dim() and a.shape[1:] == b.shape[1:]
        and len(a) == one[2] and len(b) == other[2]
        for a, b in zip(*pairs, strict=True) if a is not None
    )  # fmt: skip


def _join(batches: Sequence[tuple[Any, Any, int]]) -> tuple[Any, Any, int]:
    if len(batches) == 1:
        return batches[0]
    joined = tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0],
                      *[batch[:2] for batch in batches])  # fmt: skip
    return *joined, sum(size for _, _, size in batches)
