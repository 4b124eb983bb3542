"""Compare criteria on the same model, budgets and images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from infoprune.allocation import Allocation, get_allocation
from infoprune.allocation.patterns import MinWidth
from infoprune.allocation.rounding import RoundTo
from infoprune.calibration import as_batches
from infoprune.criteria import Criterion, get_criterion
from infoprune.decide import Target, decide
from infoprune.errors import ConfigurationError
from infoprune.evaluate import Evaluate
from infoprune.inputs import Inputs
from infoprune.network_batches import NetworkBatches
from infoprune.recalibration import recalibrate
from infoprune.structure import check_plan, shrink, trace
from infoprune.structure.tensors import copied

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


@dataclass(frozen=True)
class Compared:
    """One criterion at one budget.

    Attributes:
        criterion: as it was given, in words; ``"none"`` is the model before any cut.
        keep: the budget: the share that was to stay.
        macs: share of the MACs that stayed.
        params: share of the parameters that stayed.
        figures: the measurements of the pruned model; the first entry is the main one.
        scoring_s: seconds that the criterion took to score the whole model, the same at every budget.
    """

    criterion: str
    keep: float
    macs: float
    params: float
    figures: Mapping[str, float]
    scoring_s: float


def compare(
    model: nn.Module,
    example_inputs: Inputs,
    criteria: Sequence[str | Mapping[str, Any] | Criterion],
    budgets: Sequence[float],
    evaluate: Evaluate,
    *,
    kind: str = "macs",
    allocation: str | Mapping[str, Any] | Allocation = "auto",
    round_to: RoundTo = "auto",
    min_width: MinWidth = 1,
    frozen: Sequence[str] = (),
    data: Iterable[Any] | LightningDataModule | None = None,
    recalibration: Iterable[Any] | LightningDataModule | None = None,
) -> list[Compared]:
    """Prune a copy of a model by each criterion to each budget, and measure it.

    Args:
        model: a trained model; it is not changed.
        example_inputs: the arguments of its forward.
        criteria: names, ``{"name": ..., options}`` or criteria. Each scores the model once.
        budgets: shares to keep, in (0, 1].
        evaluate: measures a model.
        kind: the unit of the budgets: ``"macs"`` or ``"params"``.
        allocation: how the cut is divided among the groups. An allocation that measures does so once, with the first
            criterion's scores. Only if its widths do not depend on scores do all criteria get the same widths, so that
            a difference is due to the criterion.
        round_to: widths are multiples of this; "auto": of 4, 8 or 16 in layers of at least 16, 64 or 128 filters, since
            other widths are slow in most runtimes.
        min_width: the fewest units a group keeps.
        frozen: patterns of layers whose filters all stay.
        data: batches for criteria that need data, or a LightningDataModule after ``setup("fit")``.
        recalibration: batches of training images, augmented as in training, to measure batch norm's statistics again
            after each cut; None keeps the old statistics.

    Returns:
        The model before, then criteria by budgets in the order given.

    Raises:
        ConfigurationError, BudgetError: as `infoprune.prune`.

    Example:
        >>> import torch
        >>> from infoprune.evaluate import output_change
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> images = torch.randn(2, 3, 8, 8)
        >>> rows = compare(net, images, ["l1", "random"], [0.5], output_change(net, images))
        >>> [(row.criterion, row.macs) for row in rows]
        [('none', 1.0), ('l1', 0.5), ('random', 0.5)]
    """
    if kind not in ("macs", "params"):
        raise ConfigurationError(f"kind={kind!r}: budgets are shares of 'macs' or 'params'")
    if not criteria or not budgets:
        raise ConfigurationError("nothing to compare: give at least one criterion and one budget")
    found = [get_criterion(criterion) for criterion in criteria]
    targets = [
        Target(keep if kind == "macs" else None, keep if kind == "params" else None, None, round_to, min_width)
        for keep in budgets
    ]
    batches = None if data is None else NetworkBatches(as_batches(data), example_inputs)
    structure = trace(model, example_inputs, frozen)
    chosen: Allocation | None = None
    rows = [Compared("none", 1.0, 1.0, 1.0, dict(evaluate(model)), 0.0)]
    for spec, criterion in zip(criteria, found, strict=True):
        start = time.perf_counter()
        scores = criterion(model, structure, batches)
        seconds = time.perf_counter() - start
        chosen = chosen or get_allocation(allocation).prepared(
            model, structure, batches, scores=scores, kind=kind, keep=min(budgets)
        )
        for keep, target in zip(budgets, targets, strict=True):
            plan = decide(model, structure, target, criterion, chosen, batches, scores=scores).plan
            check_plan(model, example_inputs, structure, plan)
            pruned = copied(model)
            shrink(pruned, plan)
            if recalibration is not None:
                recalibrate(pruned, NetworkBatches(as_batches(recalibration), example_inputs))
            macs, params = structure.cost_of(plan).ratio(structure.cost())
            rows.append(Compared(in_words(spec), keep, macs, params, dict(evaluate(pruned)), seconds))
    return rows


def in_words(spec: str | Mapping[str, Any] | Criterion) -> str:
    """Return a criterion as it was given, short enough for a legend.

    >>> in_words("l1"), in_words({"name": "capacity_independence", "balance": 0.3})
    ('l1', 'capacity_independence (balance=0.3)')
    """
    if isinstance(spec, Criterion):
        return spec.name or type(spec).__name__
    if isinstance(spec, str):
        return spec
    options = ", ".join(f"{name}={value}" for name, value in spec.items() if name != "name")
    return f"{spec.get('name')}" + (f" ({options})" if options else "")
