"""Which share of its units every group keeps, where the widths follow from measured information loss."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Allocation, Auto, Budget, InformationLoss
from infoprune.allocation.divergence import (
    Distance,
    divergence_of_labels,
    divergence_of_probabilities,
    divergence_of_scores,
    relative_error,
    uninformed,
)
from infoprune.allocation.information_loss import FLOORS
from infoprune.allocation.measure_loss import LossMeter
from infoprune.criteria import get_criterion

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))


def plain(*widths: int, seed: int) -> nn.Sequential:
    """A regression network of convolutions with batch norm, one behind the other."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths[:-1]), widths, strict=True):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5)).eval()


def prepared(net: nn.Module, keep: float, **options: float) -> InformationLoss:
    structure = infoprune.trace(net, IMAGES[:1])
    scores = get_criterion("l1")(net, structure)
    return InformationLoss(**options).prepared(net, structure, [(IMAGES, TARGETS)], scores=scores, keep=keep)


def widths(net: nn.Module, allocation: InformationLoss, keep: float) -> dict[str, int]:
    structure = infoprune.trace(net, IMAGES[:1])
    return allocation.widths(structure, get_criterion("l1")(net, structure), Budget("macs", keep))


def told(caplog: pytest.LogCaptureFixture) -> tuple[dict[float, float], float]:
    """What the log says: the loss of all cuts at once by floor, and what outputs cost that tell nothing."""
    record = next(record for record in caplog.records if "all cuts at once" in record.getMessage())
    _, listed, information, _ = record.args
    losses = [float(part.split()[0]) for part in str(listed).split(", ")]
    return dict(zip(FLOORS, losses, strict=True)), float(information)


def test_the_floor_is_the_one_whose_cuts_cost_least_together(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "infoprune"):
        chosen = prepared(plain(8, 64, 8, seed=0), 0.35)
    joint, information = told(caplog)
    assert information == pytest.approx(1.0)  # of a relative error
    assert min(joint.values()) < information
    assert chosen.floor == min(joint, key=joint.__getitem__) != FLOORS[0]


def test_the_floor_is_the_lowest_where_every_cut_costs_all_that_the_outputs_tell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "infoprune"):
        chosen = prepared(plain(16, 16, 16, 16, seed=0), 0.35)
    joint, information = told(caplog)
    assert min(joint.values()) > information
    assert chosen.floor == FLOORS[0] != min(joint, key=joint.__getitem__)


def test_the_floor_is_the_lowest_without_a_budget_and_the_users_where_it_is_given() -> None:
    net = plain(8, 64, 8, seed=0)
    unknown = prepared(net, 0.0)
    lowest = dataclasses.replace(unknown, floor=FLOORS[0])
    assert unknown.floor is None
    assert widths(net, unknown, 0.35) == widths(net, lowest, 0.35)
    assert prepared(net, 0.35, floor=0.4).floor == 0.4


class Residual(nn.Module):
    """A stream of 16 channels that three convolutions add to, with 16 channels inside each of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in "ab"
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


def test_groups_that_several_layers_make_keep_more() -> None:
    net = Residual().eval()
    with torch.no_grad():  # most of the stream does next to nothing, so that measured losses alone would cut it
        for conv in (net.stem, *(block[2] for block in net.blocks)):
            conv.weight[4:] *= 1e-4
            conv.bias[4:] *= 1e-4
    stream, inner = "stem", "blocks.0.0"
    found = widths(net, prepared(net, 0.3, coupled_floor=0.0), 0.3)
    assert found[stream] < 8
    kept = widths(net, prepared(net, 0.3), 0.3)
    assert kept[stream] == 8
    assert kept[inner] < found[inner]
    assert widths(net, prepared(net, 0.3, floor=0.6), 0.45)[stream] >= 10  # the larger of both
    assert widths(net, prepared(net, 0.05), 0.05)[stream] < 8  # where the budget cannot be met otherwise


def test_a_share_of_coupled_groups_out_of_range_is_refused() -> None:
    with pytest.raises(infoprune.errors.ConfigurationError, match="coupled_floor"):
        InformationLoss(coupled_floor=1.5)


@pytest.mark.parametrize(
    ("distance", "outputs", "information"),
    [
        (divergence_of_scores, torch.tensor([[60.0, 0.0], [0.0, 60.0]]), math.log(2)),
        (divergence_of_scores, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.0),
        (divergence_of_probabilities, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), math.log(2)),
        (divergence_of_labels, torch.tensor([[60.0, -60.0], [-60.0, -60.0]]), math.log(2)),
        (relative_error, torch.tensor([[1.0, 2.0], [3.0, 7.0]]), 1.0),
    ],
)
def test_outputs_that_are_the_same_for_all_images_cost_what_the_outputs_tell(
    distance: Distance, outputs: Tensor, information: float
) -> None:
    assert distance(outputs, uninformed(distance, outputs)).mean().item() == pytest.approx(information, abs=1e-4)


@pytest.mark.parametrize("allocation", [InformationLoss(), Auto()])
def test_floors_of_a_later_event_are_shares_of_the_units_before_the_first(
    allocation: Allocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = plain(16, 16, 16, seed=0)
    structure = infoprune.trace(net, IMAGES[:1])
    scores = get_criterion("l1")(net, structure)
    tried, measure = [], LossMeter.round

    def noting(meter: LossMeter, widths: dict[str, int], levels: Any, bar: Any) -> Any:
        tried.append(min(widths.values()))
        return measure(meter, widths, levels, bar)

    def narrowest(allocation: Allocation) -> int:
        """The narrowest group where every group is to keep at least half of its units."""
        tried.clear()
        allocation.prepared(net, structure, [(IMAGES, TARGETS)], scores=scores, keep=0.7)
        assert len(tried) == 1 + len(FLOORS)
        return tried[-1]

    monkeypatch.setattr(LossMeter, "round", noting)
    assert 8 <= narrowest(allocation) < 12
    assert narrowest(allocation.in_schedule(dict.fromkeys(scores, 24))) >= 12
