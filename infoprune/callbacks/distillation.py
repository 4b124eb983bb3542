"""`Distillation`: train the pruned model on the outputs of the unpruned one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from infoprune.callbacks._compat import DualNamespaceCallback
from infoprune.callbacks.distances import LOSSES, attention, check_alike, hint_distance, soft_targets
from infoprune.callbacks.distilled_step import DistilledStep, NetworkCall
from infoprune.callbacks.filter_pruning import FilterPruning
from infoprune.callbacks.trainer_checks import find_pruning
from infoprune.checkpoint import adapt
from infoprune.errors import CheckpointError, ConfigurationError, PlanError, nearest
from infoprune.registry import check_choice, check_number
from infoprune.snapshot import snapshot
from infoprune.structure import PruningPlan, plan_of

__all__ = ["Distillation", "attention", "soft_targets"]


class Distillation(DualNamespaceCallback):
    """Distil the unpruned model into the pruned one.

    Right before the first event of `FilterPruning` the network is copied: the copy is the teacher. From then on,
    whenever the training step runs the network, the teacher gets the same inputs, and the step's loss becomes
    ``(1 - weight) x loss + weight x distance``, with the distance to the teacher's outputs. Before that event, and in
    validation and test, the callback does nothing.

    The code of the LightningModule does not change: during a batch the callback wraps its ``training_step`` and
    observes its network. So precision, accumulation, clipping and DDP treat the loss as usual. The teacher is in eval
    mode, without gradients, outside of the LightningModule: it is in no optimizer and no averaged copy, and not among
    the saved weights. Checkpoints contain it in this callback's state, so that a resumed run has the same teacher;
    they grow by the size of the unpruned model.

    The callback's position in the list does not matter. Logged: ``distillation/loss`` of each step.

    Args:
        temperature: softens the class probabilities of ``kl``.
        weight: share of the distance in the loss, in [0, 1].
        loss: ``"kl"``: T² x the Kullback-Leibler divergence of the class probabilities at temperature T (dimension 1 of
            the outputs); ``"mse"``: mean squared difference of the outputs, for other than classifiers.
        output: where the network returns a tuple or a dict: index or key of the tensor to compare.
        hints: names of layers of the network whose activations, (N, C, ...), are compared too, by their attention
            maps; pruned layers may be among them.
        hint_weight: factor of the mean distance of the hints, which is added to the loss.
        module: where several `FilterPruning` callbacks prune parts of the model: the ``module`` of the one meant.

    Attributes:
        teacher: the copy, None before the first event.

    Raises:
        ConfigurationError: when a fit starts: no `FilterPruning`, or manual optimization; in the first step: outputs
            that are no tensors of equal shape, or a training step that does not run the network.
        CheckpointError: a checkpoint's teacher belongs to another architecture.

    Example:
        >>> callbacks = [FilterPruning("l1", macs=0.5, schedule=[2, 4]), Distillation(temperature=4.0, weight=0.5)]
    """

    def __init__(
        self,
        temperature: float = 4.0,
        weight: float = 0.5,
        *,
        loss: str = "kl",
        output: int | str | None = None,
        hints: Sequence[str] = (),
        hint_weight: float = 1.0,
        module: str | None = None,
    ) -> None:
        super().__init__()
        check_number("Distillation", "temperature", temperature, 1e-6)
        check_number("Distillation", "weight", weight, 0, 1)
        check_number("Distillation", "hint_weight", hint_weight, 0)
        check_choice("Distillation", "loss", loss, LOSSES)
        self.temperature = temperature
        self.weight = weight
        self.loss = loss
        self.output = output
        self.hints = (hints,) if isinstance(hints, str) else tuple(hints)
        self.hint_weight = hint_weight
        self.module = module
        self.teacher: nn.Module | None = None
        self._stored: dict[str, Any] | None = None
        self._step: DistilledStep | None = None

    def _pruning(self, trainer: pl.Trainer) -> FilterPruning:
        return find_pruning(trainer, self.module, "Distillation")

    # -- the teacher --------------------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._pruning(trainer)
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"Distillation adds to the loss that training_step returns, but {type(pl_module).__name__} optimizes "
                "by hand: add infoprune.callbacks.distillation.soft_targets(outputs, teacher_outputs, temperature) to "
                "the loss there, and leave Distillation out"
            )

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pruning = self._pruning(trainer)
        pruning.prepare(trainer, pl_module)
        if self._stored is None and not pruning.history:
            self.teacher = None  # of an earlier run
        # A fit that resumes behind the last batch of an epoch enters the next one without any epoch start.
        due = any(map(pruning.is_due, (trainer.current_epoch, trainer.current_epoch + 1)))
        self._copy_if(due or bool(trainer.fast_dev_run), pruning, pl_module)  # type: ignore[attr-defined]

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pruning = self._pruning(trainer)
        self._copy_if(pruning.is_due(trainer.current_epoch + 1), pruning, pl_module)

    def _copy_if(self, due: bool, pruning: FilterPruning, pl_module: pl.LightningModule) -> None:
        """Copy the network if an event may be next and nothing has been removed yet."""
        if due and not pruning.history and pruning.inputs is not None:
            self._check_hints(pruning.network(pl_module))
            self.teacher = snapshot(pruning.network(pl_module))
            if dist.is_available() and dist.is_initialized():
                for buffer in self.teacher.buffers():  # each process has had its own statistics
                    dist.broadcast(buffer, 0)

    def _check_hints(self, network: nn.Module) -> None:
        known = [name for name, _ in network.named_modules()]
        for name in self.hints:
            if name not in known:
                raise ConfigurationError(
                    f"Distillation: hints name {name!r}, which {type(network).__name__} does not have"
                    f"{nearest(name, known)}"
                )

    # -- teaching -----------------------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._leave()
        pruning = self._pruning(trainer)
        if self._stored is not None and pruning.inputs is not None:
            self.teacher, self._stored = _rebuilt(pruning.network(pl_module), self._stored), None
        if self.teacher is not None and pruning.history:
            self._step = DistilledStep(pl_module, pruning.wrapped_network(pl_module), pruning.network(pl_module), self)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._leave()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._leave()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._step is not None:
            self._step.end()
            self._step = None

    def distance(self, calls: Sequence[NetworkCall]) -> Tensor:
        """Return the weighted distance between student and teacher, of outputs and hints.

        Args:
            calls: the runs of the network within one training step; their distances are averaged.
        """
        assert self.teacher is not None
        parts = []
        for call in calls:
            with torch.no_grad(), _kept(self.teacher, self.hints) as theirs:
                output = self.teacher(*call.args, **call.kwargs)
            pairs = self._picked(call.output), self._picked(output)
            check_alike(*pairs)
            parts.append(self.weight * LOSSES[self.loss](*pairs, self.temperature))
            for name in self.hints:
                ours = call.activations.get(name)
                parts[-1] = parts[-1] + self.hint_weight / len(self.hints) * hint_distance(name, ours, theirs.get(name))
        return torch.stack(parts).mean()

    def _picked(self, output: Any) -> Tensor:
        """Return the tensor to compare among the outputs of the network."""
        found = output
        if self.output is not None:
            try:
                found = output[self.output]
            except (KeyError, IndexError, TypeError) as error:
                raise ConfigurationError(
                    f"Distillation: output={self.output!r} is not in the {type(output).__name__} that the network "
                    "returns"
                ) from error
        if not isinstance(found, Tensor):
            raise ConfigurationError(
                f"Distillation: the network returns a {type(found).__name__}; say with output=... which index or key "
                "of it holds the tensor to compare"
            )
        return found

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.teacher is None:
            return self._stored or {"teacher": None}
        return {"teacher": _tensors(self.teacher), "plan": plan_of(self.teacher).to_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.teacher = None
        self._stored = None if state_dict["teacher"] is None else state_dict


def _keep_in(where: dict[str, Any], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        where[name] = output

    return keep


@contextmanager
def _kept(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Record the outputs of some layers of a network within the block."""
    found: dict[str, Any] = {}
    handles = [network.get_submodule(name).register_forward_hook(_keep_in(found, name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, also those that a state dict leaves out."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _rebuilt(network: nn.Module, stored: Mapping[str, Any]) -> nn.Module:
    """Return the teacher of a checkpoint, made from a network of the same architecture, pruned or not."""
    teacher = snapshot(network)
    try:
        adapt(teacher, PruningPlan.from_dict(stored["plan"]))
    except PlanError as error:
        raise CheckpointError(f"the teacher in the checkpoint cannot be read: {error}") from error
    own = _tensors(teacher)
    difference = own.keys() ^ stored["teacher"].keys()
    if difference:
        raise CheckpointError(
            f"the teacher in the checkpoint belongs to another architecture: only one of them has {min(difference)}"
        )
    for name, tensor in own.items():
        if tensor.shape != stored["teacher"][name].shape:
            raise CheckpointError(
                f"the teacher in the checkpoint belongs to another architecture: {name} has shape "
                f"{tuple(stored['teacher'][name].shape)} there, {tuple(tensor.shape)} here"
            )
        tensor.detach().copy_(stored["teacher"][name])
    return teacher
