"""Run a training step without its side effects: `silenced`, and on meta tensors `shapes_as_values`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from infoprune.structure.module_state import without_loggers
from infoprune.structure.surgery.held import own_attributes


class _IdleOptimizer:
    """An optimizer that takes no step; its settings can be read."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.param_groups = [dict(group) for group in optimizer.param_groups]  # whose rates a step may set

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Return the optimizer's own class, which code asks for to tell kinds of optimizers apart."""
        return type(self._optimizer)

    def step(self, closure: Any = None, *_: Any, **__: Any) -> Any:
        """Evaluate the closure only."""
        return None if closure is None else closure()

    @property
    def optimizer(self) -> _IdleOptimizer:
        """Return itself, where Lightning's wrapper has the optimizer that it wraps."""
        return self

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    @contextmanager
    def toggle_model(self, *_: Any, **__: Any) -> Iterator[None]:
        """Do nothing."""
        yield


class _IdleScheduler:
    """A learning-rate scheduler that takes no step; its settings can be read."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Return the scheduler's own class, which code asks for to tell kinds of schedulers apart."""
        return type(self._scheduler)

    def step(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


@contextmanager
def silenced(module: Any) -> Iterator[None]:
    """Disable logging and optimization in a training step.

    Args:
        module: the LightningModule.
    """
    idle = [_IdleOptimizer(optimizer) for optimizer in module._trainer.optimizers] if module._trainer else []
    configs = module._trainer.lr_scheduler_configs if module._trainer else []
    schedulers = [_IdleScheduler(config.scheduler) for config in configs]
    stubs = {
        **dict.fromkeys(
            (
                "log",
                "log_dict",
                "clip_gradients",
                "print",
                "toggle_optimizer",
                "untoggle_optimizer",
            ),
            _nothing,
        ),
        "optimizers": lambda *_, **__: idle[0] if len(idle) == 1 else idle,
        "lr_schedulers": lambda: (schedulers[0] if len(schedulers) == 1 else schedulers) or None,
    }
    filled: list[Tensor] = []

    def backward_into_zeros(*_: Any, **__: Any) -> None:
        """Give parameters gradients of zero, for code that goes on with them."""
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
                filled.append(parameter)

    stubs["manual_backward"] = backward_into_zeros
    before = {name: vars(module)[name] for name in stubs if name in vars(module)}
    trainer, backward = module._trainer, Tensor.backward
    loggers = trainer.loggers if trainer else []
    vars(module).update(stubs)
    Tensor.backward = backward_into_zeros  # type: ignore[method-assign]
    if loggers:
        trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        with _tracking_silenced(), without_loggers(module.modules()), _trainer_as_it_was(trainer), _own_idle(module):
            yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]
        if loggers:
            trainer.loggers = loggers
        for name in stubs:
            vars(module).pop(name, None)
        vars(module).update(before)


@contextmanager
def _trainer_as_it_was(trainer: Any) -> Iterator[None]:
    """Restore the plain attributes of a Trainer and the settings of its optimizers: a step may tell it to stop."""
    optimizers = trainer.optimizers if trainer else []
    settings = (
        [vars(trainer), *(group for optimizer in optimizers for group in optimizer.param_groups)] if trainer else []
    )
    before = [{key: value for key, value in held.items() if isinstance(value, _PLAIN)} for held in settings]
    try:
        yield
    finally:
        for held, values in zip(settings, before, strict=True):
            held.update(values)


_PLAIN = (bool, int, float, str, type(None))


@contextmanager
def _own_idle(module: nn.Module) -> Iterator[None]:
    """Replace the optimizers and schedulers that a module holds itself by ones that take no step."""
    before = [(vars(part), name, value) for part, name, value in own_attributes(module)]
    idle = [(attributes, name, value, _idle(value)) for attributes, name, value in before]
    replaced = [entry for entry in idle if entry[2] is not entry[3]]
    for attributes, name, _, stand_in in replaced:
        attributes[name] = stand_in
    try:
        yield
    finally:
        for attributes, name, value, _ in replaced:
            attributes[name] = value


def _idle(value: Any) -> Any:
    """Return a stand-in for an optimizer or scheduler, or for a container of such; anything else as it is."""
    if isinstance(value, Optimizer):
        return _IdleOptimizer(value)
    if isinstance(value, LRScheduler):
        return _IdleScheduler(value)
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if not any(isinstance(item, Optimizer | LRScheduler) for item in items):
        return value
    if isinstance(value, dict):
        alike = copy.copy(value)
        alike.update({key: _idle(item) for key, item in value.items()})
        return alike
    stand_ins = [_idle(item) for item in value]
    return value._make(stand_ins) if hasattr(value, "_make") else type(value)(stand_ins)  # a named tuple has `_make`


@contextmanager
def _tracking_silenced() -> Iterator[None]:
    """Disable what a step logs past Lightning: by ``wandb.log``, by the present run's ``log``, or by MLflow."""
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    places = [(holder, "log") for holder in (wandb, getattr(wandb, "run", None)) if holder is not None]
    places += [(mlflow, name) for name in ("log_metric", "log_metrics") if mlflow is not None]
    before = [(vars(holder), name, vars(holder).get(name)) for holder, name in places]
    for holder, name in places:
        vars(holder)[name] = _nothing
    try:
        yield
    finally:
        for attributes, name, value in before:
            attributes.pop(name)
            if value is not None:
                attributes[name] = value


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


class _ValuesRead(TorchDispatchMode):
    """Read the value of a meta tensor as 1, and leave meta tensors on their device when they are copied."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


@contextmanager
def shapes_as_values(module: nn.Module) -> Iterator[None]:
    """Let a training step run on meta tensors: values read as 1, gradients and metrics are not computed.

    Args:
        module: the LightningModule.
    """
    grad = torch.autograd.grad
    metrics = [part for part in module.modules() if {"update", "compute"} <= set(dir(part))]
    before = [(part, {name: vars(part).get(name) for name in ("forward", "update", "compute")}) for part in metrics]
    torch.autograd.grad = lambda outputs, inputs, *_, **__: tuple(  # type: ignore[assignment]
        torch.zeros_like(tensor) for tensor in ([inputs] if isinstance(inputs, Tensor) else inputs)
    )
    for part in metrics:
        for name in ("forward", "update", "compute"):
            vars(part)[name] = lambda *_, **__: torch.zeros(())
    try:
        with _ValuesRead():
            yield
    finally:
        torch.autograd.grad = grad
        for part, values in before:
            for name, value in values.items():
                vars(part).pop(name, None)
                if value is not None:
                    vars(part)[name] = value
