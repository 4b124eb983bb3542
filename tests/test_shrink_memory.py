"""Shrinking with little memory: a tensor that is given up for its parts comes back bit for bit."""

from __future__ import annotations

import ctypes
import gc
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import infoprune
from infoprune.errors import SurgeryError
from infoprune.structure.surgery import in_place_swap
from infoprune.structure.surgery.slicing import cut, cut_off, join
from tests import warm

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.complex128)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@st.composite
def losses(draw: st.DrawFn) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
    """A tensor of some type and memory layout, and what it loses."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(shape))))
    tensor = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).to(draw(st.sampled_from(DTYPES)))
    tensor = tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(len(shape))])
    removed = {}
    for dim in draw(st.permutations(range(len(shape)))):
        block = draw(st.sampled_from([b for b in range(1, shape[dim] + 1) if shape[dim] % b == 0]))
        gone = draw(st.sets(st.integers(0, shape[dim] // block - 1), max_size=shape[dim] // block - 1))
        removed[dim] = tuple(block * i + j for i in sorted(gone) for j in range(block))
    return tensor, removed


@given(losses(), st.sampled_from([1, 8, 1 << 19]), st.sampled_from([0, 20, 1 << 16]))
def test_what_stays_and_what_goes_make_up_the_whole(
    case: tuple[Tensor, dict[int, tuple[int, ...]]], size: int, small: int
) -> None:
    tensor, removed = case
    expected = tensor
    for dim, gone in removed.items():
        expected = expected.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i not in gone]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infoprune.structure.surgery.slicing.SLICE", size)
        patch.setattr("infoprune.structure.surgery.slicing.SMALL", small)
        stays, rests = cut(tensor, removed), cut_off(tensor, removed)
    assert torch.equal(stays, expected)
    assert stays.dtype == tensor.dtype
    assert stays.numel() + sum(rest.numel() for rest in rests) == tensor.numel()
    whole = join(stays, rests, tensor.to("meta"), removed)
    assert torch.equal(whole, tensor)
    assert whole.stride() == tensor.stride()


class Net(nn.Module):
    """Two layers into one product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.norm(self.stem(x)).relu()).relu()
        return self.left(x) * self.right(x)


