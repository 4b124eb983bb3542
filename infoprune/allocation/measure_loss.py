"""Measure the loss of cutting each channel group alone, with batch norm renewed and outputs compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from infoprune.allocation.batch_statistics import BatchStatistics
from infoprune.allocation.curves import Round
from infoprune.allocation.divergence import NAMES, distances_for, scored
from infoprune.allocation.measured_batch import MeasuredBatch
from infoprune.allocation.sample import enough, sample
from infoprune.allocation.select import lowest_units
from infoprune.allocation.suffix import Prefix, advance, first_uses, resume
from infoprune.calibration import on_device, run
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
"""A group that costs more than this at half of its width on the first batch is measured at all levels, from half of its
width on with all images. Any other is measured at half of its width and below, on the first batch: near zero, few
images are enough."""

USUALLY_DEAR = 0.2
"""Share of the work that dear groups are expected to be, until the first batch tells."""

Quality = Callable[[nn.Module], float]
"""A user's own measure of a model; higher is better."""


class LossMeter:
    """Measure the loss of cut copies of a model against the model itself.

    The cuts are made in a copy, by setting the weights that read removed channels to zero. In the copy every batch norm
    normalises by the statistics of the current batch, as if they were measured again after the cut. The
    original's outputs are computed in the same way, so that an empty cut has no loss.

    On several processes pass the same data everywhere: each process measures every n-th group on all images, and all
    get the numbers that a single process would have found.

    Args:
        model: The model that ``structure`` was traced from. It is not changed.
        structure: Its channel groups.
        scores: Which units of a group go first: the lowest.
        data: Batches of training images.
        images: At most so many are used; None: 256, or fewer large ones (`enough`).
        evaluate: Measures the quality of a model instead of the distance of its outputs from the original's.
        owner: Who asks, for messages.

    Attributes:
        unit: The unit of the losses, in words.
        images: How many images are used.
        asked: How many were asked for.

    Raises:
        DataError: there is no image, or the outputs cannot be compared.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        scores: Scores,
        data: Iterable[Any],
        images: int | None,
        evaluate: Quality | None,
        owner: str,
    ) -> None:
        self.owner = owner
        self.groups = {group.name: group for group in structure.prunable if group.name in scores}
        self.model = snapshot(model)
        self._scores = scores
        self._tensors = {name: owned.tensor for name, owned in owned_tensors(self.model).items()}
        self._readers = {name: _readers(structure, group) for name, group in self.groups.items()}
        self._evaluate = evaluate
        behind = suffix_shares(structure)
        self._work = {name: behind[structure.producers(group)[0][0].name] for name, group in self.groups.items()}
        self._batches: list[MeasuredBatch] = []
        self.unit = "drop of the given quality"
        with self._ready():
            if evaluate is not None:
                self.images, self.asked, self._best = 0, 0, self._finite(evaluate(self.model), "the whole model")
                return
            inputs = list(sample(data, images, owner))
            self.images = sum(size for _, _, size in inputs)
            self.asked = images or enough(inputs[0][0], inputs[0][2])
            device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            on_model = [(on_device(device, x), y, size) for x, y, size in inputs]
            try:
                self._batches = self._laid_out(on_model, torch.channels_last)  # twice as fast on CPUs
            except DataError:  # code such as x.view(len(x), -1) needs the usual layout
                self._batches = self._laid_out(on_model, torch.contiguous_format)
        self.unit = " + ".join(dict.fromkeys(NAMES[distance] for distance in self._batches[0].distances))

    @property
    def information(self) -> float:
        """The loss of outputs without information about the images; infinite for a quality of the user's."""
        return math.inf if self._evaluate is not None else self._mean([batch.information for batch in self._batches])

    def work(self, levels: Mapping[str, Sequence[int]]) -> float:
        """Return the expected work of this process in a round, in runs of the whole model on all images.

        Args:
            levels: Group name -> the widths to measure it at.
        """
        mine = list(self.groups)[process() :: world_size()]
        runs = sum(self._work[name] * len(_from_middle(levels[name])) for name in mine if name in levels)
        first = self._batches[0].size / self.images if self._batches else 1.0
        return runs * (first + USUALLY_DEAR * (1 - first))

    def round(self, widths: Mapping[str, int], levels: Mapping[str, Sequence[int]], bar: Progress) -> Round:
        """Cut each group alone to each of its levels, in a model with these widths, and measure the loss.

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
            now = self._losses_now(widths)
            whole = self._mean(now)
            if process() == 0:
                losses[0, 0] = whole
            added = self._measured({name: levels[name] for name in names if name in mine and name in levels}, now, bar)
            for place, key in enumerate(table, 1):
                if key in added:
                    losses[:, place] = torch.tensor([whole + added[key], 1.0])
        losses, seen = sum_over_processes(losses)
        curves: dict[str, dict[int, float]] = {}
        for (name, width), loss, known in zip(table, losses[1:].tolist(), seen[1:].tolist(), strict=True):
            if known:
                curves.setdefault(name, {})[width] = loss
        return Round(dict(widths), losses[0].item(), curves)

    def _losses_now(self, widths: Mapping[str, int]) -> list[float]:
        """Return the loss of the copy's present widths on each batch, averaged over its images."""
        if self._evaluate is not None:
            return [self._best - self._finite(self._evaluate(self.model), "these widths")]
        if all(widths.get(name, group.size) == group.size for name, group in self.groups.items()):
            return [0.0] * len(self._batches)
        return [self._loss(batch, run(self.model, batch.inputs), "these widths") for batch in self._batches]

    def _measured(
        self, levels: Mapping[str, Sequence[int]], now: Sequence[float], bar: Progress
    ) -> dict[tuple[str, int], float]:
        """Return the loss that single cuts add to the present losses, by group and width."""
        if self._evaluate is not None:
            return self._evaluated(levels, now[0], bar)
        added: dict[tuple[str, int], float] = {}  # summed over images
        near: dict[str, list[int]] = {}
        left = self.work(levels)
        first, *rest = self._batches
        for name, prefix in self._walk(first, levels):
            middle = _middle(levels[name])
            added[name, middle] = self._added(name, middle, first, prefix, now[0])
            near[name] = _from_middle(levels[name])
            if added[name, middle] > DEAR * first.size:
                near[name] = list(levels[name])
            for width in near[name]:
                if width != middle:
                    added[name, width] = self._added(name, width, first, prefix, now[0])
            bar.advance(self._runs(name, near[name], first))
            left -= self._runs(name, near[name], first)
        dear = [name for name in near if added[name, _middle(levels[name])] > DEAR * first.size]
        upper = {name: [width for width in near[name] if width >= _middle(levels[name])] for name in dear}
        bar.expect(sum(self._runs(name, upper[name], batch) for batch in rest for name in dear) - left)
        for batch, loss in zip(rest, now[1:], strict=True):
            for name, prefix in self._walk(batch, dear):
                for width in upper[name]:
                    added[name, width] += self._added(name, width, batch, prefix, loss)
                bar.advance(self._runs(name, upper[name], batch))
        return {
            (name, width): total / (self.images if width in upper.get(name, ()) else first.size)
            for (name, width), total in added.items()
        }

    def _runs(self, name: str, levels: Sequence[int], batch: MeasuredBatch) -> float:
        """Return the work of measuring a group on a batch, in runs of the whole model on all images."""
        return self._work[name] * len(levels) * batch.size / self.images

    def _walk(self, batch: MeasuredBatch, names: Iterable[str]) -> Iterator[tuple[str, Prefix | None]]:
        """Yield groups in the order of their use, each with the run up to that use; None if there is no use."""
        prefix: Prefix | None = Prefix()
        for name in sorted(names, key=lambda name: batch.place(self._weights(name))):
            if batch.resumes and prefix is not None:
                prefix = advance(self.model, batch.inputs, prefix, self._weights(name))
            yield name, prefix

    def _added(self, name: str, width: int, batch: MeasuredBatch, prefix: Prefix | None, now: float) -> float:
        """Return the loss that cutting a group to a width adds on a batch, summed over its images."""
        if prefix is None:
            return 0.0  # the run never uses this group
        with self._cut({name: width}):
            outputs = resume(self.model, batch.inputs, prefix)
        return (self._loss(batch, outputs, f"{name} at {width} units") - now) * batch.size

    def _evaluated(
        self, levels: Mapping[str, Sequence[int]], now: float, bar: Progress
    ) -> dict[tuple[str, int], float]:
        assert self._evaluate is not None
        losses = {}
        for name, widths in levels.items():
            for width in widths:
                with self._cut({name: width}):
                    quality = self._finite(self._evaluate(self.model), f"{name} at {width} units")
                losses[name, width] = self._best - quality - now
            bar.advance(self._work[name] * len(widths))
        return losses

    def _mean(self, losses: Sequence[float]) -> float:
        """Return the mean over all images of what each batch lost."""
        sizes = [batch.size for batch in self._batches] or [1]
        return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)

    def _loss(self, batch: MeasuredBatch, outputs: Any, what: str) -> float:
        """Return the loss of a batch: the mean over its images, summed over the outputs."""
        found = scored(outputs)
        if [output.shape for output in found] != [output.shape for output in batch.outputs]:
            raise DataError(
                f"{self.owner}: how many outputs the model has, or their shapes, depends on their values ({what}), "
                "as with a detector's boxes: give the allocation an evaluate"
            )
        pairs = zip(batch.distances, batch.outputs, found, strict=True)
        total = sum(distance(original, changed).double().mean().item() for distance, original, changed in pairs)
        return self._finite(total, what)

    def _finite(self, value: float, what: str) -> float:
        if not torch.isfinite(torch.tensor(float(value))):
            raise DataError(f"{self.owner}: the outputs of the model with {what} are not finite; freeze that group")
        return float(value)

    def _laid_out(self, batches: Iterable[tuple[Any, Any, int]], layout: torch.memory_format) -> list[MeasuredBatch]:
        """Return batches of images in a memory layout, after the weights have taken it."""
        for parameter in self.model.parameters():
            parameter.data = _in_layout(parameter.data, layout)
        laid_out = [self._batch(tree_map(lambda leaf: _in_layout(leaf, layout), x), y, size) for x, y, size in batches]
        if not self._resumes_truly(laid_out[0]):
            for batch in laid_out:
                batch.resumes = False
        return laid_out

    def _batch(self, inputs: Any, targets: Any, size: int) -> MeasuredBatch:
        weights = (weight for name in self.groups for weight in self._weights(name))
        outputs, order = first_uses(self.model, inputs, weights)
        found = scored(outputs)
        if not all(output.numel() for output in found):
            raise DataError(
                f"{self.owner}: an output of the model is empty on the calibration images, as without boxes"
            )
        if not all(bool(torch.isfinite(output).all()) for output in found):
            raise DataError(f"{self.owner}: the outputs of the whole model are not finite on the calibration images")
        distances = distances_for(found, on_device(found[0].device, targets), size)
        return MeasuredBatch(inputs, size, found, distances, {key: place for place, key in enumerate(order)})

    def _resumes_truly(self, batch: MeasuredBatch) -> bool:
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
        """Let the copy compute as if these groups had so many units, until the end of the block."""
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


def _readers(structure: Structure, group: ChannelGroup) -> list[GroupSlot]:
    """Return the slots that read a group's channels; all of its slots if only activations are combined (attention).

    A channel that no layer reads has no effect. The weights that write it do not change, so that nothing divides by a
    norm of zeros, and layer norm keeps its scale.
    """
    made = {layer.weight: layer.dim for layer in structure.layers}
    readers = [slot for slot in group.slots if slot.tensor in made and slot.dim != made[slot.tensor]]
    return readers or list(group.slots)


def _middle(levels: Sequence[int]) -> int:
    """Return the level at half of a group's width, where the first is at three quarters of it.

    >>> _middle([12, 8, 4, 2]), _middle([12, 8])
    (8, 8)
    """
    return min(levels, key=lambda level: abs(level - levels[0] * 2 / 3))


def _from_middle(levels: Sequence[int]) -> list[int]:
    return [level for level in levels if level <= _middle(levels)]


def _in_layout(value: Any, layout: torch.memory_format) -> Any:
    """Return a tensor of images or of a 2D convolution in a memory layout, and any other value as it is."""
    return value.contiguous(memory_format=layout) if isinstance(value, Tensor) and value.dim() == 4 else value
