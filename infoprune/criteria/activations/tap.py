"""Tap activations of layers, after normalisation and activation function, one batch at a time.

A torch function mode sees every call whatever the model's code looks like (modules, functional calls, in-place
activation functions). A layer's output is followed through the normalisation and the activation function right behind
it; where anything else takes it (an addition, say), it is handed over as it is at that point: a layer inside a
residual block gives its own activation, not the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from infoprune.calibration import batches, evaluating, run
from infoprune.distributed import all_or_none, mean_over_processes
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.structure import Layer

LAYER_CALLS = {
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
}
NORMALISATIONS = {F.batch_norm, torch.batch_norm, F.group_norm, F.layer_norm, F.instance_norm, F.local_response_norm}
_NAMES = """celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 relu_
rrelu selu sigmoid sigmoid_ silu softplus softshrink softsign tanh tanh_ threshold"""
ACTIVATION_FUNCTIONS = {
    getattr(home, name) for name in _NAMES.split() for home in (F, torch, Tensor) if hasattr(home, name)
}
FILTERS, NORMALISED, ACTIVATED = range(3)
"""How far an output has come."""

OnActivation = Callable[[str, Tensor], None]


@dataclass
class Pending:
    """A layer's output until it is a complete activation."""

    layer: str
    output: Tensor
    stage: int


