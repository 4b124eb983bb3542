"""Fit the layers that read a cut to their former outputs by least squares.

A layer whose inputs lost channels puts out something else. What its remaining inputs tell about its former outputs is
a linear regression, and its solution are the layer's new weights. Layer by layer from the first, each is fitted to the
inputs that the layers before it now give, so that errors do not add up. Nothing is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.allocation.batch_statistics import BatchStatistics
from infoprune.allocation.suffix import Prefix, advance, first_uses
from infoprune.calibration import as_batches, evaluating, on_device, run, split_batch
from infoprune.criteria.activations.suffix_replay import ReplayError
from infoprune.distributed import all_or_none, broadcast_from_first
from infoprune.errors import ConfigurationError, DataError
from infoprune.registry import check_count, check_number
from infoprune.regression import (
    AT_ONCE,
    Layer,
    batched,
    covariance,
    held,
    input_rows,
    is_regression,
    moments_of,
    output_rows,
)
from infoprune.structure import PruningPlan, plan_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

OWNER = "reconstruction"

RIDGE = 0.1
"""How strongly the fit holds on to the weights as they are, as a share of the mean variance of the inputs."""

POSITIONS = 30_000
"""Positions of the outputs that a layer is fitted on in each batch, about, drawn at random."""


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
    by ridge regression on the inputs that it gets now, at all of its calls. Layers that share their weights with
    another, and classes with a forward of their own, stay as they are. Batch norm uses the statistics of the batch
    meanwhile, in both models, so batches should not be small; measure them anew afterwards
    (:func:`infoprune.recalibrate`). A few hundred images are enough. That costs about one run of both models on them,
    two more for each layer that is called several times, the regressions, and memory for what both models hold at a
    layer. On several processes pass the same data everywhere: all do the same.

    Args:
        model: The pruned model.
        original: The model before the cut. It is not changed.
        data: Batches of training images, shown as in training; or a LightningDataModule after ``setup("fit")``.
        batches: How many to take; all of them by default.
        plan: What the cut removed from ``original``; by default all that ``model`` ever lost.
        ridge: How strongly weights are held where they are, relative to the mean variance of a layer's inputs.

    Raises:
        ConfigurationError: an option out of range, or a model that was never cut.
        DataError: there is no batch, or a layer's values are not finite. The model is as it was.

    Source: the least squares of He et al., "Channel Pruning for Accelerating Very Deep Neural Networks",
        arXiv 1707.06168, with the channels chosen beforehand.

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
    layers = readers(model, plan)
    before = {name: [tensor.clone() for tensor in _tensors(layer)] for name, layer in layers.items()}
    try:
        with evaluating(model), evaluating(original), torch.no_grad(), all_or_none():
            pairs = _pairs(model, data, batches)
            for name, calls in _in_order(model, layers, pairs[0]).items():
                _fit(name, calls, model, original, pairs, plan, ridge)
    except BaseException:
        for name, layer in layers.items():
            for tensor, values in zip(_tensors(layer), before[name], strict=True):
                tensor.data.copy_(values)
        raise


class _Pair:
    """A batch, and the recorded progress of both models on it."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.prefixes = {"model": Prefix(), "original": Prefix()}

    def inputs_of(self, name: str, model: nn.Module, which: str, calls: int) -> list[Tensor]:
        """Return what a layer gets, at its first use if it has one call, at all of them if it has more."""
        seen = self._at_all_calls(name, model) if calls > 1 else self._at_first_use(name, model, which)
        if not all(bool(torch.isfinite(inputs).all()) for inputs in seen):
            raise DataError(f"{OWNER}: the inputs of {name} are not finite")
        return seen

    def _at_all_calls(self, name: str, model: nn.Module) -> list[Tensor]:
        with _inputs_seen(model.get_submodule(name)) as seen:
            run(model, self.inputs)
        return seen

    def _at_first_use(self, name: str, model: nn.Module, which: str) -> list[Tensor]:
        """Run a model up to the first use of a layer."""
        layer = model.get_submodule(name)
        seen: list[Tensor] = []
        for prefix in (self.prefixes[which], Prefix()):  # from the start where the run cannot be resumed
            try:
                with _inputs_seen(layer) as seen:
                    reached = advance(model, self.inputs, prefix, [layer.weight])  # type: ignore[list-item]
            except ReplayError:
                continue
            if reached is None or not seen:
                return []
            if bool(torch.isfinite(seen[-1]).all()):
                self.prefixes[which] = reached
                break
        return seen[-1:]


