"""Experts and branches that the example inputs do not reach are cut along, keep what they share, or are named."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import infoprune
from tests.networks import randomise
from tests.oracle import relative_error
from tests.tiny import TinyModule, loader, pruning, trainer

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Expert(nn.Module):
    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(c, 12, 1), nn.Conv2d(12, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Mixture(nn.Module):
    """Adds, or puts out, what some of its experts make."""

    def __init__(self, residual: bool, chosen: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8 if residual else 6, 2, 1)
        self.experts = nn.ModuleList(Expert(8, 8 if residual else 6) for _ in range(3))
        self.residual, self.chosen = residual, chosen

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        made = sum(self.experts[number](x) for number in self.chosen)
        return self.head(x + made if self.residual else made)


@pytest.mark.parametrize(("residual", "chosen"), [(True, (1,)), (True, (0, 2)), (False, (0, 1))])
def test_experts_that_were_not_reached_are_cut_along(residual: bool, chosen: tuple[int, ...]) -> None:
    net = randomise(Mixture(residual, chosen))
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", filters=0.5, round_to=1).plan
    assert {expert.up.out_channels for expert in net.experts} == {6}
    assert net.stem.out_channels == 4
    for number in range(3):
        original.chosen = net.chosen = (number,)
        assert relative_error(original, net, plan, X) < 1e-12


def test_where_siblings_do_not_tell_what_they_share_stays() -> None:
    net = randomise(Mixture(False, (1,)))
    infoprune.prune(net, X, "l1", filters=0.5, round_to=1)
    assert net.stem.out_channels == 8
    assert net.experts[1].up.out_channels == 6
    for number in range(3):
        net.chosen = (number,)
        assert net(X).shape == (2, 2, 8, 8)


def test_a_branch_without_siblings_is_named() -> None:
    class Branching(Mixture):
        def __init__(self) -> None:
            super().__init__(True, (0, 1, 2))
            self.extra = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[-1] < 32 else self.extra(self.stem(x))

    with pytest.warns(UserWarning, match="extra: not reached by the example inputs"):
        infoprune.trace(randomise(Branching()), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infoprune.trace(randomise(Mixture(True, (0, 1, 2))), X)


class TwoPaths(nn.Module):
    """Small images take one path through the network, large ones another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.small, self.large = nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(x + (self.small(x) if x.shape[-1] < 16 else self.large(x)))


LARGE = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_branches_that_only_a_further_example_reaches_are_cut() -> None:
    net = randomise(TwoPaths())
    original = copy.deepcopy(net)
    with pytest.warns(UserWarning, match=r"large.*infoprune.Examples\(first, second\)"):
        infoprune.trace(net, X)
    examples = infoprune.Examples(X, (LARGE,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = infoprune.prune(net, examples, "l1", filters=0.5, round_to=1).plan
    assert (net.stem.out_channels, net.small.out_channels, net.large[0].out_channels) == (4, 4, 6)
    for x in (X, LARGE):
        assert relative_error(original, net, plan, x) < 1e-12
    assert len(infoprune.verify(original, net, plan, examples).errors) == 2


def test_the_cost_of_several_examples_is_their_mean() -> None:
    net = TwoPaths()
    with pytest.warns(UserWarning, match="not reached"):
        single = [infoprune.trace(net, x).cost().macs for x in (X[:1], LARGE[:1])]
    assert infoprune.trace(net, infoprune.Examples(X, LARGE)).cost().macs == round((2 * single[0] + 3 * single[1]) / 5)
    with pytest.raises(infoprune.errors.ConfigurationError, match="holds nothing"):
        infoprune.Examples()


def test_a_fit_cuts_branches_that_a_further_example_reaches() -> None:
    class Classifier(TwoPaths):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), x], 1).mean((2, 3))[:, :3]

    for path in (None, "net"):
        module = TinyModule(net=Classifier())
        options = {"example_inputs": infoprune.Examples(X, LARGE), "module": path}
        trainer(pruning(1, filters=0.5, round_to=1, **options), epochs=2).fit(module, loader())
        net = module.net
        assert (net.stem.out_channels, net.small.out_channels, net.large[0].out_channels) == (4, 4, 6)
        assert net(LARGE).shape == (3, 3)