class ActivationTap(TorchFunctionMode):
    """Pass each layer's activations to a function as soon as they are complete.

    Args:
        weights: Parameters of the layers and the layers' names.
        on_activation: Called with the layer's name and its activation; must not keep the tensor if memory matters, and
            must not change it. Called once for every call of the layer.
        until: How far to follow an output: :data:`ACTIVATED`, or :data:`NORMALISED` to stop before the activation
            function.
    """

    def __init__(
        self, weights: Mapping[nn.Parameter, str], on_activation: OnActivation, until: int = ACTIVATED
    ) -> None:
        super().__init__()
        self._until = until
        self._weights = {id(weight): name for weight, name in weights.items()}
        self._kernels: dict[int, tuple[Tensor, str]] = {}
        """By identity, the kernels that the model's code computes from a layer's weight, and the layer's name."""
        self._on_activation = on_activation
        self._pending: dict[int, Pending] = {}
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stage = NORMALISED if func in NORMALISATIONS else ACTIVATED if func in ACTIVATION_FUNCTIONS else FILTERS
        follows = self._follow(stage, args, kwargs)
        if self._pending and not is_query(func):
            self._hand_over_inputs(args, kwargs, keep=follows)
        output = func(*args, **kwargs)
        if follows is not None and isinstance(output, Tensor):
            self._pending[id(output)] = Pending(follows.layer, output, stage)
        elif func in LAYER_CALLS and (name := self._layer_of(args[1] if len(args) > 1 else kwargs.get("weight"))):
            self._pending[id(output)] = Pending(name, output, FILTERS)
        elif not is_query(func):
            self._note_kernels(args, kwargs, output)
        return output

    def _layer_of(self, weight: Any) -> str | None:
        """Return the layer whose weight this is, or is computed from (masks, weight standardisation, weight norm)."""
        return self._weights.get(id(weight)) or self._kernels.get(id(weight), (None, None))[1]

    def _note_kernels(self, args: Any, kwargs: Any, output: Any) -> None:
        """Record tensors computed from a layer's weight, which may be the layer's kernel."""
        names = [name for leaf in tree_leaves((args, kwargs)) if (name := self._layer_of(leaf))]
        for leaf in tree_leaves(output) if names else ():
            if isinstance(leaf, Tensor):
                self._kernels[id(leaf)] = leaf, names[0]

    def _follow(self, stage: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pending | None:
        """Return the output that this call normalises or activates, taken off the list."""
        if stage == FILTERS or stage > self._until:
            return None
        subject = args[0] if args else kwargs.get("input")
        pending = self._pending.get(id(subject))
        if pending is None or pending.stage >= stage:
            return None
        return self._pending.pop(id(subject))

    def _hand_over_inputs(self, args: Any, kwargs: Any, keep: Pending | None) -> None:
        """Pass on the activations that an operator is about to use or overwrite."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self._pending:
                self._hand_over(self._pending.pop(id(leaf)))

    def _hand_over(self, pending: Pending) -> None:
        self.seen.add(pending.layer)
        with torch._C.DisableTorchFunction():
            self._on_activation(pending.layer, pending.output)

    def finish(self) -> None:
        """Pass on the activations that no operator has used."""
        for pending in self._pending.values():
            self._hand_over(pending)
        self._pending.clear()
        self._kernels.clear()


def is_query(func: Any) -> bool:
    """Return whether a call only reads attributes such as ``x.shape``, which does not use a tensor."""
    return getattr(func, "__name__", "") in {"__get__", "size", "dim", "is_floating_point", "numel", "stride"}


def stream_activations(
    model: nn.Module,
    layers: Sequence[Layer],
    data: Iterable[Any],
    images: int | None,
    on_activation: OnActivation,
    caller: str,
    until: int = ACTIVATED,
) -> int:
    """Run calibration images through the model once and pass on every layer's activations, batch by batch.

    Memory is bounded by one batch. Cost: one forward pass for each image, plus what ``on_activation`` does.

    Args:
        model: Is run in eval mode without gradients; flags and random state are restored.
        layers: The layers to observe.
        data: Batches of images.
        images: How many images, or None for all.
        on_activation: Called with a layer's name and its activations as (images, channels, height, width); linear
            layers and sequences have a height of 1, and a width of 1 or the length.
        caller: Who asks, for messages.
        until: How far to follow an output, see :class:`ActivationTap`.

    Returns:
        Number of images seen by this process.

    Raises:
        ConfigurationError: a layer is never called (its activations cannot be observed).
        DataError: no images.
    """
    weights = {model.get_parameter(layer.weight): layer.name for layer in layers}
    kinds = {layer.name: layer.kind for layer in layers}
    tap = ActivationTap(weights, lambda name, output: on_activation(name, as_maps(output.detach(), kinds[name])), until)
    total = 0
    with all_or_none(), evaluating(model), torch.no_grad():
        for inputs, _, count in batches(model, data, images, caller):
            if count:
                with tap:
                    run(model, inputs)
                tap.finish()
                total += count
        for layer in layers:
            check_seen(layer, layer.name in tap.seen or not total, caller)
    return total


def mean_activations(
    model: nn.Module, layers: Sequence[Layer], inputs: Iterable[Any], caller: str
) -> dict[str, Tensor]:
    """Return layer name -> (channels,) mean activation over the images of all processes, positions and calls.

    Args:
        model: In eval mode, without gradients.
        layers: The layers to observe; one that is never called is left out.
        inputs: This process's batches.
        caller: Who asks, for messages.
    """
    weights = {model.get_parameter(layer.weight): layer.name for layer in layers}
    kinds = {layer.name: layer.kind for layer in layers}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, output: Tensor) -> None:
        means = as_maps(output, kinds[name]).mean(dim=(2, 3)).to("cpu", torch.float64)
        sums[name] = sums.get(name, 0) + means.sum(dim=0)
        counts[name] = counts.get(name, 0) + len(means)

    with all_or_none():
        for batch in inputs:
            tap = ActivationTap(weights, add)
            with tap:
                run(model, batch)
            tap.finish()
    return {layer: mean_over_processes(sums[layer], counts[layer]) for layer in sorted(sums)}


def check_seen(layer: Layer, seen: bool, caller: str) -> None:
    """Raise a ConfigurationError that names the layer if the calibration pass did not reach it.

    Args:
        layer: One that was to be observed.
        seen: Whether it was.
        caller: Who asks, for messages.
    """
    if not seen:
        raise ConfigurationError(
            f"{caller}: {layer.name} cannot be observed: no convolution or linear call of the forward pass uses its "
            "weight; freeze it or choose a data-free criterion such as 'l1'"
        )


def as_maps(output: Tensor, kind: str) -> Tensor:
    """Return a layer's output as (images, channels, height, width).

    Args:
        output: (N, C, ...) of a convolution, or (N, ..., C) of a linear layer.
        kind: ``"conv"`` or ``"linear"``.

    Example:
        >>> as_maps(torch.zeros(2, 7), "linear").shape, as_maps(torch.zeros(2, 5, 7), "linear").shape
        (torch.Size([2, 7, 1, 1]), torch.Size([2, 7, 1, 5]))
    """
    if kind == "linear":
        output = output.movedim(-1, 1)
    if output.dim() < 4:
        return output.reshape(*output.shape[:2], 1, -1)
    return output.reshape(*output.shape[:3], -1)


def per_filter(per_channel: Tensor, filters: int) -> Tensor:
    """Average over channels that share a filter (grouped transposed convolutions reuse filters group by group).

    Args:
        per_channel: (channels,) values.
        filters: number of filters.

    Returns:
        (filters,) means.
    """
    return per_channel.reshape(-1, filters).mean(dim=0)