@contextmanager
def _inputs_seen(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs that a layer gets in the block."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["input"])

    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def readers(model: nn.Module, plan: PruningPlan) -> dict[str, Layer]:
    """Return the layers that can be fitted and read channels that went, by name; none that share their weights.

    Args:
        model: the unpruned module.
        plan: what is removed.
    """
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        dims = plan.removed.get(f"{name}.weight", {})
        if dims.get(1) and is_regression(module):
            found[name] = module
    holders = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    return {name: layer for name, layer in found.items() if holders[id(layer.weight)] == 1}


def _tensors(layer: Layer) -> list[Tensor]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


def _pairs(model: nn.Module, data: Any, batches: int | None) -> list[_Pair]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    given: Iterable[Any] = as_batches(data)
    pairs = [_Pair(on_device(device, split_batch(batch, OWNER)[0])) for batch in islice(given, batches)]
    if not pairs:
        raise DataError(f"{OWNER}: the data hold no batch; pass batches of training images")
    return pairs


def _in_order(model: nn.Module, layers: dict[str, Layer], pair: _Pair) -> dict[str, int]:
    """Return how often a run calls each of the layers, in the order of their first use."""
    names = {id(layer.weight): name for name, layer in layers.items()}
    calls: Counter[int] = Counter()
    hooks = [
        layer.register_forward_pre_hook(lambda module, _: calls.update([id(module.weight)]))
        for layer in layers.values()
    ]
    try:
        with BatchStatistics():
            _, order = first_uses(model, pair.inputs, (layer.weight for layer in layers.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return {names[weight]: calls[weight] for weight in order}


def _fit(
    name: str, calls: int, model: nn.Module, original: nn.Module, pairs: list[_Pair], plan: PruningPlan, ridge: float
) -> None:
    """Fit a layer to its former outputs; one that is called several times to those of all calls."""
    layer: Layer = model.get_submodule(name)  # type: ignore[assignment]
    former = original.get_submodule(name)
    kept = torch.as_tensor(plan.kept(f"{name}.weight", 0), device=layer.weight.device)
    moments = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        with BatchStatistics():
            now, then = pair.inputs_of(name, model, "model", calls), pair.inputs_of(name, original, "original", calls)
        if not now or len(now) != len(then):
            return
        for inputs, outputs in zip(now, map(former, then), strict=True):
            moments = moments + _moments(layer, inputs, outputs, kept)
    if not moments[0, 0]:
        return
    weights = layer.weight.flatten(1).cpu().double()
    weight, bias = broadcast_from_first(_solve(moments, weights, ridge, layer.bias is not None))
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"{OWNER}: the values around {name} are not finite")
    layer.weight.data.copy_(weight.view_as(layer.weight))
    if bias is not None and layer.bias is not None:
        layer.bias.data.copy_(bias)


def _moments(layer: Layer, inputs: Tensor, outputs: Tensor, kept: Tensor) -> Tensor:
    """Sum the products of 1, inputs and outputs over positions: (1 + columns, 1 + columns + outputs) in float64."""
    inputs, outputs = batched(layer, inputs), batched(layer, outputs)
    columns = layer.weight[0].numel()
    total = torch.zeros(1 + columns, 1 + columns + len(kept), dtype=torch.float64)
    if inputs.numel():
        most = -(-POSITIONS // len(inputs))
        for some, wanted in zip(inputs.split(AT_ONCE), outputs.split(AT_ONCE), strict=True):
            rows, places = input_rows(layer, some, most)
            total += moments_of(rows, output_rows(layer, wanted, places)[:, kept])
    return total


def _solve(moments: Tensor, weight: Tensor, ridge: float, biased: bool) -> tuple[Tensor, Tensor | None]:
    """Return weights (outputs, columns) and biases of the ridge regression towards ``weight``.

    A layer without a bias is fitted up to a constant, which batch norm behind it takes away.
    """
    columns, means = weight.shape[1], moments[0, 1:] / moments[0, 0]
    cross = moments[1:, 1 + columns :] / moments[0, 0] - means[:columns, None] * means[columns:]
    square = covariance(moments, ridge)
    fitted = torch.linalg.solve(square, cross + held(moments, ridge) * weight.T).T
    return fitted, means[columns:] - fitted @ means[:columns] if biased else None
