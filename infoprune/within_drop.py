"""The smallest model whose quality drops by at most so much."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infoprune.allocation import InformationLoss
from infoprune.api import PruneResult, prune
from infoprune.calibration import as_batches, batches, evaluating, run
from infoprune.errors import BudgetError, ConfigurationError, DataError
from infoprune.inputs import Inputs
from infoprune.network_batches import NetworkBatches
from infoprune.registry import check_count, check_number

OWNER = "find_macs"

RECALIBRATION_BATCHES = 16


@dataclass(frozen=True)
class Trial:
    """A cut that was tried.

    Attributes:
        macs: Share of the multiply-accumulates that stays.
        drop: By how much the quality is lower than the original's; percentage points for accuracy.
        error: Standard error of the drop, from the images on which the two models differ; None where a function of the
            user's measures.
    """

    macs: float
    drop: float
    error: float | None

    def sure(self, max_drop: float) -> float | None:
        """Return the probability that the drop on all images of this kind is at most ``max_drop``.

        >>> Trial(0.5, 0.2, 0.15).sure(0.5)
        0.977
        """
        if self.error is None:
            return None
        if self.error == 0:
            return float(self.drop <= max_drop)
        return round(NormalDist(self.drop, self.error).cdf(max_drop), 3)


@dataclass(frozen=True)
class FoundMacs:
    """The deepest cut within a drop.

    Attributes:
        macs: Share of the multiply-accumulates to keep, for ``prune(macs=...)`` or ``FilterPruning(macs=...)``; 1 where
            no cut stays within.
        max_drop: What was allowed.
        trials: All cuts that were tried, the deepest first.
        allocation: What to pass on as ``allocation``, so that nothing is measured again.
    """

    macs: float
    max_drop: float
    trials: tuple[Trial, ...]
    allocation: Any

    def __str__(self) -> str:
        found = next((trial for trial in self.trials if trial.macs == self.macs), None)
        if found is None:
            return f"no cut that was tried stays within a drop of {self.max_drop:g}"
        sure = found.sure(self.max_drop)
        likely = "" if sure is None else f" ± {found.error:.2g}, {sure:.0%} sure to be within {self.max_drop:g}"
        return f"{self.macs:.1%} of the MACs: a drop of {found.drop:.2f}{likely}, before any training"


def find_macs(
    model: nn.Module,
    example_inputs: Inputs,
    max_drop: float,
    *,
    data: Iterable[Any],
    validation: Iterable[Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    steps: int = 6,
    **options: Any,
) -> FoundMacs:
    """Find the smallest share of the MACs at which a model loses at most ``max_drop`` of its quality.

    Copies of the model are cut, batch norm is measured anew, and the quality is compared with the original's. Nothing
    is trained, so fine-tuning brings the drop further down. The search halves the range, as if a deeper cut never did
    better.

    Args:
        model: The trained model. It is not changed.
        example_inputs: See :func:`infoprune.prune`.
        max_drop: Allowed drop: percentage points of accuracy, or what ``evaluate`` counts in.
        data: Batches of training images, for the widths and for batch norm.
        validation: Batches of other images with labels, for the accuracy.
        evaluate: Instead of ``validation``: a function of a model that returns its quality, higher is better.
        steps: Number of cuts to try.
        options: Further options of :func:`infoprune.prune`, such as ``criterion`` and ``frozen``.

    Raises:
        ConfigurationError: an option out of range, or neither or both of ``validation`` and ``evaluate``.
        DataError: ``validation`` holds no image, or no labels.

    Example:
        >>> import infoprune
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 6), nn.Flatten())
        >>> images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> labelled = [(images, net(images).argmax(1))]
        >>> found = find_macs(net, images[:1], 20, data=[images], validation=labelled, steps=3, criterion="l1")
        >>> result = infoprune.prune(net, images[:1], "l1", macs=found.macs, allocation=found.allocation)
    """
    check_number(OWNER, "max_drop", max_drop, 0)
    check_count(OWNER, "steps", steps, 1)
    if (validation is None) == (evaluate is None):
        raise ConfigurationError(f"{OWNER} needs one of validation (labelled batches) and evaluate (a function)")
    seen = NetworkBatches(as_batches(validation), example_inputs) if validation is not None else None
    before = evaluate(model) if evaluate else _right(model, seen)
    recalibrated = RECALIBRATION_BATCHES if _keeps_statistics(model) else 0
    if recalibrated:
        data = data if iter(as_batches(data)) is not as_batches(data) else list(islice(data, recalibrated))
    options = {"allocation": "auto", "recalibration_batches": recalibrated, **options}
    low, high, trials = 0.0, 1.0, []
    for _ in range(steps):
        macs = (low + high) / 2
        smaller = copy.deepcopy(model)
        try:
            result = prune(smaller, example_inputs, macs=macs, data=data, **options)
        except BudgetError:
            low = macs
            continue
        options = _reusing(options, result)
        trials.append(Trial(macs, *_drop(before, evaluate(smaller) if evaluate else _right(smaller, seen))))
        low, high = (low, macs) if trials[-1].drop <= max_drop else (macs, high)
    ordered = tuple(sorted(trials, key=lambda trial: trial.macs))
    return FoundMacs(high, max_drop, ordered, options["allocation"])


def _reusing(options: dict[str, Any], result: PruneResult) -> dict[str, Any]:
    """Return the options with the loss curves that a cut measured."""
    if result.curves is None:
        return options
    return {**options, "allocation": InformationLoss(curves=result.curves)}


def _keeps_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


def _drop(before: Tensor | float, after: Tensor | float) -> tuple[float, float | None]:
    """Return how much less the quality is, and the standard error of that."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        lost = 100 * (before - after)  # image by image: what both models get right or wrong says nothing
        error = lost.std(correction=1).item() / math.sqrt(len(lost)) if len(lost) > 1 else math.inf
        return lost.mean().item(), error
    return float(before) - float(after), None


def _right(model: nn.Module, data: Iterable[Any] | None) -> Tensor:
    """Return for each image whether the model classifies it rightly, as 0 or 1."""
    found = []
    with evaluating(model), torch.no_grad():
        for inputs, targets, _ in batches(model, data or (), None, OWNER):
            if not isinstance(targets, Tensor) or targets.dim() != 1:
                raise DataError(f"{OWNER}: validation needs a label for every image: give batches (images, labels)")
            found.append((run(model, inputs).argmax(1) == targets).double())
    return torch.cat(found).cpu()
