"""Find the smallest model whose quality drops by at most a given amount."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infoprune.allocation import InformationLoss
from infoprune.api import PruneResult, prune
from infoprune.calibration import as_batches, batches, evaluating, run
from infoprune.errors import BudgetError, ConfigurationError, DataError
from infoprune.inputs import Inputs
from infoprune.network_batches import NetworkBatches
from infoprune.recalibration import tracked_norms
from infoprune.registry import check_count, check_number
from infoprune.structure.tensors import copied

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

OWNER = "find_macs"

RECALIBRATION_BATCHES = 16


@dataclass(frozen=True)
class Trial:
    """One cut that was tried.

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

        Args:
            max_drop: the allowed drop.

        Example:
            >>> Trial(0.5, 0.2, 0.15).sure(0.5)
            0.977
        """
        if self.error is None:
            return None
        if self.error == 0:
            return float(self.drop <= max_drop)
        return round(NormalDist(self.drop, self.error).cdf(max_drop), 3)

    def described(self, max_drop: float) -> str:
        """Return the trial in words, with how sure it is.

        Args:
            max_drop: the allowed drop.

        Example:
            >>> print(Trial(0.5, 0.2, 0.15).described(0.5))
            50.0% of the MACs with a drop of 0.20 ± 0.15, 98% sure to be within 0.5
        """
        error = (
            ""
            if self.error is None
            else f" ± {self.error:.2g}, {self.sure(max_drop):.0%} sure to be within {max_drop:g}"
        )
        return f"{self.macs:.1%} of the MACs with a drop of {self.drop:.2f}{error}"


@dataclass(frozen=True)
class FoundMacs:
    """The deepest cut within an allowed drop.

    Attributes:
        macs: Share of the multiply-accumulates to keep, for ``prune(macs=...)`` or ``FilterPruning(macs=...)``; 1 where
            no cut stays within.
        max_drop: What was allowed.
        trials: All cuts that were tried, the deepest first.
        allocation: Pass it as ``allocation``, so that nothing is measured again.
    """

    macs: float
    max_drop: float
    trials: tuple[Trial, ...]
    allocation: Any

    @property
    def trial(self) -> Trial | None:
        """The cut that was found; None where no cut stays within."""
        return next((trial for trial in self.trials if trial.macs == self.macs), None)

    def __str__(self) -> str:
        if self.trial is not None:
            return self.trial.described(self.max_drop)
        mildest = "".join(f": {trial.described(self.max_drop)}" for trial in self.trials[-1:])
        return f"no cut that was tried stays within a drop of {self.max_drop:g}{mildest}"


def find_macs(
    model: nn.Module,
    example_inputs: Inputs,
    max_drop: float,
    *,
    data: Iterable[Any],
    validation: Iterable[Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    recover: Callable[[nn.Module], object] | None = None,
    steps: int = 6,
    **options: Any,
) -> FoundMacs:
    """Find the smallest share of the MACs at which a model loses at most ``max_drop`` of its quality.

    Copies of the model are cut by :func:`infoprune.prune`, with its options, batch norm is measured again, and the
    quality is compared with the original's. Nothing is trained unless ``recover`` does, so fine-tuning reduces the drop
    further. The bisection assumes that a deeper cut is never better.
    :func:`infoprune.prune` with ``max_drop`` searches and cuts in one call.

    Args:
        model: The trained model. It is not changed.
        example_inputs: See :func:`infoprune.prune`.
        max_drop: Allowed drop: percentage points of accuracy, or in the unit of ``evaluate``.
        data: Batches of training images, for the widths and for batch norm.
        validation: Batches of other images with labels, for the accuracy.
        evaluate: Instead of ``validation``: a function of a model that returns its quality, higher is better.
        recover: A function that briefly trains a cut copy, in place, before its quality is measured; the drop is
            then measured after this training.
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
    data = _repeatable(data)
    options = {"allocation": "auto", "recalibration_batches": _recalibrated(model), **options}
    low, high, trials = 0.0, 1.0, []
    for _ in range(steps):
        macs = (low + high) / 2
        smaller = copied(model)
        try:
            result = prune(smaller, example_inputs, macs=macs, data=data, **options)
        except BudgetError:
            low = macs
            continue
        options = _reusing(options, result)
        if recover is not None:
            recover(smaller)
        trials.append(Trial(macs, *_drop(before, evaluate(smaller) if evaluate else _right(smaller, seen))))
        low, high = (low, macs) if trials[-1].drop <= max_drop else (macs, high)
    ordered = tuple(sorted(trials, key=lambda trial: trial.macs))
    return FoundMacs(high, max_drop, ordered, options["allocation"])


def prune_within(
    model: nn.Module,
    example_inputs: Inputs,
    max_drop: float,
    data: Iterable[Any] | LightningDataModule | None,
    validation: Iterable[Any] | Callable[[nn.Module], float] | None,
    optimizers: Optimizer | Sequence[Optimizer],
    **options: Any,
) -> PruneResult:
    """Cut a model as deep as :func:`find_macs` finds, in place; see `infoprune.prune` for the arguments.

    Raises:
        ConfigurationError: ``data`` or ``validation`` is missing, or an option is out of range.
        BudgetError: no cut that was tried stays within the drop.
    """
    if data is None or validation is None:
        raise ConfigurationError(
            f"max_drop={max_drop:g} needs data, batches of training images for the widths, and validation, other "
            "images with labels or a function of a model that returns its quality"
        )
    data = _repeatable(data)
    options["recalibration_batches"] = options["recalibration_batches"] or _recalibrated(model)
    measured_by = {"evaluate" if callable(validation) else "validation": validation}
    found = find_macs(model, example_inputs, max_drop, data=data, **measured_by, **options)  # type: ignore[arg-type]
    if found.trial is None:
        raise BudgetError(f"{found}; allow a larger max_drop")
    options["allocation"] = found.allocation
    result = prune(model, example_inputs, macs=found.macs, data=data, optimizers=optimizers, **options)
    return replace(result, drop=found.trial)


def _recalibrated(model: nn.Module) -> int:
    return RECALIBRATION_BATCHES if tracked_norms(model) else 0


def _repeatable(data: Any) -> Iterable[Any]:
    """Return batches that can be gone through again; of an iterator, as many as batch norm is measured on."""
    given: Iterable[Any] = as_batches(data)
    return list(islice(given, RECALIBRATION_BATCHES)) if iter(given) is given else given


def _reusing(options: dict[str, Any], result: PruneResult) -> dict[str, Any]:
    """Return the options with the loss curves that a cut measured."""
    if result.curves is None:
        return options
    return {**options, "allocation": InformationLoss(curves=result.curves)}


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
