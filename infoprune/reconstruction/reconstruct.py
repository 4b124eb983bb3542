"""Fit the layers that read removed channels, in the order of their use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.allocation.batch_statistics import BatchStatistics
from infoprune.allocation.suffix import first_uses
from infoprune.calibration import as_batches, evaluating, on_device, split_batch
from infoprune.distributed import all_or_none, broadcast_from_first, process
from infoprune.errors import ConfigurationError, DataError
from infoprune.recalibration import tracked_norms
from infoprune.reconstruction.recorded_batch import OWNER, RecordedBatch
from infoprune.reconstruction.ridge import Solution, moments_on, solve, solve_behind_norm
from infoprune.registry import check_count, check_number
from infoprune.regression import MOST_COLUMNS, Layer, batched, columns_of, is_regression
from infoprune.structure import PruningPlan, plan_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

RIDGE = 0.1
"""Strength of the ridge penalty on changes of the weights, as a share of the mean variance of the inputs."""

POSITIONS = 16_000
POSITIONS_FOR_A_COLUMN = 8
"""Approximate number of output positions, drawn at random, on which a layer is fitted; and more for each column."""

ALONE, SUMMED = "", "+"
"""Markers of a layer's target: its own outputs, or a sum that they enter directly. No batch norm has such a name."""


def reconstruct(
    model: nn.Module,
    original: nn.Module,
    data: Iterable[Any] | LightningDataModule,
    batches: int | None = None,
    *,
    plan: PruningPlan | None = None,
    ridge: float = RIDGE,
) -> None:
    """Fit the layers whose inputs were cut to the outputs that they had in the original, in place.

    Convolutions (2-D, without groups) and linear layers are fitted one after the other in the order of their use, each
    by ridge regression on its present inputs, at all of its calls. A layer whose outputs are added to another tensor,
    directly or after batch norm, is fitted to the sum in the original: it compensates the error of the other summand,
    and that batch norm's weight and bias are fitted with it. Three kinds of layers do not change: layers with shared
    weights, layers that read more than 8,192 numbers per position, and subclasses with their own forward. During the
    fit, batch norm in both models uses the statistics of the current batch, so batches should not be small; measure the
    running statistics again afterwards (:func:`infoprune.recalibrate`). A few hundred images are enough. The cost is
    about two runs of both models on them, two more for each layer that is called several times, the regressions, and
    memory for the activations of both models at a layer. On several processes pass the same data to all: all do the
    same.

    Args:
        model: The pruned model.
        original: The model before the cut. It is not changed.
        data: Batches of training images, shown as in training; or a LightningDataModule after ``setup("fit")``.
        batches: Number of batches to use; all by default.
        plan: The channels that the cut removed from ``original``; by default all that ``model`` ever lost.
        ridge: Strength of the ridge penalty on changes of the weights, relative to the mean variance of a layer's
            inputs.

    Raises:
        ConfigurationError: an option out of range, or a model that was never cut.
        DataError: there is no batch, or a layer's values are not finite. The model is unchanged.

    Source: the least squares of He et al., "Channel Pruning for Accelerating Very Deep Neural Networks",
        arXiv 1707.06168, with the channels chosen beforehand, and their fit of residual branches (section 3.3).

    Example:
        >>> import copy, infoprune
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> original, images = copy.deepcopy(net), torch.randn(16, 3, 8, 8)
        >>> _ = infoprune.prune(net, images, "l1", filters=0.5)
        >>> before = (net(images) - original(images)).square().mean()
        >>> reconstruct(net, original, [images])
        >>> bool((net(images) - original(images)).square().mean() < before)
        True
    """
    check_number(OWNER, "ridge", ridge, 0)
    if batches is not None:
        check_count(OWNER, "batches", batches, 1)
    plan = plan_of(model) if plan is None else plan
    if plan.is_empty:
        raise ConfigurationError(f"{type(model).__name__} was never cut, so there is nothing to reconstruct")
    fit_readers(model, original, data, batches, plan, ridge)


