"""Models prepared for quantisation: what rounds alike is cut exactly, what has a range for each channel stays."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import (
    default_fake_quant,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
    disable_observer,
)

import infoprune
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Rounded(nn.Module):
    """Rounds activations and, in its second layer, weights."""

    def __init__(self, of_activations: Callable[[], nn.Module], of_weights: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 2, 1)
        self.activations, self.weights = of_activations(), of_weights()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activations(self.stem(x).relu())
        y = F.conv2d(y, self.weights(self.body.weight), self.body.bias).relu()
        return self.head(y)


def prepared(of_activations: Callable[[], nn.Module], of_weights: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        net = Rounded(of_activations, of_weights)
        net(X)  # the observers measure ranges
        return net.eval()


@pytest.mark.parametrize("of_activations", [default_fake_quant, default_fused_act_fake_quant], ids=["plain", "fused"])
def test_what_is_rounded_alike_is_cut(of_activations: Callable[[], nn.Module]) -> None:
    net = prepared(of_activations, default_weight_fake_quant)
    net.apply(disable_observer)
    structure, original = infoprune.trace(net, X), copy.deepcopy(net)
    plan = structure.plan({"stem": [0, 5, 6], "body": [1, 2, 7, 11]})
    infoprune.shrink(net, plan)
    assert (net.body.in_channels, net.head.in_channels) == (5, 8)
    assert infoprune.verify(original, net, plan, X).ok
    assert relative_error(original, net, plan, X) < 1e-6  # scales are in float32


def test_observers_that_still_measure_keep_the_channels() -> None:
    structure = infoprune.trace(prepared(default_fused_act_fake_quant, default_weight_fake_quant), X)
    assert "is rounded by the range of all channels" in str(structure.group("stem").reason)


@pytest.mark.parametrize(
    "of_weights",
    [default_per_channel_weight_fake_quant, default_fused_per_channel_wt_fake_quant],
    ids=["plain", "fused"],
)
def test_channels_with_ranges_of_their_own_stay(of_weights: Callable[[], nn.Module]) -> None:
    net = prepared(default_fake_quant, of_weights)
    net.apply(disable_observer)
    reasons = {group.reason for group in infoprune.trace(net, X).groups if "body" in group.name}
    assert any("has its own range for quantisation" in str(reason) for reason in reasons)
    assert not any("has no rule" in str(reason) for reason in reasons)
