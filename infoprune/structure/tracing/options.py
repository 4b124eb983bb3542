"""Find the arguments by which operators choose what to compute: places, counts and modes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.scalars import comparable

Options: TypeAlias = tuple[Any, ...]

GIVEN_SIZES = frozenset({
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.expand", "aten.as_strided",
    "aten.zeros", "aten.ones", "aten.empty", "aten.full", "aten.rand", "aten.randn",
    "aten.new_zeros", "aten.new_ones", "aten.new_empty", "aten.new_full",
})  # fmt: skip
"""Operators that are told the sizes of what they make, all of them."""

_SIZES = GIVEN_SIZES | {
    "aten.unflatten", "aten.set", "aten.broadcast_to", "aten.permute", "aten.transpose", "aten.squeeze",
    "aten.unsqueeze",
    "aten.resize", "aten.randint", "aten.normal", "aten.empty_strided", "aten.empty_permuted", "aten.new_empty_strided",
    "aten.split", "aten.split_with_sizes", "aten.unsafe_split", "aten.unsafe_split_with_sizes", "aten.tensor_split",
    "aten.chunk", "aten.repeat", "aten.tile", "aten.repeat_interleave", "aten.roll", "aten.im2col", "aten.col2im",
    "aten.convolution", "aten.convolution_overrideable", "aten._convolution", "aten.mkldnn_convolution",
    "torchvision.deform_conv2d", "aten.native_layer_norm", "aten._fused_rms_norm", "aten.native_group_norm",
    "aten.channel_shuffle", "aten.native_channel_shuffle", "aten.affine_grid_generator",
    "aten.cudnn_affine_grid_generator", "aten._to_copy",
}  # fmt: skip
"""Operators whose numbers may be widths or numbers of groups, or order dimensions as PyTorch finds best."""

_ALONG_ONE = frozenset({"aten.slice", "aten.select", "aten.unfold"})
"""Operators that take places of one dimension; where channels lie along it, their labels tell."""


def options_in(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Options | None:
    """Return the options of an operator; one that changes when a model shrinks was computed from a width.

    Options are whole numbers, flags and words, such as the place of a slice, ``divisor_override`` and ``approximate``;
    floating-point factors are not, see `scalars_in`.

    Args:
        name: the operator, without its overload.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        The options in their order; None where sizes are among them, which the results tell.

    Example:
        >>> import torch
        >>> options_in("aten.rot90", (torch.zeros(1, 2, 2), 3, [1, 2]), {}), options_in("aten.view", ([4, 2],), {})
        ((3, 1, 2), None)
    """
    name = name.rstrip("_")
    if name in _SIZES:
        return None
    if name in _ALONG_ONE and labels_of(args[0]).axes[args[1] if len(args) > 1 else 0] is not None:
        return None
    if name == "aten.constant_pad_nd" and _pads_channels(labels_of(args[0]).axes, args[1]):
        return None
    return tuple(_plain(kwargs.values() if not args else (*args, *kwargs.values()) if kwargs else args))


def _pads_channels(axes: Sequence[Any], sizes: Sequence[int]) -> bool:
    return any(axis is not None and any(sizes[2 * i : 2 * i + 2]) for i, axis in enumerate(reversed(axes)))


def _plain(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (int, str)):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (comparable(item) for item in value if isinstance(item, (int, float, str)))


def changed_numbers(before: Options | None, after: Options | None) -> list[tuple[float, float]]:
    """Return the numbers among an operator's options, each in two passes.

    Args:
        before: the options in the traced pass.
        after: the options in a dry run.
    """
    pairs = zip(before or (), after or (), strict=False)
    return [(a, b) for a, b in pairs if not isinstance(a, (bool, str)) and not isinstance(b, (bool, str))]
