"""What cannot be measured is said in words that name the group, the option or the number."""

import logging

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Budget, InformationLoss
from infoprune.criteria import get_criterion
from infoprune.errors import BudgetError, DataError

IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions in a row and one beside them, whose channels count by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.beside, self.last = nn.Conv2d(3, 8, 5), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        aside = self.last(torch.relu(self.beside(x)))
        return (torch.relu(self.second(torch.relu(self.first(x))))[:, :4] + self.factor * aside).mean(dim=(2, 3))


class Fragile(Net):
    """Takes the root of a sum over `beside`, which is no longer positive when a quarter of its filters are gone."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.ones_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.least = 0.0
        with torch.no_grad():
            self.least = 0.99 * self.sums(IMAGES).min().item()

    def sums(self, x: Tensor) -> Tensor:
        return self.last(self.beside(x).abs()).mean(dim=(2, 3)) - self.least

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.sums(x).sqrt()


def test_a_short_loader_gives_all_it_has_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        result = infoprune.prune(Net(), IMAGES[:1], "l1", macs=0.5, data=[IMAGES[:12], IMAGES[12:]])
    assert result.curves is not None
    assert result.curves.images == 20
    assert "measured on 20 images, all that the data hold (256 were asked for)" in caplog.text


def test_without_data_one_line_says_what_data_would_bring(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        result = infoprune.prune(Net(), IMAGES[:1], "l1", macs=0.5)
    assert result.curves is None
    lines = [line for line in caplog.messages if "pass training images as data" in line]
    assert lines == ["widths by rule (coupled_last): pass training images as data to measure the loss of cuts"]


def test_outputs_without_a_distribution_are_compared_by_their_error_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
):
    targets = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    with caplog.at_level(logging.INFO):
        result = infoprune.prune(Net(), IMAGES[:1], "l1", macs=0.5, data=[(IMAGES, targets)])
    assert result.curves.unit == "relative squared error"
    assert "as relative squared error" in caplog.text


def test_outputs_that_are_not_finite_name_the_group():
    net = Fragile()
    before = net.beside.weight.clone()
    with pytest.raises(DataError, match=r"model with beside at \d units are not finite; freeze that group"):
        infoprune.prune(net, IMAGES[:1], "l1", macs=0.5, data=[IMAGES], allocation="information_loss")
    assert torch.equal(net.beside.weight, before)


def test_by_default_widths_follow_a_rule_where_the_outputs_are_not_finite(caplog: pytest.LogCaptureFixture):
    result = infoprune.prune(Fragile(), IMAGES[:1], "l1", macs=0.5, data=[IMAGES], verify=False)
    assert result.curves is None
    assert "widths by rule (coupled_last), since the loss of cuts could not be measured" in caplog.text
    assert "beside at" in caplog.text


def test_groups_that_the_outputs_do_not_depend_on_are_named_and_cut_first(caplog: pytest.LogCaptureFixture):
    net = Net(factor=0.0)
    infoprune.prune(net, IMAGES[:1], "l1", macs=0.7, data=[IMAGES], round_to=1)
    assert "the outputs do not depend on beside, so that they are cut first; freeze them" in caplog.text
    assert net.beside.out_channels < net.first.out_channels


def test_a_budget_below_the_floor_says_the_floor():
    net = Net()
    structure = infoprune.trace(net, IMAGES[:1], frozen=["first"])
    scores = get_criterion("l1")(net, structure)
    prepared = InformationLoss().prepared(net, structure, [IMAGES], scores=scores)
    with pytest.raises(BudgetError, match=r"macs budget of 0.02 is below the floor of 0\.\d+ .*frozen: .*first"):
        prepared.widths(structure, scores, Budget("macs", 0.02))


@pytest.mark.parametrize("data", [[], [IMAGES[:0]], iter(())])
def test_data_without_images_are_refused(data):
    with pytest.raises(DataError, match="hold no image"):
        infoprune.prune(Net(), IMAGES[:1], "l1", macs=0.5, data=data, allocation="information_loss")
