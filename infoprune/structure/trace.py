"""`trace`: find the channel groups of a model in one pass on shapes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from infoprune.errors import PlanError, TraceError
from infoprune.inputs import Examples, Inputs, check_form
from infoprune.structure.collector import collector_paused
from infoprune.structure.groups import Structure
from infoprune.structure.plan import PruningPlan
from infoprune.structure.surgery.history import plan_of
from infoprune.structure.tracing.examples import in_words, tensors_of
from infoprune.structure.tracing.frozen import freeze_modules, freeze_patterns, frozen_names
from infoprune.structure.tracing.session import TraceSession
from infoprune.structure.validation.dry_run import dry_run
from infoprune.structure.validation.traced_model import TracedModel


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    frozen: Sequence[str | nn.Module] = (),
    follow: Mapping[str, str | None] | None = None,
) -> Structure:
    """Find the channel groups of a model and what each costs.

    The model runs once in eval mode on shapes alone (on real tensors where its control flow needs values) with labels
    attached to every tensor. Then probe plans are run dry, again on shapes, and whatever the model's code does not
    follow is frozen. Parameters that eval mode does not reach (auxiliary heads) are traced in train mode.
    Nothing of the model is changed: weights, buffers, train/eval flags, what its code keeps for the next call, random
    state.

    Args:
        model: any module; its device and dtype do not matter.
        example_inputs: a tensor (or a list), a tuple of positional or a dict of keyword arguments of ``forward``;
            several of these as :class:`infoprune.Examples`, where each takes other branches.
        frozen: modules, or patterns (as in shells) of module or parameter names, whose filters must all stay, e.g.
            ``"head"``, ``"layer1.*"``. A few channels right at an input or output, as many as that has (colours), stay
            anyway; ``"!layer1"`` lets those of a layer go.
        follow: path of each copy within the model -> path of its original; a copy loses what its original loses;
            None instead of an original: the copy stays as it is.

    Returns:
        The structure: groups, reasons, cost model.

    Raises:
        TraceError: the model's forward fails on the example inputs.
        ConfigurationError: a pattern of ``frozen`` matches nothing.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> structure = trace(net, torch.zeros(1, 3, 8, 8))
        >>> [(group.name, group.size) for group in structure.prunable]
        [('0', 8)]
    """
    with collector_paused():  # until the recorded passes are gone, which it would walk over
        traced = traced_model(model, example_inputs, frozen, follow)
        if traced.session.on_shapes:
            structure = traced.validate()
            del traced
            return structure
    return traced.validate()


def traced_model(
    model: nn.Module,
    example_inputs: Inputs,
    frozen: Sequence[str | nn.Module] = (),
    follow: Mapping[str, str | None] | None = None,
) -> TracedModel:
    """Trace a model without a dry run of any plan; errors are those of `trace`.

    Args:
        model: the model.
        example_inputs: see `trace`.
        frozen: see `trace`.
        follow: see `trace`.

    Returns:
        The structure, with the recorded session that a dry run repeats.
    """
    check_form(example_inputs)
    with collector_paused():
        session = TraceSession(model, example_inputs, follow)
        _check_entries(example_inputs)
        session.narrow_too.update(plan_of(model).removed)  # what was cut before is no colour
        freeze_patterns(session, frozen_names(model, frozen))
        freeze_modules(session)
        traced = TracedModel(session)
        prunable = traced.structure.prunable
    if session.unreached and prunable:
        warnings.warn(
            f"{', '.join(session.unreached)}: not reached by the example inputs, so left as wide as before; where it "
            "reads a layer that is cut it will fail. Give further example inputs that reach it, "
            "infoprune.Examples(first, second), or freeze those layers",
            stacklevel=3,
        )
    return traced


def check_plan(model: nn.Module, example_inputs: Inputs, structure: Structure, plan: PruningPlan) -> None:
    """Run a plan dry on shapes, without touching the model.

    `trace` runs probe plans dry, which nearly always speak for all plans; this checks the given one.

    Args:
        model: the model that ``structure`` was traced from.
        example_inputs: as for `trace`.
        structure: its channel groups.
        plan: the plan to try.

    Raises:
        PlanError: the model's code does not follow the plan; names the operator.
    """
    session = TraceSession.resume(model, example_inputs, structure.space, structure.passes)
    conflicts = dry_run(session, structure, plan)
    if conflicts:
        first = conflicts[0]
        where = f" ({structure.records[first.op]})" if first.op >= 0 else ""
        raise PlanError(f"the model cannot follow this plan: {first.reason}{where}; freeze that layer")


def _check_entries(example_inputs: Inputs) -> None:
    """Refuse an empty tensor as a model's first input: no cost and no proof would hold for others."""
    for inputs in example_inputs.inputs if isinstance(example_inputs, Examples) else [example_inputs]:
        if any(not tensor.numel() for tensor in tensors_of(inputs)[:1]):
            raise TraceError(
                f"the example inputs {in_words(inputs)} hold no example: the first tensor has a dimension of size 0; "
                "give at least one entry along each dimension"
            )
