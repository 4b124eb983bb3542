"""LAMP against its definition, and where it differs from a norm."""

from __future__ import annotations

import torch
from torch import nn

import infoprune
from infoprune.criteria import LAMP, get_criterion
from infoprune.criteria.lamp import share_of_remaining


class Add(nn.Module):
    """Two layers that feed one group, and a layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, bias=False)
        self.right = nn.Conv2d(3, 6, 3, bias=False)
        self.inner = nn.Conv2d(6, 9, 1)
        self.head = nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.left(x) + self.right(x)).mean(dim=(2, 3)))


def test_shares_against_the_definition():
    values = torch.rand(40, dtype=torch.float64).round(decimals=1)  # with ties and zeros
    values[:2] = 0
    expected = [v / sum(u for u in values.tolist() if u >= v) if v > 0 else 0.0 for v in values.tolist()]
    assert torch.allclose(share_of_remaining(values), torch.tensor(expected, dtype=torch.float64))
    assert share_of_remaining(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_energies_of_coupled_layers_are_summed_before_they_are_divided():
    net = Add()
    scores = get_criterion("lamp")(net, infoprune.trace(net, torch.zeros(1, 3, 8, 8)))
    energies = sum(layer.weight.detach().double().square().sum(dim=(1, 2, 3)) for layer in (net.left, net.right))
    assert torch.allclose(scores["left"], share_of_remaining(energies))
    assert scores["left"].max() == scores["inner"].max() == 1.0


def test_the_scale_of_a_layer_plays_no_part():
    net = Add()
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    before = LAMP()(net, structure)
    net.inner.weight.data *= 1e-3
    after = LAMP()(net, structure)
    assert torch.allclose(before["inner"], after["inner"])
    result = infoprune.prune(net, torch.zeros(1, 3, 8, 8), criterion="lamp", allocation="global", macs=0.5)
    assert result.after.macs <= 0.5 * result.before.macs
    assert net.inner.out_channels > 1
