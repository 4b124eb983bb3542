"""Run a LightningModule's training step once without side effects, and record what it runs and reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import register_pytree_node, tree_map_only
from torch.utils.hooks import RemovableHandle

from infoprune.callbacks.engine.idle_step import shapes_as_values, silenced
from infoprune.callbacks.engine.met_weights import MetWeights, WeightMeetings
from infoprune.callbacks.engine.outside_state import OutsideState
from infoprune.callbacks.engine.teachers import watching_teachers
from infoprune.callbacks.engine.undisturbed import undisturbed
from infoprune.callbacks.engine.written_storages import WrittenStorages, storage_of
from infoprune.inputs import Arguments, Inputs, ModelCall, call_model
from infoprune.structure.module_state import has_hooks
from infoprune.structure.tensors import owned_tensors

if TYPE_CHECKING:
    import lightning.pytorch as pl

STEP = "training_step"


@dataclass(frozen=True)
class CalledModule:
    """A module that the training step ran.

    Attributes:
        path: its path in the LightningModule.
        inputs: its arguments; None for modules that other modules call, whose activations would take much memory.
        within: paths of the modules whose forward was running.
        learns: whether gradients were on.
    """

    path: str
    inputs: Inputs | None
    within: tuple[str, ...]
    learns: bool = True


@dataclass
class WatchedStep:
    """What a training step did.

    Attributes:
        calls: the modules that it ran, in order.
        updated: names of the parameters and buffers that it wrote itself, without an optimizer.
        teachers: paths of the networks that are not trained and whose outputs the loss reads.
        met: the tensors that it compared with parameters, element by element.
        ran: identities of all modules that it ran, those outside of the LightningModule too.
    """

    calls: list[CalledModule] = field(default_factory=list)
    updated: set[str] = field(default_factory=set)
    teachers: list[str] = field(default_factory=list)
    met: MetWeights = field(default_factory=MetWeights)
    ran: set[int] = field(default_factory=set)

    def runs(self, part: nn.Module) -> bool:
        """Return whether the step ran a module or a part of it.

        Args:
            part: the module.
        """
        return any(id(inner) in self.ran for inner in part.modules())

    def inputs_of(self, path: str) -> Inputs | None:
        """Return the arguments of the first call of a module; None if it was not called.

        Args:
            path: its path in the LightningModule.
        """
        return next((call.inputs for call in self.calls if call.path == path), None)

    def passes_by(self, module: nn.Module, path: str) -> bool:
        """Return whether the step uses a network in other ways than one call of it.

        It does if it runs parts of the network on their own, or if the network has forward hooks, which may keep
        activations.

        Args:
            module: the LightningModule.
            path: path of the network.
        """
        prefix = f"{path}." if path else ""
        inside = {name for name, part in module.named_modules() if name.startswith(prefix) and _has_parameters(part)}
        direct = any(call.path in inside - {path} and path not in call.within for call in self.calls)
        return direct or any(map(has_hooks, module.get_submodule(path).modules()))


class TrainingStep(ModelCall):
    """Example inputs that run the training step of a LightningModule on a batch.

    Nothing is logged and no optimizer takes a step. On meta tensors, which have shapes only, a value reads as 1,
    gradients are tensors without values, and metrics are not updated.

    Args:
        batch: as the training step receives it.
        owner: the LightningModule, if the traced network is a part of it; None: the network is the LightningModule.
        undone: whether a call restores the lists, queues and objects that attributes lead to.
    """

    def __init__(self, batch: Any, owner: pl.LightningModule | None = None, undone: bool = False) -> None:
        self.batch = batch
        self.owner = owner
        self.undone = undone

    @property
    def arguments(self) -> list[Any]:
        """Return the batch."""
        return [self.batch]

    def __call__(self, model: nn.Module) -> Any:
        """Run the training step."""
        module: Any = model if self.owner is None else self.owner
        on_shapes = any(parameter.is_meta for parameter in module.parameters())
        with (
            OutsideState(module).restored() if self.undone else nullcontext(),
            silenced(module),
            shapes_as_values(module) if on_shapes else nullcontext(),
        ):
            wanted = inspect.signature(module.training_step).parameters
            batch = tree_map_only(Tensor, lambda tensor: tensor, self.batch)  # whose containers a step may change
            result = module.training_step(batch, *[0] * (len(wanted) > 1))
            return torch.zeros(()) if result is None else result  # manual optimization may return nothing


register_pytree_node(
    TrainingStep,
    lambda step: ([step.batch], (step.owner, step.undone)),
    lambda parts, others: TrainingStep(next(iter(parts)), *others),
)


def watch_training_step(
    trainer: pl.Trainer, module: pl.LightningModule, batch: Any, path: str | None = None
) -> WatchedStep:
    """Run the training step on a batch, record what it does, and restore weights, buffers and attributes.

    Args:
        trainer: the Trainer of the fit.
        module: its LightningModule.
        batch: a batch on the training device.
        path: a module whose inputs are wanted, besides those of the LightningModule and its children.

    Raises:
        Exception: whatever the training step raises.
    """
    watched = WatchedStep()
    owned = owned_tensors(module)
    with ExitStack() as stack:
        clones = stack.enter_context(undisturbed(module))
        stack.enter_context(_watching(module, watched, path))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(trainer.precision_plugin.train_step_context())
        homes = {name: storage_of(clone) for name, clone in clones.items()}
        written = stack.enter_context(WrittenStorages())
        groups = (group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        optimized = {id(parameter) for group in groups for parameter in group if parameter.requires_grad}
        trained = [clones[name] for name, entry in owned.items() if id(entry.tensor) in optimized]
        found_in = stack.enter_context(watching_teachers(module, trained))
        weights = [(name, entry.tensor) for name, entry in owned.items() if id(entry.tensor) in optimized]
        meetings = stack.enter_context(WeightMeetings([*weights, *((name, clones[name]) for name, _ in weights)]))
        # A step may take things out of its batch, or write into its tensors.
        result = TrainingStep(tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), batch))(module)
        watched.teachers = found_in(result)
        watched.met = meetings.summary(module, clones)
        now = owned_tensors(module)
        watched.updated = {
            name
            for name, entry in owned.items()
            if entry.is_parameter
            and (name not in now or storage_of(now[name].tensor) != homes[name] or homes[name] in written.found)
        }
    return watched


def modules_run(module: nn.Module, network: nn.Module, inputs: Inputs) -> set[str]:
    """Return the paths, in a module, of the modules that a network within it runs in eval mode.

    Args:
        module: the LightningModule.
        network: the part of it that is pruned.
        inputs: example inputs of the network.
    """
    watched = WatchedStep()
    with (
        undisturbed(module),
        _watching(module, watched),
        torch.no_grad(),
    ):
        module.eval()
        call_model(network, inputs)
    return {call.path for call in watched.calls}


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


@contextmanager
def _watching(module: nn.Module, watched: WatchedStep, wanted: str | None = None) -> Iterator[None]:
    """Record every module that runs, and the inputs of the outer ones."""
    running: list[str] = []
    handles: list[RemovableHandle] = []

    def enter(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = path.removesuffix("._orig_mod")  # of a compiled module
        outer = name == wanted or "." not in name or not running
        inputs = as_inputs(args, kwargs) if outer else None
        watched.calls.append(CalledModule(path, inputs, tuple(running), torch.is_grad_enabled()))
        running.append(path)

    def leave(*_: Any) -> None:
        running.pop()

    def forward(*args: Any, **kwargs: Any) -> Any:
        enter("", args, kwargs)
        try:
            return own_forward(*args, **kwargs)
        finally:
            leave()

    # Many training steps call self.forward(x), which runs no hook.
    own_forward, replaced = module.forward, vars(module).get("forward")
    handles.append(register_module_forward_pre_hook(lambda part, _: watched.ran.add(id(part))))
    vars(module)["forward"] = forward
    for path, part in module.named_modules():
        if path:
            before = functools.partial(_enter_hook, enter, path)
            handles.append(part.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        vars(module).pop("forward", None)
        if replaced is not None:
            vars(module)["forward"] = replaced


def _enter_hook(
    enter: Callable[..., None], path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    enter(path, args, kwargs)


def as_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """Return the arguments of a call as example inputs, without their gradients.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
    """
    # As plain tensors: subclasses, such as MONAI's, run code of their own.
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().as_subclass(Tensor).clone(), (args, kwargs))
    if kwargs:
        return Arguments(args, kwargs)
    return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args
