"""Entropies of feature maps, rank correlation, and the choice of method A's estimator by them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import infoprune
from infoprune.criteria import CapacityIndependence
from infoprune.criteria.measures.capacity import CAPACITIES, capacity
from infoprune.criteria.measures.feature_entropy import channel_entropy, histogram_entropy, pixel_entropy
from infoprune.criteria.measures.feature_guided import FeatureGuide, guide_capacity
from infoprune.criteria.measures.rank_correlation import ranks_with_ties, spearman
from infoprune.errors import ConfigurationError, DataError


def entropy(shares: list[float]) -> float:
    total = sum(shares)
    return -sum(s / total * math.log(s / total) for s in shares if s > 0)


@pytest.mark.parametrize("correct", [False, True])
def test_histogram_entropy_against_a_plain_loop(correct: bool):
    values = torch.randn(50, 4, dtype=torch.float64)
    for column, found in zip(values.T, histogram_entropy(values, bins=8, correct=correct), strict=True):
        low, high = column.min().item(), column.max().item()
        counts = [0] * 8
        for value in column.tolist():
            counts[min(7, int((value - low) / (high - low) * 8))] += 1
        expected = entropy(counts) + correct * (sum(c > 0 for c in counts) - 1) / 100
        assert found.item() == pytest.approx(min(1.0, expected / math.log(8)))


def test_the_ends_of_the_entropies():
    even = torch.arange(64.0, dtype=torch.float64)[:, None].expand(64, 2)
    assert histogram_entropy(even, bins=16).tolist() == pytest.approx([1.0, 1.0])
    assert histogram_entropy(torch.ones(10, 2), bins=16, correct=True).tolist() == [0.0, 0.0]
    assert channel_entropy(torch.ones(6)).item() == pytest.approx(1.0)
    assert channel_entropy(torch.tensor([3.0, 0.0, 0.0])).item() == 0.0
    assert channel_entropy(torch.zeros(3)).item() == 0.0
    assert channel_entropy(torch.ones(1)).item() == 0.0
    assert pixel_entropy(torch.zeros(1, 1, 4, 4)).item() == pytest.approx(1.0), "the published formula's known defect"
    assert pixel_entropy(torch.zeros(1, 3, 1, 1)).tolist() == [[0.0] * 3]


def test_pixel_entropy_against_a_plain_loop():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for b, c in itertools.product(range(2), range(3)):
        pixels = maps[b, c].flatten().tolist()
        mean = sum(pixels) / 20
        shares = [math.exp((p - mean) ** 2) for p in pixels]
        assert pixel_entropy(maps)[b, c].item() == pytest.approx(entropy(shares) / math.log(20))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=100)
def test_spearman_is_the_correlation_of_ranks(pairs: list[tuple[int, int]]):
    a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    ranks = []
    for column in (a, b):
        expected = [sum(other < v for other in column) + (sum(other == v for other in column) - 1) / 2 for v in column]
        assert ranks_with_ties(column).tolist() == [float(rank) for rank in expected]
        ranks.append(torch.stack(expected).double())
    if a.unique().numel() == 1 or b.unique().numel() == 1:
        assert spearman(a, b) == 0.0
    else:
        assert spearman(a, b) == pytest.approx(torch.corrcoef(torch.stack(ranks))[0, 1].item())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 9, 3, padding=1)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean(dim=(2, 3)))


def plain_common_entropy(maps: Tensor) -> Tensor:
    """256 bins over the range of all maps of an image; mean over images."""
    rows = []
    for image in maps:
        low, high = image.min().item(), image.max().item()
        counts = [torch.histc(channel, 256, low, high).tolist() for channel in image]
        rows.append([entropy(c) / math.log(256) for c in counts])
    return torch.tensor(rows, dtype=torch.float64).mean(dim=0)


@pytest.mark.parametrize("how", ["common", "own", "pixel"])
def test_the_guide_compares_capacities_with_entropies_of_the_filters_own_output(how: str):
    net = Net()
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    images = torch.randn(6, 3, 8, 8)
    guide = guide_capacity(net, structure, [images[:4], images[4:]], entropy=how)
    net.eval()
    with torch.no_grad():
        maps = {"first": net.first(images), "second": net.second(torch.relu(net.norm(net.first(images))))}
    assert guide.images == 6
    for name, activation in maps.items():
        if how == "common":
            entropies = plain_common_entropy(activation)
        elif how == "own":
            rows = activation.double().flatten(2).flatten(0, 1)
            entropies = histogram_entropy(rows.T, bins=256).view(6, -1).mean(dim=0)
        else:
            entropies = pixel_entropy(activation).mean(dim=0)
        assert torch.allclose(guide.entropies[name], entropies, atol=0.01)
        filters = getattr(net, name).weight.detach().double().flatten(2)
        for estimator in CAPACITIES:
            expected = spearman(capacity(filters, estimator), guide.entropies[name])
            assert guide.correlations[name][estimator] == pytest.approx(expected)
    assert CapacityIndependence(capacity=guide.best)(net, structure)["first"].shape == (12,)
    lines = guide.table().splitlines()
    assert [line.split()[0] for line in lines] == ["histogram", "first", "second", "mean"]


def test_the_guide_takes_the_best_and_of_equals_the_first():
    def guide(*means: float) -> FeatureGuide:
        return FeatureGuide({"layer": dict(zip(CAPACITIES, means, strict=True))}, {}, 1)

    assert guide(0.1, 0.2, 0.7, 0.3).best == "kernel_norm"
    assert guide(0.793, 0.794, -0.3, -0.3).best == "histogram"
    assert guide(0.5, 0.52, -0.3, -0.3).best == "gaussian"


def test_filters_of_different_scale_are_told_apart_by_the_common_range():
    net = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 2, 1))
    net[0].weight.data *= torch.linspace(0.1, 2, 10)[:, None, None, None]
    structure = infoprune.trace(net, torch.zeros(1, 3, 16, 16))
    guide = guide_capacity(net, structure, [torch.randn(16, 3, 16, 16)])
    assert guide.best in ("histogram", "gaussian")
    assert guide.means["histogram"] > 0.9 > abs(guide.means["kernel_norm"])


def test_the_guide_says_what_is_wrong():
    net = Net()
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match="feature-guided selection: the calibration data holds no image"):
        guide_capacity(net, structure, [])
    with pytest.raises(ConfigurationError, match="entropy cannot be 'comon', did you mean 'common'"):
        guide_capacity(net, structure, [torch.zeros(1, 3, 8, 8)], entropy="comon")