def fit_readers(
    model: nn.Module,
    original: nn.Module,
    data: Iterable[Any] | LightningDataModule,
    batches: int | None,
    plan: PruningPlan,
    ridge: float = RIDGE,
    *,
    leave: Collection[str] = (),
) -> dict[str, nn.Module]:
    """Fit as `reconstruct` does, and return the fitted layers and batch norms, by name.

    Args:
        model: The pruned model.
        original: The model before the cut.
        data: Batches of training images.
        batches: How many to take; None: all.
        plan: The channels that the cut removed from ``original``.
        ridge: Strength of the ridge penalty on changes of the weights.
        leave: Names of layers and batch norms that are not fitted.

    Raises:
        DataError: there is no batch, or a layer's values are not finite. The model is as it was.
    """
    fit = _Fit(model, original, plan, ridge, leave)
    before = {name: [tensor.clone() for tensor in module.parameters(False)] for name, module in fit.adaptable.items()}
    try:
        with evaluating(model), evaluating(original), torch.no_grad(), all_or_none():
            return fit.run(_recorded(model, original, data, batches))
    except BaseException:
        for name, module in fit.adaptable.items():
            for tensor, values in zip(module.parameters(False), before[name], strict=True):
                tensor.data.copy_(values)
        raise


def readers(model: nn.Module, plan: PruningPlan) -> dict[str, Layer]:
    """Return the layers that read removed channels and can be fitted, by name; none with shared weights.

    Args:
        model: the pruned module.
        plan: the removed channels.
    """
    found: dict[str, Layer] = {}
    alone = _held_once(model)
    for name, module in model.named_modules():
        dims = plan.removed.get(f"{name}.weight", {})
        if dims.get(1) and is_regression(module) and columns_of(module) <= MOST_COLUMNS:
            found[name] = module
    return {name: layer for name, layer in found.items() if alone[id(layer.weight)]}


def _held_once(model: nn.Module) -> dict[int, bool]:
    holders = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    return {tensor: count == 1 for tensor, count in holders.items()}


def _recorded(model: nn.Module, original: nn.Module, data: Any, batches: int | None) -> list[RecordedBatch]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    given: Iterable[Any] = as_batches(data)
    recorded = [
        RecordedBatch(on_device(device, split_batch(batch, OWNER)[0]), {"model": model, "original": original})
        for batch in islice(given, batches)
    ]
    if not recorded:
        raise DataError(f"{OWNER}: the data hold no batch; pass batches of training images")
    return recorded


