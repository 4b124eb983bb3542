"""Forwards that draw random numbers: every pass draws the same, and nobody's generators notice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.random_state import undisturbed
from tests.networks import randomise
from tests.tiers import thinned

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Drawing(nn.Module):
    """Two convolutions, with something random in between."""

    def __init__(self, between: Callable[[Drawing, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.between = nn.Conv2d(8, 9, 1), between
        self.generator, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.python, self.old_numpy = random.Random(1), np.random.RandomState(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self, torch.relu(self.first(x))))).mean((2, 3))


def after_many_draws(net: Drawing, x: Tensor) -> Tensor:
    torch.rand(x.shape[1])  # as many as there are channels
    start = int(torch.randint(0, 8, (1,)))
    return x[:, :, start : start + 8]


def mixed(net: Drawing, x: Tensor) -> Tensor:
    share = np.random.beta(1, 1)
    return share * x + (1 - share) * x[torch.randperm(len(x))]


def erased(net: Drawing, x: Tensor) -> Tensor:
    x, row = x.clone(), random.randrange(12)
    x[:, :, row : row + 4] = 0
    return x


DRAWS: dict[str, Callable[[Drawing, Tensor], Tensor]] = {
    "python": lambda net, x: x[:, :, random.randint(0, 8) :],
    "numpy": lambda net, x: F.interpolate(x[..., : np.random.randint(4, 12)], (8, 8)),
    "torch": after_many_draws,
    "a generator of its own": lambda net, x: x[:, :, int(torch.randint(0, 8, (), generator=net.generator)) :],
    "generators of other kinds": lambda net, x: x[:, :, net.python.randint(0, 4) :, int(net.numpy.integers(4)) :],
    "an old generator": lambda net, x: x[:, :, net.old_numpy.randint(4) :],
    "mixed examples": mixed,
    "erased rows": erased,
    "masked places": lambda net, x: x * (torch.rand(len(x), 1, *x.shape[2:], device=x.device) > 0.3),
    "noise in place": lambda net, x: x * torch.empty_like(x).exponential_(),
    "a sample": lambda net, x: torch.distributions.Normal(x, 1.0).rsample(),
    "a hard choice": lambda net, x: x * F.gumbel_softmax(x, hard=True, dim=2),
    "turned": lambda net, x: torch.rot90(x, random.randrange(4), (2, 3)),
}


def states(net: Drawing) -> list[object]:
    """The state of all generators that a forward may draw from."""
    of_torch = [torch.get_rng_state().tolist(), net.generator.get_state().tolist()]
    of_numpy = [str(np.random.get_state()), str(net.old_numpy.get_state()), net.numpy.bit_generator.state]
    return [*of_torch, *of_numpy, random.getstate(), net.python.getstate()]


@pytest.mark.parametrize("name", thinned(DRAWS))
def test_what_is_drawn_freezes_nothing_and_moves_no_generator(name: str) -> None:
    net = randomise(Drawing(DRAWS[name]))
    with undisturbed(), np.printoptions(threshold=1000):
        before = states(net)
        structure = infoprune.trace(net, X)
        assert [group.name for group in structure.prunable] == ["first", "second"]
        original = copy.deepcopy(net)
        plan = infoprune.prune(net, X, "l1", macs=0.5, round_to=1).plan
        assert infoprune.verify(original, net, plan, X).ok
        assert states(net) == before


def test_the_structure_does_not_depend_on_the_seed() -> None:
    found = []
    for seed in range(3):
        with undisturbed():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            torch_net = Drawing(DRAWS["numpy"])
            found.append([group.size for group in infoprune.trace(torch_net, X).prunable])
    assert found == [[8, 8]] * 3


def repeated(net: Drawing, x: Tensor) -> Tensor:
    while random.random() < 0.5:
        x = torch.relu(net.second(x))
    return x


def test_what_runs_by_chance_is_traced_too() -> None:
    """The second layer reads what it makes, but not in every run."""
    net = randomise(Drawing(repeated))
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", macs=0.5, round_to=1).plan
    assert plan.removed["second.weight"][0] == plan.removed["second.weight"][1]
    with undisturbed():
        for seed in range(20):
            random.seed(seed)
            net(X)
    assert infoprune.verify(original, net, plan, X).ok