def trained() -> tuple[Net, torch.optim.Optimizer]:
    """Channels last, two of the weights views of one tensor, a zero with a sign."""
    torch.manual_seed(0)
    net = Net().to(memory_format=torch.channels_last)
    both = torch.randn(2, 4, 16, 1, 1)
    net.left.weight, net.right.weight = nn.Parameter(both[0]), nn.Parameter(both[1])
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] = -0.0
    optimizer = torch.optim.AdamW(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    return net, optimizer


def everything(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors of a model and its optimizer."""
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None), *states]


def bits(tensors: list[Tensor]) -> list[tuple[object, ...]]:
    """Values, shape and layout of tensors, signs of zeros included."""
    return [(tuple(t.shape), t.stride(), t.detach().contiguous().view(-1).view(torch.uint8).tolist()) for t in tensors]


@pytest.mark.parametrize("beside", [0, 600, 1 << 27])
@pytest.mark.parametrize("where", ["every cut", "attributes", "state"])
def test_a_failure_leaves_everything_bit_for_bit(monkeypatch: pytest.MonkeyPatch, beside: int, where: str) -> None:
    monkeypatch.setattr(in_place_swap, "_room", lambda _, room=beside: room)
    net, optimizer = trained()
    plan = infoprune.trace(net, X).plan({"stem": [0, 5], "wide": [1, 2, 3, 4]})
    parameters, state, before = list(net.parameters()), optimizer.state_dict(), bits(everything(net, optimizer))

    def same() -> None:
        assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
        assert bits(everything(net, optimizer)) == before
        assert all(a.keys() == state["state"][n].keys() for n, a in optimizer.state_dict()["state"].items())
        assert net.stem.out_channels == 8

    if where == "state":
        optimizer.state[net.right.weight]["exp_avg_sq"] = torch.ones(3)
        before = bits(everything(net, optimizer))
        with pytest.raises(SurgeryError, match=r"exp_avg_sq.*right.weight"):
            infoprune.shrink(net, plan, optimizer)
        return same()
    if where == "attributes":
        failing = pytest.MonkeyPatch()
        failing.setattr("infoprune.structure.surgery.attributes.rewrite", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            infoprune.shrink(net, plan, optimizer)
        failing.undo()
        return same()
    total = 0
    while True:  # fail at the first cut, then at the second, ... until none is left to fail at
        total += 1
        left = total

        def failing_cut(*args: object) -> Tensor:
            nonlocal left
            left -= 1
            if left == 0:
                raise MemoryError("simulated")
            return cut(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(in_place_swap, "cut", failing_cut)
        try:
            infoprune.shrink(net, plan, optimizer)
        except MemoryError:
            same()
        else:
            break
    assert total > 20
    assert net.stem.out_channels == 6


def test_little_memory_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for beside in (0, 1 << 27):
        monkeypatch.setattr(in_place_swap, "_room", lambda _, room=beside: room)
        net, optimizer = trained()
        held, values = net.state_dict(), [t.clone() for t in net.state_dict().values()]
        old = dict(net.named_parameters())
        mapping = infoprune.shrink(net, infoprune.trace(net, X).plan({"stem": [0, 5], "wide": [1, 4]}), optimizer)
        assert [old[name] in mapping for name in ("stem.weight", "norm.bias", "left.bias")] == [True, True, False]
        emptied = {name for name, parameter in old.items() if parameter.numel() == 0}
        expected = {"stem.weight", "stem.bias", "norm.weight", "norm.bias", "wide.weight", "wide.bias"}
        assert emptied == (set() if beside else expected)  # not the two views
        assert all(torch.equal(a, b) for a, b in zip(held.values(), values, strict=True))  # the user's own
        results.append(bits(everything(net, optimizer)))
    assert results[0] == results[1]


@pytest.mark.parametrize("beside", [0, 1 << 27])
def test_sparse_tensors_are_cut_beside_the_old_ones(monkeypatch: pytest.MonkeyPatch, beside: int) -> None:
    monkeypatch.setattr(in_place_swap, "_room", lambda _: beside)
    net = nn.Module()
    net.register_buffer("table", torch.arange(12.0).reshape(4, 3).to_sparse())
    old = net.table
    infoprune.shrink(net, infoprune.PruningPlan({"table": {0: (1,)}}, {"table": (4, 3)}))
    assert net.table.is_sparse
    assert net.table.to_dense().tolist() == [[0, 1, 2], [6, 7, 8], [9, 10, 11]]
    assert old.shape == (4, 3)


@pytest.mark.parametrize("verify", [False, True])
def test_old_weights_are_freed_at_once_not_when_the_collector_runs(verify: bool) -> None:
    net = Net()
    old = [weakref.ref(parameter) for parameter in net.wide.parameters()]
    gc.collect()
    gc.disable()
    try:
        infoprune.prune(net, X, "l1", filters=0.5, verify=verify)
        assert [parameter() for parameter in old] == [None, None]
    finally:
        gc.enable()


MMAP_THRESHOLD = -3
"""The parameter of glibc's mallopt: from how many bytes on memory is asked for, and given back, by itself."""


def peak(beside: int) -> float:
    """MiB that shrinking eight layers of 16 MiB takes beyond the model; 9 MiB stay of each but the ends."""
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)  # what is freed is given back
    vars(in_place_swap)["_room"] = lambda _: beside
    net = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(8)))
    plan = infoprune.trace(net, torch.zeros(1, 2048)).plan({str(i): range(0, 2048, 4) for i in range(7)})

    def memory(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10

    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = memory("VmRSS")
    infoprune.shrink(net, plan)
    return memory("VmHWM") - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell the peak of memory")
def test_beyond_the_room_beside_the_model_a_tensor_at_a_time_is_cut() -> None:
    with warm.CONTEXT.Pool(1) as pool:
        extra = {beside: pool.apply(peak, (beside,)) for beside in (0, 40 << 20, 1 << 30)}
    assert extra[1 << 30] > 70  # all that stays
    assert 16 < extra[0] < 32  # one layer
    assert 32 < extra[40 << 20] < 72