class _Fit:
    """The fit of a pruned model to its original, layer by layer."""

    def __init__(
        self, model: nn.Module, original: nn.Module, plan: PruningPlan, ridge: float, leave: Collection[str]
    ) -> None:
        self._model, self._original, self._plan, self._ridge = model, original, plan, ridge
        self._layers = {name: layer for name, layer in readers(model, plan).items() if name not in leave}
        self._still = {  # running means
            id(norm.running_mean)
            for which in (model, original)
            for name, norm in tracked_norms(which).items()
            if name in leave
        }
        alone = _held_once(model)
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and alone.get(id(module.weight))
            and name not in leave
        }

    @property
    def adaptable(self) -> dict[str, nn.Module]:
        """The layers and batch norms that may be written to, by name."""
        return {**self._layers, **self._norms}

    def run(self, recorded: list[RecordedBatch]) -> dict[str, nn.Module]:
        """Fit all layers, and return the fitted layers and batch norms.

        Args:
            recorded: the batches.
        """
        fitted: dict[str, nn.Module] = {}
        calls, order = self._calls(recorded[0])
        for name in broadcast_from_first(order):  # data that differ may take other ways through the model
            fitted |= self._fit(name, calls, recorded)
        return fitted

    def _calls(self, recorded: RecordedBatch) -> tuple[Counter[str], list[str]]:
        """Return how often a run calls each layer and batch norm, and the layers in the order of their first use."""
        names = {id(layer.weight): name for name, layer in self._layers.items()}
        calls: Counter[str] = Counter()
        hooks = [
            module.register_forward_pre_hook(lambda _module, _args, name=name: calls.update([name]))
            for name, module in self.adaptable.items()
        ]
        try:
            with BatchStatistics(self._still):
                _, order = first_uses(self._model, recorded.inputs, (layer.weight for layer in self._layers.values()))
        finally:
            for hook in hooks:
                hook.remove()
        return calls, [names[weight] for weight in order]

    def _fit(self, name: str, calls: Counter[str], recorded: list[RecordedBatch]) -> dict[str, nn.Module]:
        """Fit a layer to its former outputs, of all its calls."""
        layer = self._layers[name]
        kept = torch.as_tensor(self._plan.kept(f"{name}.weight", 0), device=layer.weight.device)
        positions = max(POSITIONS, POSITIONS_FOR_A_COLUMN * columns_of(layer)) / len(recorded)
        moments = torch.zeros((), dtype=torch.float64)
        kinds: set[str] = set()
        for batch in recorded:
            with BatchStatistics(self._still):
                targets, kind = self._targets(name, calls, batch, kept, follow=kinds != {ALONE})
            kinds.add(kind)
            for inputs, wanted in targets:
                most = math.ceil(positions / max(len(batched(layer, inputs)), 1))
                moments = moments + moments_on(layer, inputs, wanted, most)
        possible = len(kinds) == 1 and bool(moments.any()) and bool(moments[0, 0])
        behind = broadcast_from_first(kinds.pop() if possible else None)
        if behind is None:
            return {}
        return self._write(name, behind, self._solved(name, behind, moments) if process() == 0 else None)

    def _targets(
        self, name: str, calls: Counter[str], batch: RecordedBatch, kept: Tensor, follow: bool
    ) -> tuple[list[tuple[Tensor, Tensor]], str]:
        """Return inputs and target outputs of a layer, and the name of the batch norm after which the target lies.

        Args:
            name: the layer's.
            calls: how often a run calls each layer.
            batch: where to look.
            kept: the layer's units that stay.
            follow: whether to look for a sum that the outputs enter.

        Returns:
            A pair for each call. In place of a name, `ALONE` means that the targets are the layer's own outputs,
            `SUMMED` that they are a sum without a batch norm.
        """
        layer, former = self._layers[name], self._original.get_submodule(name)
        now, then = (batch.inputs_of(name, which, calls[name]) for which in ("model", "original"))
        if not now or len(now) != len(then):
            return [], ALONE
        dim = -1 if isinstance(layer, nn.Linear) else 1
        if follow and calls[name] == 1:
            mine, former_sum = batch.sum_behind(name, "model"), batch.sum_behind(name, "original")
            if mine is not None and former_sum is not None and len(mine.norm) == len(former_sum.norm):
                norm = self._norm_of(mine.norm, calls) if mine.norm else SUMMED
                if norm is not None:
                    whole = batched(layer, former_sum.own + former_sum.other).index_select(dim, kept)
                    return [(now[0], whole - batched(layer, mine.other))], norm
        wanted = [batched(layer, former(inputs)).index_select(dim, kept) for inputs in then]
        return list(zip(now, wanted, strict=True)), ALONE

    def _norm_of(self, parameters: tuple[Tensor, ...], calls: Counter[str]) -> str | None:
        """Return the name of the batch norm that holds some parameters, if it can be fitted."""
        for name, module in self._norms.items():
            if module.weight is parameters[0] and calls[name] == 1:
                return name
        return None

    def _solved(self, name: str, kind: str, moments: Tensor) -> Solution:
        """Return the solution of a layer's regression."""
        layer, norm = self._layers[name], self._norms.get(kind)
        weight = layer.weight.flatten(1).cpu().double()
        if norm is None:
            return solve(moments, weight, self._ridge, layer.bias is not None)
        return solve_behind_norm(moments, weight, self._ridge, norm.eps)

    def _write(self, name: str, kind: str, solution: Solution | None) -> dict[str, nn.Module]:
        """Write the first process's solution into a layer and the batch norm behind, and return these."""
        layer, norm = self._layers[name], self._norms.get(kind)
        written: dict[str, nn.Module] = {name: layer} if norm is None else {name: layer, kind: norm}
        tensors = [tensor for module in written.values() for tensor in (module.weight, module.bias)]
        for tensor, values in zip(tensors, broadcast_from_first(solution) or (), strict=False):
            if values is not None:
                if not bool(torch.isfinite(values).all()):
                    raise DataError(f"{OWNER}: the values around {name} are not finite")
                tensor.data.copy_(values.view_as(tensor))  # type: ignore[operator, arg-type]
        return written
