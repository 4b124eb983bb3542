"""The short cuts on shapes give what PyTorch's meta kernels give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infoprune.structure.tracing import meta_memory
from infoprune.structure.tracing.meta_kernels import kernel_of

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


X, Y, LAST = meta(2, 4, 6), meta(2, 4, 6), meta(2, 4, 6, 6).to(memory_format=torch.channels_last)
CASES: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (X, Y)),
    (aten.sub.Tensor, (LAST, LAST)),
    (aten.mul.Tensor, (X.transpose(1, 2), meta(2, 6, 4))),
    (aten.mul.Scalar, (X, 0.5)),
    (aten.div.Tensor, (X, Y)),
    (aten.gelu.default, (X,)),
    (aten.silu.default, (LAST,)),
    (aten._softmax.default, (X, -1, False)),
    (aten._safe_softmax.default, (X, -1)),
    (aten.masked_fill.Scalar, (X, meta(2, 4, 6, dtype=torch.bool), 0.0)),
    (aten.native_layer_norm.default, (X, [6], meta(6), meta(6), 1e-5)),
    (aten.native_layer_norm.default, (X, [4, 6], None, None, 1e-5)),
    (aten.native_batch_norm.default, (LAST, meta(4), meta(4), meta(4), meta(4), False, 0.1, 1e-5)),
    (aten.convolution.default, (meta(2, 4, 7, 6), meta(6, 2, 3, 3), meta(6), [2, 1], [1, 0], [1, 2], False, [0, 0], 2)),
    (aten.convolution.default, (meta(2, 4, 9), meta(6, 4, 3), None, [1], [1], [1], False, [0], 1)),
    (aten.upsample_bilinear2d.vec, (meta(2, 3, 5, 6), [7, 9], False, None)),
    (aten.upsample_nearest2d.vec, (meta(2, 1, 5, 6), [10, 12], None)),
    (aten.relu.default, (LAST,)),
    (aten.clamp.default, (X, None, 4.6)),
    (aten.clamp_min.default, (X, 1e-12)),
    (aten.cat.default, ([X, meta(2, 3, 6)], 1)),
    (aten.cat.default, ([meta(2), meta(3)],)),
    (aten.cat.default, ([X, Y], -1)),
    (aten.add.Tensor, (X, meta(6))),
    (aten.mul.Tensor, (meta(2, 4, 1, 1), meta(2, 4, 6, 6))),
    (aten.mul.Tensor, (LAST, meta(2, 4, 1, 1))),
    (aten.mean.dim, (meta(2, 4, 6, 6), [2, 3], True)),
    (aten.mean.dim, (X, [-1])),
    (aten.add_.Tensor, (meta(2, 4, 6), meta(6))),
    (aten.silu_.default, (meta(2, 4, 6),)),
    (aten.sigmoid_.default, (meta(2, 4, 6),)),
    (aten.tanh_.default, (LAST.clone(),)),
    (aten.sub_.Tensor, (meta(2, 4, 6), Y)),
    (aten.div_.Tensor, (meta(2, 4, 6), meta(6))),
    (aten.addmm.default, (meta(5), meta(2, 6), meta(6, 5))),
    (aten.mm.default, (meta(2, 6), meta(5, 6).t())),
    (aten.bmm.default, (X, X.transpose(1, 2))),
    (aten.sub.Tensor, (meta(3, 1, 4), meta(3, 4, 1))),
    (aten.add.Tensor, (meta(0, 1), meta(1, 6))),
    (aten.mul.Tensor, (meta(2, 5, 3, 4).permute(2, 0, 3, 1)[0], 0.5)),  # with holes
    (aten.gelu.default, (meta(4, 1).expand(4, 3),)),
    (aten.clone.default, (X.transpose(1, 2),)),
    (aten.clone.default, (meta(4, 1).expand(4, 3),)),
]


def on_shapes(func: Any, args: tuple[Any, ...]) -> Any:
    kernel = kernel_of(func)
    assert kernel is not None
    return kernel(args, {})


@pytest.mark.parametrize(("func", "args"), CASES, ids=[str(func) for func, _ in CASES])
def test_a_short_cut_gives_what_pytorch_gives(func: Any, args: tuple[Any, ...]) -> None:
    quick, usual = on_shapes(func, args), func(*args)
    pairs = [(quick, usual)] if isinstance(usual, torch.Tensor) else list(zip(quick, usual, strict=True))
    for ours, theirs in pairs[:1] if func is aten.native_batch_norm.default else pairs:  # eval mode saves nothing
        assert (ours.shape, ours.dtype, ours.is_meta) == (theirs.shape, theirs.dtype, True)
    wide = [d for d, size in enumerate(pairs[0][0].shape) if size > 1]
    assert [pairs[0][0].stride(d) for d in wide] == [pairs[0][1].stride(d) for d in wide]


def test_a_contiguous_copy_has_the_layout_that_pytorch_gives_it() -> None:
    kernel, last = kernel_of(aten.clone.default), torch.channels_last
    assert kernel is not None
    assert kernel((LAST,), {"memory_format": torch.contiguous_format}).stride() == LAST.contiguous().stride()
    assert kernel((LAST,), {"memory_format": torch.preserve_format}).stride() == LAST.stride()
    assert kernel((LAST,), {"memory_format": last}) is NotImplemented


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.add.Tensor, (meta(4, 2), meta(3, 2))),  # an error
        (aten.add.Tensor, (meta(4, 1), meta(3, 6))),  # another
        (aten.add.Tensor, (meta(4, 1, 3, 1).permute(2, 1, 0, 3), meta(1, 6, 1, 1))),  # a layout of its own
        (aten.bmm.default, (X, X)),  # an error
        (aten.mm.default, (meta(2, 6), meta(6, 5).double())),
        (aten.upsample_nearest2d.vec, (X[None], None, [2.0, 2.0])),  # the sizes are PyTorch's to find
        (aten.upsample_bilinear2d.vec, (LAST, [7, 9], False, None)),
        (aten.add_.Tensor, (meta(1, 6), meta(4, 6))),  # an error
        (aten.add.Tensor, (X, meta(2, 4, 6, dtype=torch.float64))),  # promotion
        (aten.add.Tensor, (X, torch.tensor(1.0))),  # a number of the model's code
        (aten._softmax.default, (meta(2, 3, dtype=torch.float16), -1, True)),  # another dtype
        (aten.addmm.default, (meta(5), meta(2, 6), meta(7, 5))),  # an error that is PyTorch's to raise
        (aten.native_layer_norm.default, (X, [5], meta(5), meta(5), 1e-5)),
        (aten.cat.default, ([X, meta(2, 3, 5)], 1)),  # an error
        (aten.cat.default, ([X, meta(0)], 1)),  # an old way to begin a list
        (aten.cat.default, ([LAST, LAST], 1)),  # another layout
        (aten.cat.default, ([X, Y.double()], 1)),
        (aten.convolution.default, (X, meta(6, 5, 3), None, [1], [1], [1], False, [0], 1)),  # too many channels
        (aten.convolution.default, (X, meta(6, 4, 9), None, [1], [1], [1], False, [0], 1)),  # wider than its input
        (aten.convolution.default, (LAST, meta(6, 4, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
        (aten.convolution.default, (X, meta(4, 6, 3), None, [1], [1], [1], True, [0], 1)),
        (aten.add.Tensor, (torch.ones(2), torch.ones(2))),  # real tensors
    ],
)
def test_what_is_not_plain_is_left_to_pytorch(func: Any, args: tuple[Any, ...]) -> None:
    assert on_shapes(func, args) is NotImplemented


def test_a_remembered_result_is_a_new_tensor_of_the_same_shape_dtype_and_layout() -> None:
    args = (LAST.to(torch.int64), meta(4, 1, 1, dtype=torch.int64))
    first, again = (meta_memory.run(aten.add.Tensor, args, {}) for _ in range(2))
    assert again is not first
    assert (again.shape, again.dtype, again.stride()) == (first.shape, first.dtype, first.stride())
    values, indices = (meta_memory.run(aten.topk.default, (X, 3), {}) for _ in range(2))
    assert [(t.shape, t.dtype) for t in values] == [(t.shape, t.dtype) for t in indices]


def test_equal_numbers_of_other_types_make_other_dtypes() -> None:
    x = meta(3, dtype=torch.int64)
    made = [meta_memory.run(aten.mul.Scalar, (x, number), {}).dtype for number in (1, 1.0, True)]
    assert made == [torch.int64, torch.float32, torch.int64]


def test_views_and_writes_in_place_are_not_remembered() -> None:
    for base in (meta(2, 3), meta(2, 3)):
        view = meta_memory.run(aten.transpose.int, (base, 0, 1), {})
        assert view._base is base
        assert meta_memory.run(aten.neg_.default, (base,), {}) is base


def test_an_operator_that_fails_on_shapes_fails_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broadcast"):
            meta_memory.run(aten.add.Tensor, (meta(4, dtype=torch.int64), meta(3, dtype=torch.int64)), {})
