"""Change the shape of a fit's model, with optimizers, copies and the DDP wrapper."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from infoprune.callbacks.engine.held_match import Held, HeldModule, Replaced, put_back
from infoprune.distributed import check_processes
from infoprune.errors import SurgeryError
from infoprune.structure import PruningPlan, shrink
from infoprune.structure.surgery.held import held_optimizers, replace_held, with_wrapped
from infoprune.structure.surgery.transaction import Transaction
from infoprune.structure.tensors import owned_tensors

if TYPE_CHECKING:
    import lightning.pytorch as pl


def shrink_in_fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    plan: PruningPlan,
    held: Sequence[Held] = (),
    check: Callable[[Replaced], None] = lambda _: None,
) -> None:
    """Apply a plan to the LightningModule of a running fit, between two training epochs.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        plan: what is removed, by the LightningModule's names.
        held: copies outside of the model that follow, besides those of WeightAveraging.
        check: called on the cut model, with no old parameters; if it raises, the cut is undone.

    Raises:
        SurgeryError: an optimizer keeps state that cannot be cut, an averaged copy cannot follow, or another process
            failed; nothing was changed, on any process.
    """
    if plan.is_empty:
        return
    module.zero_grad(set_to_none=True)  # without validation, the last batch's gradients are still there
    with _cut(trainer, module, plan, held):
        check({})  # of large models, the old parameters are empty by now
        check_processes()  # if another process could not, none does
    _wrap_anew(trainer.strategy)
    if "torch._dynamo" in sys.modules:
        # Compiled code is recompiled for the new shapes, but only so often before it silently runs uncompiled.
        sys.modules["torch._dynamo"].reset()


def rehearse_in_fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    plan: PruningPlan,
    held: Sequence[Held],
    check: Callable[[Replaced], None],
) -> None:
    """Apply a plan as `shrink_in_fit` does, call a function on the cut model, and undo the cut in any case.

    The DDP wrapper stays: nothing is trained in between, and the parameters come back that it knows. Their memory
    stays where it is.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        plan: what is removed, by the LightningModule's names.
        held: copies outside of the model that follow.
        check: called on the cut model, with its old parameters and what replaces each.

    Raises:
        SurgeryError: the cut, or what is called, fails.
    """
    with suppress(_Over), _cut(trainer, module, plan, held, saves_memory=False) as replaced:
        check(replaced)
        raise _Over


class _Over(Exception):
    """The end of a rehearsal."""


@contextmanager
def _cut(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    plan: PruningPlan,
    held: Sequence[Held],
    saves_memory: bool = True,
) -> Iterator[Replaced]:
    """Cut the model and all that follows it, and yield what was replaced by what; undo it if the block fails."""
    copies = averaged_copies(trainer)
    optimizers = with_wrapped([*trainer.optimizers, *held_optimizers(module)])  # some projects step their own
    changed = [module, *copies, *(entry.module for entry in held if isinstance(entry, HeldModule))]
    with Transaction(changed, optimizers, saves_memory) as current, put_back(held):
        replaced = shrink(module, plan, optimizers, transaction=current)
        replace_held(module, replaced)
        for copy in copies:
            shrink(copy, plan, transaction=current)
        for entry in held:
            entry.shrink(plan, replaced, current)
        yield replaced


def _wrap_anew(strategy: Any) -> None:
    """Take the model out of its DDP wrapper and put it into a new one, which knows the new parameters.

    A reducer that is left with the old ones fails in the next iteration; with ``find_unused_parameters`` it silently
    stops averaging gradients.
    """
    wrapper = strategy.model
    if not isinstance(wrapper, DistributedDataParallel):
        return
    wrapper._remove_autograd_hooks()
    strategy.model = strategy.lightning_module
    del wrapper
    if hasattr(strategy, "_pl_static_graph_delay_done"):
        strategy._pl_static_graph_delay_done = False
    strategy.configure_ddp()  # with the user's own arguments and communication hooks; broadcasts rank 0's weights


def averaged_copies(trainer: pl.Trainer) -> list[nn.Module]:
    """Return the copies of the LightningModule that WeightAveraging and StochasticWeightAveraging callbacks hold.

    Args:
        trainer: the Trainer.
    """
    averages = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    copies = (average.module if isinstance(average, AveragedModel) else average for average in averages)
    return [copy for copy in copies if type(copy) is type(trainer.lightning_module)]


def in_names_of(root: nn.Module, network: nn.Module, path: str, plan: PruningPlan) -> PruningPlan:
    """Rewrite a plan for a submodule as a plan for the module that contains it.

    Args:
        root: the module that contains the network.
        network: the submodule that the plan is for.
        path: its path in ``root``.
        plan: what is removed, by the names within the network.

    Raises:
        SurgeryError: the plan cuts a tensor that is also used outside of the submodule.
    """
    if network is root:
        return plan
    inner = {name: entry for name, entry in owned_tensors(network).items() if name in plan.shapes}
    outer = {id(entry.tensor): entry for entry in owned_tensors(root).values()}
    names = {}
    for name, entry in inner.items():
        whole = outer[id(entry.tensor)]
        if len(whole.owners) > len(entry.owners):
            raise SurgeryError(
                f"{path}.{name} is shared with a part of the model outside of {path!r}, where nobody would notice that "
                "it shrinks: prune the module that contains both, or freeze the layer"
            )
        names[name] = whole.name
    return PruningPlan(
        {names[name]: dims for name, dims in plan.removed.items()},
        {names[name]: shape for name, shape in plan.shapes.items()},
        {f"{path}.{key}": values for key, values in plan.attributes.items()},
        tuple(f"{path}.{key}" for key in plan.caches),
    )
