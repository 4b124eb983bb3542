"""Build the layers of a model as separate networks of any width, to time each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.calibration import evaluating
from infoprune.inputs import call_model

if TYPE_CHECKING:
    from infoprune.inputs import Inputs
    from infoprune.structure import Structure

Widths = Mapping[str, int]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LayerKind:
    """The properties of a layer, besides its widths, on which its time depends.

    Attributes:
        name: ``"conv"``, ``"depthwise"`` or ``"linear"``.
        options: Those of the module that shape its work: kernel size, stride, ...
        before: Sizes of the input in front of its channels, the batch first.
        behind: Sizes of the input behind its channels.
    """

    name: str
    options: tuple[tuple[str, Any], ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    def build(self, inputs: int, outputs: int) -> tuple[nn.Module, Tensor]:
        """Return a layer of this kind with so many input and output channels, and an input for it.

        Args:
            inputs: number of input channels.
            outputs: number of output channels.
        """
        options: dict[str, Any] = dict(self.options)
        if self.name == "linear":
            return nn.Linear(inputs, outputs, **options), torch.zeros(*self.before, inputs)
        groups = outputs if self.name == "depthwise" else options.pop("groups")
        inputs, outputs = (max(groups, width // groups * groups) for width in (inputs, outputs))
        module = CONVOLUTIONS[len(self.behind) - 1](inputs, outputs, groups=groups, **options)
        return module, torch.zeros(*self.before, inputs, *self.behind)

    def __str__(self) -> str:
        return f"{self.name} {dict(self.options)} on {self.before}, {self.behind}"


@dataclass(frozen=True)
class TimedLayer:
    """A layer of a model, and its width for given widths of the channel groups."""

    name: str
    kind: LayerKind
    inputs: Callable[[Widths], int]
    outputs: Callable[[Widths], int]


def timed_layers(model: nn.Module, structure: Structure, example_inputs: Inputs) -> list[TimedLayer]:
    """Return the convolutions and linear layers that a forward pass runs, once for each time that it does.

    Args:
        model: the model.
        structure: its channel groups.
        example_inputs: inputs of the shapes that count.
    """
    found: list[tuple[str, LayerKind]] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and (kind := _kind(module, tuple(args[0].shape))) is not None:
            found.append((names[module], kind))

    handles = [m.register_forward_pre_hook(note) for m in names if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    try:
        with evaluating(model), torch.no_grad():
            call_model(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    widths = _Dimensions(structure)
    layers = []
    for name, kind in found:
        weight = f"{name}.weight" if name else "weight"
        groups = 1 if kind.name != "conv" else dict(kind.options)["groups"]
        outputs = widths.of(weight, 0)
        inputs = outputs if kind.name == "depthwise" else widths.of(weight, 1, groups)
        layers.append(TimedLayer(name, kind, inputs, outputs))
    return layers


def _kind(module: nn.Module, shape: tuple[int, ...]) -> LayerKind | None:
    if isinstance(module, nn.Linear):
        return LayerKind("linear", (("bias", module.bias is not None),), shape[:-1], ())
    assert isinstance(module, CONVOLUTIONS)
    options = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
    options["bias"] = True  # batch norm behind it is folded into one where a model is deployed
    behind = shape[2:]
    if len(behind) != len(module.kernel_size):
        return None  # without a batch
    depthwise = module.groups > 1 and module.weight.shape[1] == 1
    if depthwise:
        del options["groups"]
    return LayerKind("depthwise" if depthwise else "conv", tuple(options.items()), shape[:1], behind)


class _Dimensions:
    """The sizes of weights as functions of the widths of the channel groups."""

    def __init__(self, structure: Structure) -> None:
        self.shapes = structure.shapes
        self.shares: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
        for group in structure.prunable:
            for slot in group.slots:
                each = len(slot.index) // group.size
                self.shares.setdefault((slot.tensor, slot.dim), []).append((group.name, group.size, each))

    def of(self, weight: str, dim: int, times: int = 1) -> Callable[[Widths], int]:
        """Return the function for a dimension of a weight, times a number."""
        whole = self.shapes[weight][dim]
        shares = self.shares.get((weight, dim), [])
        return lambda widths: (
            times * (whole - sum(each * (size - widths.get(name, size)) for name, size, each in shares))
        )
