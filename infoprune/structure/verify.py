"""`verify`: compare a shrunk model with the masked original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infoprune.errors import VerificationError
from infoprune.inputs import Inputs
from infoprune.structure.module_outputs import ModuleOutputs
from infoprune.structure.numeric_run import NumericRun
from infoprune.structure.plan import PruningPlan
from infoprune.structure.tensors import check_model, owned_tensors
from infoprune.structure.tracing.examples import tensors_of
from infoprune.values import check_values, without_values

TOLERANCE = 1e-8
"""What float64 keeps: on the models of `benchmarks/coverage.py` it errs by 1e-14 at most."""

FLOAT32_TOLERANCE = 1e-5
"""What float32 keeps on most models. A larger error says nothing yet: float64 decides."""


@dataclass(frozen=True)
class Verification:
    """The largest error of each output tensor, relative to that output's largest value.

    Attributes:
        errors: one number per output tensor, in order. Outputs that are no floating-point numbers must be equal: their
            error is 0 or infinite.
        tolerance: what counts as equal.
    """

    errors: tuple[float, ...]
    tolerance: float

    @property
    def max_error(self) -> float:
        """The largest of all errors."""
        return max(self.errors, default=0.0)

    @property
    def ok(self) -> bool:
        """Return whether there are outputs and every one is within the tolerance."""
        return bool(self.errors) and self.max_error <= self.tolerance


def verify(
    original: nn.Module, shrunk: nn.Module, plan: PruningPlan, example_inputs: Inputs, tolerance: float = TOLERANCE
) -> Verification:
    """Compare a shrunk model with the masked original, both in float64 and eval mode.

    In the masked original everything that the plan removes is zero; layer and group norms, which look at all channels
    at once, take their statistics over the channels that stay. Random numbers that the code draws are replaced by
    constants. Neither model is changed: each runs with other tensors for a while, and what its code keeps for the next
    call is computed anew.

    Weights that changed after the cut, by training or by reconstruction, are not those of the masked original, and
    neither are the outputs. To check such a cut, make it on a copy: ``infoprune.shrink(copy, plan)``.

    Args:
        original: the model before the cut.
        shrunk: the model after it.
        plan: what was removed.
        example_inputs: as for :func:`infoprune.trace`.
        tolerance: relative error that still counts as equal; of a model whose code cannot run in float64 at least
            what float32 explains.

    Returns:
        The error of each output; ``.ok`` says whether all are within the tolerance.

    Raises:
        PlanError: the plan does not belong to ``original``.
        ConfigurationError: a model or the inputs are on the meta device.

    Example:
        >>> import copy, infoprune
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> original, x = copy.deepcopy(net), torch.rand(1, 3, 8, 8)
        >>> plan = infoprune.prune(net, x, criterion="l1", filters=0.5).plan
        >>> verify(original, net, plan, x).ok
        True
    """
    for model in (original, shrunk):
        check_model(model)
        check_values(model, example_inputs, runs=True)
    try:
        return _verify(original, shrunk, plan, example_inputs, tolerance, double=True)
    except RuntimeError:
        if not _is_float32(original):
            raise
        # Some operators know float32 only, such as those of observers for quantisation.
        return _verify(original, shrunk, plan, example_inputs, max(tolerance, FLOAT32_TOLERANCE), double=False)


def _verify(
    original: nn.Module, shrunk: nn.Module, plan: PruningPlan, inputs: Inputs, tolerance: float, double: bool
) -> Verification:
    expected = NumericRun(original, inputs, double=double).masked(plan)
    actual = NumericRun(shrunk, inputs, double=double).plain(plan.caches)
    return _compared(expected, actual, tolerance)


def check_exact(model: nn.Module, plan: PruningPlan, example_inputs: Inputs) -> None:
    """Refuse a plan if the shrunk model would not compute what the masked model computes.

    The model runs twice on the example inputs, with masked and with shrunk tensors, in float32 where that is the dtype
    of its parameters. Errors that float32 does not explain, and all other dtypes, are decided in float64. The model is
    not changed. Inputs that are the same everywhere, such as zeros, would prove little: random numbers replace them.
    Models on the meta device have no values to compare and pass.

    Args:
        model: the model that the plan was made for, not yet cut.
        plan: what is to go.
        example_inputs: as for :func:`infoprune.trace`.

    Raises:
        VerificationError: the outputs differ; names the layer where the difference starts.
    """
    if plan.is_empty or without_values(model):
        return
    inputs = tree_map_only(Tensor, _lively, example_inputs)
    verification = None
    if _is_float32(model):
        run = NumericRun(model, inputs)
        verification = _compared(run.masked(plan), run.shrunk(plan), FLOAT32_TOLERANCE)
        if verification.ok:
            return
    try:
        double = NumericRun(model, inputs, double=True)
        run, verification = double, _compared(double.masked(plan), double.shrunk(plan), TOLERANCE)
    except RuntimeError:
        if verification is None:
            raise
        # The code runs in float32 only, which has decided.
    if verification.ok:
        return
    if any(tensor.is_floating_point() and bool(tensor.isnan().any()) for tensor in tensors_of(inputs)):
        raise VerificationError(
            "the cut cannot be proven exact, because the example inputs hold NaN. Nothing was changed; give finite ones"
        )
    if not verification.errors:
        raise VerificationError(
            "the cut cannot be proven exact: no tensor was found in what the model returns. Nothing was changed; "
            "verify=False cuts without the proof"
        )
    raise VerificationError(
        f"the cut is not exact: an output would differ from the masked model's by {verification.max_error:.2g} of its "
        f"largest value, and the difference starts in {_first_difference(run, plan)}. Nothing was changed. Freeze that "
        "layer and those that it reads, or cut without the proof: verify=False"
    )


def _compared(expected: Sequence[Tensor], actual: Sequence[Tensor], tolerance: float) -> Verification:
    if len(expected) != len(actual):
        return Verification((float("inf"),), tolerance)
    return Verification(tuple(_error(e, a) for e, a in zip(expected, actual, strict=True)), tolerance)


def _error(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(expected, actual) else float("inf")
    wide = torch.complex128 if expected.is_complex() else torch.float64
    expected, actual = (tensor.to_dense().to(wide) for tensor in (expected, actual))
    missing = expected.isnan() & actual.isnan()
    if missing.all():
        return float("inf")  # nothing was compared
    same = missing | (expected == actual)  # infinities too, whose difference is no number
    error = (expected - actual).abs().masked_fill(same, 0).max()
    scale = expected.abs().masked_fill(~expected.isfinite(), 0).max().clamp_min(torch.finfo(torch.float64).tiny)
    relative = (error / scale).item()
    return relative if relative == relative else float("inf")


def _is_float32(model: nn.Module) -> bool:
    dtypes = {entry.tensor.dtype for entry in owned_tensors(model).values()}
    return {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex} <= {
        torch.float32,
        torch.complex64,
    }


def _lively(tensor: Tensor) -> Tensor:
    """Replace an image, volume or sequence that is the same everywhere by random numbers."""
    if (
        tensor.dim() < 3
        or not tensor.is_floating_point()
        or not tensor.numel()
        or (tensor != tensor.flatten()[0]).any()
    ):
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)


def _first_difference(run: NumericRun, plan: PruningPlan) -> str:
    """Return the first module whose output is not the masked one's without the channels that go."""
    expected, actual = ModuleOutputs(), ModuleOutputs()
    run.masked(plan, expected)
    run.shrunk(plan, actual)
    for (name, before), (other, after) in zip(expected.summaries, actual.summaries, strict=False):
        if name != other:
            return f"the code around {name!r}, which runs other layers after the cut"
        if len(before) != len(after) or any(_error(b, a) > TOLERANCE for b, a in zip(before, after, strict=True)):
            return repr(name) if name else "the model's own forward"
    return "the model's own forward"
