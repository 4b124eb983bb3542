"""State of optimizers in any form: cut with its parameter, or refused when the fit starts, by name."""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import infoprune
from infoprune.errors import SurgeryError
from infoprune.structure.surgery.optimizer_state import check_optimizer_ahead
from tests.tiny import TinyModule, loader, pruning, trainer

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Moments:
    mean: Tensor
    steps: int


class InSlots:
    __slots__ = ("first", "unset")

    def __init__(self, first: Tensor) -> None:
        self.first = first


class Keeping(Optimizer):
    """Gradient descent that keeps what it is told to for each parameter."""

    def __init__(self, params: Any, make: Callable[[Tensor], Any], held: Callable[[list[Tensor]], Any] = len) -> None:
        super().__init__(params, {"lr": 0.1})
        self.make, self.held = make, held(self.param_groups[0]["params"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["kept"] = self.make(parameter)
                for kept in tensors(state["kept"]):
                    if kept.shape == parameter.shape:
                        kept.add_(parameter.grad)
                parameter.add_(parameter.grad, alpha=-group["lr"])


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value)] if value.ndim else []
    if isinstance(value, InSlots):
        return [value.first]
    parts = vars(value).values() if hasattr(value, "__dict__") else value.values() if isinstance(value, dict) else value
    return [t for part in parts if not isinstance(part, int | str) for t in tensors(part)]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda p: [torch.zeros_like(p), torch.zeros(())],
    "dict of tuples": lambda p: {"a": (torch.zeros_like(p), "text"), "b": 3},
    "named tuple": lambda p: Pair(torch.zeros_like(p), torch.zeros(1)),
    "frozen dataclass": lambda p: Moments(torch.zeros_like(p), 7),
    "deque": lambda p: deque([torch.zeros_like(p)], maxlen=2),
    "object with slots": lambda p: InSlots(torch.zeros_like(p)),
    "arrays": lambda p: [p.detach().numpy() * 0, np.array("text")],
    "list of objects": lambda p: [Moments(torch.zeros_like(p), n) for n in range(2)],
}


def net_and(make: Callable[[Tensor], Any], **options: Any) -> tuple[nn.Sequential, Keeping]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    return net, Keeping(net.parameters(), make, **options)


def train(net: nn.Module, optimizer: Optimizer) -> None:
    net(X).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("form", FORMS)
def test_state_in_containers_and_objects_is_cut(form: str) -> None:
    net, optimizer = net_and(FORMS[form])
    check_optimizer_ahead(optimizer)
    assert not optimizer.state
    train(net, optimizer)
    before = optimizer.state[net[0].weight]["kept"]
    whole = tensors(before)[0].clone()
    plan = infoprune.prune(net, X, "l1", filters=0.5, optimizers=optimizer).plan
    after = optimizer.state[net[0].weight]["kept"]
    assert type(after) is type(before)
    assert torch.equal(tensors(after)[0], whole[plan.kept("0.weight", 0)])
    assert torch.equal(tensors(before)[0], whole)  # the old object may be somebody else's
    train(net, optimizer)


SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "a matrix for each dimension": (
        {"make": lambda p: [torch.eye(n) for n in p.shape]},
        "Keeping keeps state of .*kept",
    ),
    "rows": ({"make": lambda p: {"row": p.detach().reshape(len(p), -1).sum(1)}}, "row"),
    "flattened": ({"make": lambda p: (p.detach().reshape(-1).clone(),)}, "kept"),
    "parameters held twice": ({"make": torch.zeros_like, "held": list}, r"keeps a parameter in held\[0\]"),
    "copies of parameters": (
        {"make": torch.zeros_like, "held": lambda params: {"slow": [p.detach().clone() for p in params]}},
        r"keeps a tensor of a parameter's shape \(8, 3, 3, 3\) in held\['slow'\]\[0\]",
    ),
    "sums by parameter": (
        {"make": torch.zeros_like, "held": lambda params: {p: torch.zeros_like(p) for p in params}},
        r"shape \(8, 3, 3, 3\) in held\[parameter of shape \(8, 3, 3, 3\)\]",
    ),
    "all parameters in one": (
        {"make": torch.zeros_like, "held": lambda params: torch.zeros(sum(p.numel() for p in params))},
        r"keeps a tensor of as many entries as its parameters have, \(\d+,\) in held",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_cannot_be_cut_is_refused_before_the_first_step(name: str) -> None:
    options, message = SHAPES[name]
    net, optimizer = net_and(**options)
    state, values = torch.get_rng_state(), [p.clone() for p in net.parameters()]
    with pytest.raises(SurgeryError, match=message):
        check_optimizer_ahead(optimizer)
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), values, strict=True))
    train(net, optimizer)
    before = [id(p) for p in net.parameters()]
    with pytest.raises(SurgeryError, match="Keeping"):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=optimizer)
    assert [id(p) for p in net.parameters()] == before


def test_state_by_names_of_parameters_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    kept: Any = torch.zeros(8, 3, 3, 3)
    optimizer.state["0.weight"] = {"average": kept}  # type: ignore[index]
    with pytest.raises(SurgeryError, match=r"\(8, 3, 3, 3\) in state\['0.weight'\]\['average'\], where it would not"):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=optimizer)
    assert net[0].out_channels == 8
    optimizer.state["0.weight"] = {"steps": 3}  # type: ignore[index]
    infoprune.prune(net, X, "l1", filters=0.5, optimizers=optimizer)
    assert net[0].out_channels == 4


def test_a_fit_ends_before_its_first_batch() -> None:
    class Module(TinyModule):
        steps = 0

        def configure_optimizers(self) -> Optimizer:  # type: ignore[override]
            return Keeping(self.parameters(), lambda p: [torch.eye(n) for n in p.shape])

        def training_step(self, *args: Any) -> Tensor:
            Module.steps += 1
            return super().training_step(*args)

    with pytest.raises(SurgeryError, match="Keeping keeps"):
        trainer(pruning((1,)), epochs=2).fit(Module(), loader())
    assert Module.steps == 0


def test_steps_that_need_their_model_are_left_to_the_event() -> None:
    class Needy(Keeping):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            assert closure().requires_grad

    check_optimizer_ahead(Needy([nn.Parameter(torch.ones(3))], torch.zeros_like))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, centered=True),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.NAdam(p),
    ],
)
def test_the_usual_ones_pass_and_schedulers_do_not_notice(make: Callable[[Any], Optimizer]) -> None:
    net = net_and(torch.zeros_like)[0]
    optimizer = make(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    hooked = []
    optimizer.register_step_post_hook(lambda *_: hooked.append(1))
    state = len(optimizer.state)
    values = [p.clone() for p in net.parameters()]
    check_optimizer_ahead(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), values, strict=True))
    assert len(optimizer.state) == state
    assert not hooked
    train(net, optimizer)
    scheduler.step()
