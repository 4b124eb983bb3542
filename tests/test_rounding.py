"""Which multiples widths are rounded to by default."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infoprune
from infoprune.allocation import Budget, InformationLoss, LossCurves, Uniform
from infoprune.allocation.attempt import Attempt, finest_needed
from infoprune.allocation.curves import Round
from infoprune.allocation.rounding import halved, steps
from infoprune.criteria import get_criterion
from infoprune.decide import Target
from infoprune.errors import ConfigurationError
from infoprune.models import CifarResNet

IMAGES = torch.zeros(1, 3, 8, 8)


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of these widths, and a head."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), (*widths, 5), strict=True):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def test_wider_layers_take_larger_steps() -> None:
    structure = infoprune.trace(chain(8, 15, 16, 63, 64, 127, 128, 200), IMAGES)
    assert list(steps(structure, "auto").values()) == [1, 1, 4, 4, 8, 8, 16, 16]
    assert set(steps(structure, 6).values()) == {6}


def test_steps_are_those_of_the_width_before_the_first_cut() -> None:
    structure = infoprune.trace(chain(56), IMAGES)
    assert steps(structure, "auto") == {"0": 4}
    assert steps(structure, "auto", sizes={"0": 128}) == {"0": 16}


class Gated(nn.Module):
    """Each channel of the first half is multiplied by one of the second, so a unit is two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 1)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.conv(x).chunk(2, dim=1)
        out: torch.Tensor = self.head(value * gate)
        return out


def test_units_of_several_channels_count_as_such() -> None:
    structure = infoprune.trace(Gated(), IMAGES)
    assert structure.group("conv").size == 32
    assert steps(structure, "auto") == {"conv": 4}  # eight of 64 channels


def test_small_groups_of_a_wide_layer_keep_its_multiples() -> None:
    structure = infoprune.trace(CifarResNet(depth=8), torch.zeros(1, 3, 32, 32))
    step = steps(structure, "auto")
    shared = [group.name for group in structure.prunable if 8 <= group.size < 16]
    assert shared  # channels that a shortcut pads with zeros
    assert all(step[name] == 4 for name in shared)


def test_by_default_a_cut_leaves_multiples() -> None:
    net = chain(24, 96, 160)
    infoprune.prune(net, IMAGES, "l1", macs=0.5)
    assert [layer.out_channels % step for layer, step in zip(net[::2], (4, 8, 16), strict=False)] == [0, 0, 0]
    exact = chain(24, 96, 160)
    infoprune.prune(exact, IMAGES, "l1", filters=0.7, round_to=1)
    assert [layer.out_channels for layer in exact[::2]] == [16, 67, 112, 5]


def test_a_mapping_gives_a_step_for_each_group() -> None:
    structure = infoprune.trace(chain(40, 40), IMAGES)
    widths = Uniform().widths(structure, amount=0.3, round_to={"0": 10})
    assert widths == {"0": 30, "2": 28}
    assert Uniform().widths(structure, budget=Budget("macs", 1.0), round_to="auto") == {"0": 40, "2": 40}


@pytest.mark.parametrize("value", ["Auto", "16", 0, True, 1.5, None])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="round_to must be a whole number of at least 1, or 'auto', got"):
        Target(macs=0.5, round_to=value)  # type: ignore[arg-type]


def test_rounding_gives_way_where_a_small_network_cannot_meet_its_budget_otherwise():
    net = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 3), nn.ReLU(), nn.Conv2d(20, 4, 3))
    structure = infoprune.trace(net, torch.zeros(1, 3, 12, 12))
    for keep in (0.9, 0.55, 0.03):
        widths = Uniform().widths(structure, budget=Budget("macs", keep), round_to="auto")
        share = structure.cost(widths).macs / structure.cost().macs
        assert 0.88 * keep < share <= keep, keep


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ({4: 1.04, 2: 1.02, 1: 1.0}, 4),
        ({4: 1.2, 2: 1.04, 1: 1.0}, 2),
        ({4: 1.2, 2: 1.1, 1: 1.0}, 1),
        ({4: 0.0, 2: 0.0, 1: 0.0}, 4),
    ],
)
def test_rounding_becomes_finer_where_it_adds_to_the_loss(losses: dict[int, float], step: int):
    found = finest_needed({"a": 4}, lambda steps: Attempt({"a": steps["a"]}, loss=losses[steps["a"]]), halved)
    assert found.widths == {"a": step}


def test_rounding_that_the_user_asks_for_stays():
    net = chain(16, 16, 16)
    structure = infoprune.trace(net, IMAGES)
    scores = get_criterion("l1")(net, structure)
    sizes = {group.name: group.size for group in structure.prunable}
    free = {name: {12: 1e-7, 8: 1e-6, 4: 1e-6} for name in sizes}
    curves = LossCurves((Round(sizes, 0.0, free | {"0": {12: 1.0, 8: 4.0, 4: 9.0}}),))
    allocation = InformationLoss(curves=curves, depth=0.001)
    rounded, chosen, unrounded = (
        allocation.widths(structure, scores, Budget("macs", 0.27), round_to=round_to) for round_to in (4, "auto", 1)
    )
    assert all(width % 4 == 0 for width in rounded.values())
    assert allocation.expected_loss(chosen) <= 1.05 * allocation.expected_loss(unrounded)
    assert allocation.expected_loss(rounded) > 1.05 * allocation.expected_loss(unrounded)
