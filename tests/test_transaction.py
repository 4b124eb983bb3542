"""A cut is made wholly or not at all: an exception at any line of the surgery leaves before or after."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import infoprune
from infoprune.checkpoint import adapt
from infoprune.errors import SurgeryError
from infoprune.structure import PruningPlan, plan_of
from infoprune.structure.surgery import in_place_swap, transaction
from infoprune.structure.surgery.transaction import Transaction

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SURGERY = ("shrink", "transaction", "in_place_swap", "optimizer_state", "history", "attributes", "module_state")
FILES = {path for name in SURGERY for path in map(str, Path(infoprune.__file__).parent.glob(f"structure/**/{name}.py"))}


class Net(nn.Module):
    """A layer under two names, tied weights, a written-out width and a cache: all that a cut may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.encoder = self.stem
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.left.weight = self.right.weight
        self.width = 6
        self.scale_of: dict[str, torch.Tensor] = {}
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        if "scale" not in self.scale_of:
            self.scale_of["scale"] = self.scale.detach() * 2
        x = self.left(x) * self.right(x) * self.scale_of["scale"].view(self.width, 1, 1)
        return self.head(x.mean((2, 3)))


NAMES = [name for name, tensor in Net().state_dict().items() if name.startswith("stem.") and tensor.dim()]
CUT = PruningPlan(
    {**{name: {0: (0, 5)} for name in NAMES}, "left.weight": {1: (0, 5)}},
    {name: tuple(Net().state_dict()[name].shape) for name in [*NAMES, "left.weight"]},
)


def trained() -> tuple[Net, torch.optim.Optimizer, torch.optim.Optimizer]:
    torch.manual_seed(1)
    net = Net()
    halves = list(net.parameters())
    adam, sgd = torch.optim.AdamW(halves[:3]), torch.optim.SGD(halves[3:], 0.1, momentum=0.9)
    for _ in range(2):
        net(X).pow(2).sum().backward()
        adam.step()
        sgd.step()
    for parameter in halves:
        parameter.grad = None
    return net, adam, sgd


def looks(net: nn.Module, *optimizers: torch.optim.Optimizer) -> list[Any]:
    """Everything about a model and its optimizers, objects by their identity."""
    tensors = [(name, id(t), t.tolist()) for name, t in net.state_dict(keep_vars=True).items()]
    numbers = [(name, vars(m).get("width"), vars(m).get("out_channels")) for name, m in net.named_modules()]
    caches = {key: value.tolist() for key, value in net.scale_of.items()}
    groups = [[id(p) for p in group["params"]] for o in optimizers for group in o.param_groups]
    states = [
        {id(p): {key: torch.as_tensor(value).tolist() for key, value in state.items()} for p, state in o.state.items()}
        for o in optimizers
    ]
    return [tensors, numbers, caches, groups, states, plan_of(net)]


class Fault:
    """Raises an error at the n-th line that the surgery's files run; ``at=-1`` notes the lines only."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.lines = at, list[str]()

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if path not in FILES:
            return None
        if event == "line":
            self.lines.append(f"{os.path.basename(path)}:{frame.f_lineno}")
            if len(self.lines) == self.at:
                sys.settrace(None)
                raise MemoryError(self.lines[-1])
        return self

    def run(self, work: Callable[[], Any]) -> None:
        """Run something until the fault strikes."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except MemoryError:
            pass
        finally:
            sys.settrace(before)


def first_times(lines: list[str], *files: str) -> list[int]:
    """The numbers, from 1, of the first time that each line (of these files) runs, and of the last line of all."""
    first = [lines.index(line) + 1 for line in dict.fromkeys(lines) if line.startswith(files or "")]
    return [*first, len(lines)]


@pytest.mark.slow
@pytest.mark.parametrize("beside", [0, 1 << 27], ids=["little memory", "much memory"])
def test_an_error_at_every_line_of_the_surgery(monkeypatch: pytest.MonkeyPatch, beside: int) -> None:
    monkeypatch.setattr(in_place_swap, "_room", lambda _: beside)
    plan = infoprune.prune(Net().eval(), X, "l1", filters=0.5).plan
    assert plan.attributes
    assert plan.caches
    whole, (net, *optimizers) = Fault(), trained()
    whole.run(lambda: infoprune.shrink(net, plan, optimizers))
    assert {line.partition(":")[0] for line in whole.lines} == {f"{name}.py" for name in SURGERY}
    # Memory decides only what is emptied and filled again.
    for at in first_times(whole.lines, *(() if beside else ("in_place_swap", "transaction"))):
        where = whole.lines[at - 1]
        net, *optimizers = trained()
        before = looks(net, *optimizers)
        Fault(at).run(lambda net=net, optimizers=optimizers: infoprune.shrink(net, plan, optimizers))
        assert plan_of(net) == plan or looks(net, *optimizers) == before, f"half a cut after an error in {where}"
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        assert held == {id(p) for p in net.parameters()}, where
        assert net(X).isfinite().all(), where


@pytest.mark.slow
def test_an_error_at_every_line_of_taking_a_checkpoints_shape() -> None:
    other = infoprune.prune(Net().eval(), X, "random", filters=0.5).plan
    whole, net = Fault(), trained()[0]
    infoprune.shrink(net, CUT)
    whole.run(lambda: adapt(net, other))
    assert plan_of(net) == other
    for at in first_times(whole.lines, "history", "transaction"):
        net = trained()[0]
        infoprune.shrink(net, CUT)
        before = looks(net)
        Fault(at).run(lambda net=net: adapt(net, other))
        assert plan_of(net) == other or looks(net) == before, whole.lines[at - 1]


def test_what_follows_a_cut_undoes_it() -> None:
    net, *optimizers = trained()
    before = looks(net, *optimizers)

    def cut_and_fail() -> None:
        with Transaction([net], optimizers) as current:
            infoprune.shrink(net, CUT, optimizers, transaction=current)
            assert net.stem[0].out_channels == 6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_and_fail()
    assert looks(net, *optimizers) == before


def test_values_written_in_place_come_back_if_they_were_kept() -> None:
    net = trained()[0]
    before = looks(net)

    def write_and_fail() -> None:
        with Transaction([net]) as current:
            current.keep_values(net)
            for tensor in net.state_dict().values():
                tensor.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert looks(net) == before


def test_two_models_are_cut_together_or_not_at_all() -> None:
    net, copy = trained()[0], trained()[0]
    copy.stem[0].weight = type("Marked", (nn.Parameter,), {})(copy.stem[0].weight.detach())
    before = looks(net)

    def cut_both() -> None:
        with Transaction([net, copy]) as current:
            infoprune.shrink(net, CUT, transaction=current)
            infoprune.shrink(copy, CUT, transaction=current)

    with pytest.raises(SurgeryError, match="Marked"):
        cut_both()
    assert looks(net) == before


def test_a_transaction_holds_nothing_once_it_is_over() -> None:
    import gc
    import weakref

    net, *optimizers = trained()
    old = weakref.ref(net.stem[0].weight)
    infoprune.shrink(net, CUT, optimizers)
    gc.collect()
    assert old() is None
    assert not [thing for thing in gc.get_objects() if isinstance(thing, transaction.Transaction)]


def test_an_empty_plan_changes_nothing() -> None:
    net, *optimizers = trained()
    before = looks(net, *optimizers)
    infoprune.shrink(net, PruningPlan(), optimizers)
    assert looks(net, *optimizers) == before
