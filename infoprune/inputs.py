"""Example inputs of a model in all their forms, and running the model on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_leaves
from torch.utils.data import DataLoader, Dataset

from infoprune.errors import ConfigurationError, TraceError
from infoprune.values import without_values


class ModelCall(ABC):
    """Example inputs that say themselves how a model is run on them.

    Subclasses are pytree nodes, so that their tensors can be moved like those of a tuple.
    """

    @abstractmethod
    def __call__(self, model: nn.Module) -> Any:
        """Run the model and return what it returns."""

    @property
    @abstractmethod
    def arguments(self) -> list[Any]:
        """Return the values that the model is run on."""


@dataclass(frozen=True)
class Arguments(ModelCall):
    """Positional and keyword arguments of one call.

    Example:
        >>> import torch
        >>> call_model(nn.Bilinear(2, 3, 1), Arguments((torch.zeros(1, 2),), {"input2": torch.zeros(1, 3)})).shape
        torch.Size([1, 1])
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        """Run the model on the arguments."""
        return model(*self.args, **self.kwargs)

    @property
    def arguments(self) -> list[Any]:
        """Return the positional arguments, then the keyword arguments."""
        return [*self.args, *self.kwargs.values()]


@dataclass(frozen=True)
class ByMode(ModelCall):
    """One kind of example inputs for eval mode, another for train mode.

    Attributes:
        evaluation: what the model is run on in eval mode.
        training: what it is run on in train mode.
    """

    evaluation: Inputs
    training: Inputs

    def __call__(self, model: nn.Module) -> Any:
        """Run the model on the inputs of its mode."""
        return call_model(model, self.training if model.training else self.evaluation)

    @property
    def arguments(self) -> list[Any]:
        """Return what the model is run on in eval mode."""
        return arguments_of(self.evaluation)


class Examples(ModelCall):
    """Several example inputs of one model, for code that takes another branch for each.

    All of them are run, in their order. A branch that any of them reaches is cut, counted and verified; a cost is the
    mean over all examples in them.

    Args:
        inputs: two or more example inputs, each in any of the forms that a single one may have.

    Raises:
        ConfigurationError: no inputs.

    Example:
        >>> import torch, infoprune
        >>> small, large = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 32, 32)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> [group.name for group in infoprune.trace(net, infoprune.Examples(small, large)).prunable]
        ['0']
    """

    def __init__(self, *inputs: Inputs) -> None:
        if not inputs:
            raise ConfigurationError("Examples() holds nothing: give it example inputs, Examples(first, second)")
        self.inputs = inputs

    def __call__(self, model: nn.Module) -> list[Any]:
        """Run the model on each and return what it returns, in order."""
        return [call_model(model, inputs) for inputs in self.inputs]

    @property
    def arguments(self) -> list[Any]:
        """Return the values that the model is run on first."""
        return arguments_of(self.inputs[0])

    def __repr__(self) -> str:
        return f"Examples{self.inputs}"


Inputs: TypeAlias = "Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | ModelCall"
"""Example inputs: one tensor (or list of tensors) as the only argument, a tuple of positional or a dict of keyword
arguments, or a `ModelCall`."""

register_pytree_node(Arguments, lambda call: ([call.args, call.kwargs], None), lambda parts, _: Arguments(*parts))
register_pytree_node(Examples, lambda call: (list(call.inputs), None), lambda parts, _: Examples(*parts))
register_pytree_node(ByMode, lambda call: ([call.evaluation, call.training], None), lambda parts, _: ByMode(*parts))


def arguments_of(inputs: Inputs) -> list[Any]:
    """Return the values that a model is run on.

    Args:
        inputs: the example inputs, in any form.
    """
    if isinstance(inputs, ModelCall):
        return inputs.arguments
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def holds_entries(argument: Any) -> bool:
    """Return whether an argument is a list or tuple with one entry for each example: an image, or a dict with one.

    Args:
        argument: one argument of the forward.
    """
    if not isinstance(argument, (list, tuple)) or not argument:
        return False
    return all(_is_image(entry) for entry in argument) or all(
        isinstance(entry, Mapping) and any(_is_image(value) for value in entry.values()) for entry in argument
    )


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def check_form(inputs: Inputs) -> None:
    """Refuse iterators, loaders and data sets as example inputs, which several runs of a model could not share.

    Args:
        inputs: the example inputs, in any form.

    Raises:
        TraceError: says what to give instead.

    Example:
        >>> try:
        ...     check_form(iter([]))
        ... except TraceError as error:
        ...     print(str(error).partition(":")[0])
        the example inputs are what one call of the model receives, not a list_iterator
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Iterator | DataLoader | Dataset):
            raise TraceError(
                f"the example inputs are what one call of the model receives, not a {type(leaf).__name__}: give "
                "tensors, such as next(iter(loader))[0], or infoprune.Examples for several calls"
            )


def advice_on(model: nn.Module, inputs: Inputs) -> str:
    """Return what to do about inputs on which a model has failed, as the end of a message; "" if nothing looks wrong.

    Args:
        model: The model.
        inputs: The inputs that it was called with.

    Example:
        >>> import torch
        >>> advice_on(nn.Linear(2, 3), torch.zeros(1, 2, dtype=torch.float64))
        '; the inputs are float64 and the model is float32: cast the inputs with .to(torch.float32)'
        >>> advice_on(nn.Linear(2, 3), None)
        '; give tensors as inputs, as torch.zeros(1, 3, 224, 224), not NoneType'
    """
    empty = without_values(model)
    if empty:
        return f"; {empty[0]} is on the meta device, where it has no values: load the weights first"
    leaves = tree_leaves(arguments_of(inputs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        if leaves and all(isinstance(leaf, int) for leaf in leaves):
            shape = ", ".join(map(str, leaves))
            return f"; a tuple holds the arguments of one call: for an input of that shape give torch.zeros({shape})"
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        how = "torch.from_numpy(array)" if kinds == "ndarray" else "torch.zeros(1, 3, 224, 224)"
        return f"; give tensors as inputs, as {how}, not {kinds}"
    own = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    given = {tensor.dtype for tensor in tensors}
    if own is None or own in given or any(isinstance(module, nn.Embedding) for module in model.modules()):
        return ""
    wrong, right = str(min(given, key=str)).removeprefix("torch."), str(own).removeprefix("torch.")
    return f"; the inputs are {wrong} and the model is {right}: cast the inputs with .to(torch.{right})"


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model on its inputs.

    Args:
        model: any module.
        inputs: a tuple of positional arguments, a dict of keyword arguments or a `ModelCall`; anything else, a list
            too, is the only argument.

    Example:
        >>> import torch
        >>> call_model(nn.Linear(2, 3), torch.zeros(1, 2)).shape, call_model(nn.Identity(), [1, 2])
        (torch.Size([1, 3]), [1, 2])
    """
    if isinstance(inputs, ModelCall):
        return inputs(model)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
