"""The data-free rivals against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infoprune
from infoprune.criteria import L1, L2, GeometricMedian, Random, get_criterion
from infoprune.criteria.measures.distances import absolute_correlation, mean_of_nearest, pairwise_l2, sum_of_l2
from infoprune.errors import ConfigurationError
from tests import warm

pytestmark = pytest.mark.smoke


@pytest.fixture
def filters() -> torch.Tensor:
    return torch.randn(14, 6, 9, dtype=torch.float64)


def test_norms_against_plain_loops(filters):
    for j, row in enumerate(filters):
        weights = row.flatten().tolist()
        assert L1().filter_scores(filters)[j].item() == pytest.approx(sum(abs(w) for w in weights))
        assert L2().filter_scores(filters)[j].item() == pytest.approx(sum(w * w for w in weights) ** 0.5)


def test_geometric_median_against_plain_loops(filters):
    expected = [sum((a - b).norm().item() for b in filters) for a in filters]
    assert GeometricMedian().filter_scores(filters).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 600])
def test_distances_against_differences_and_in_blocks(count: int):
    points = torch.randn(count, 5, dtype=torch.float64)
    expected = (points[:, None] - points[None]).norm(dim=-1)
    assert torch.allclose(pairwise_l2(points), expected, rtol=1e-9, atol=0)
    assert torch.allclose(sum_of_l2(points), expected.sum(dim=1))


def test_equal_and_nearly_equal_filters_do_not_drown_in_cancellation():
    base = 1e3 + torch.randn(500, dtype=torch.float64)
    step = torch.zeros(500, dtype=torch.float64)
    step[0] = 2e-2  # 9e-7 of the norms
    distances = pairwise_l2(torch.stack([base, base.clone(), base + step]))
    assert distances[0, 1] == 0
    assert distances[0, 2].item() == pytest.approx(2e-2, rel=0.05)


def test_nearest_neighbours_against_sorting(filters):
    distances = pairwise_l2(filters.flatten(1))
    expected = [sum(sorted(row.tolist())[1:4]) / 3 for row in distances]
    assert mean_of_nearest(distances, 3).tolist() == pytest.approx(expected)
    assert mean_of_nearest(distances, 99).tolist() == pytest.approx((distances.sum(1) / 13).tolist())
    assert mean_of_nearest(torch.zeros(1, 1), 5).tolist() == [0.0]


def test_correlation_against_corrcoef(filters):
    points = filters.flatten(1)
    assert torch.allclose(absolute_correlation(points), torch.corrcoef(points).abs())
    points[3] = 0.7
    correlation = absolute_correlation(points)
    assert torch.isfinite(correlation).all()
    assert correlation[3].tolist() == [1.0] * 14


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 1)
    )


def test_random_depends_on_seed_and_layer_only():
    net = small_net()
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    state = torch.get_rng_state()
    first = Random(seed=3)(net, structure)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(100)
    second = Random(seed=3)(net, structure)
    other = Random(seed=4)(net, structure)
    assert all(torch.equal(first[name], second[name]) and not torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["0"], first["3"][:6])


def test_random_is_the_same_in_another_process():
    code = "from infoprune.criteria import Random; print(Random(seed=1)._draw('layer1.0.conv1', 3).tolist())"
    other = warm.python("-c", code).stdout
    assert other.strip() == str(Random(seed=1)._draw("layer1.0.conv1", 3).tolist())


def test_batchnorm_scale_reads_the_norm_behind_the_layer():
    net = small_net()
    net[1].weight.data = torch.tensor([0.1, -0.9, 0.3, 0.0, 0.5, -0.2])
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8), frozen=["3"])
    scores = get_criterion("batchnorm_scale")(net, structure)
    assert scores["0"].tolist() == pytest.approx([0.1, 0.9, 0.3, 0.0, 0.5, 0.2])


def test_batchnorm_scale_without_a_norm_names_the_group():
    net = small_net()
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigurationError, match="no batch norm with a scale belongs to group 3; freeze"):
        get_criterion("batchnorm_scale")(net, structure)


def masked(conv: nn.Conv2d) -> None:
    torch.nn.utils.prune.ln_structured(conv, "weight", 0.5, n=1, dim=0)


def weight_normed(conv: nn.Conv2d) -> None:
    torch.nn.utils.parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations["weight"].original0.mul_(torch.linspace(1, 2, conv.out_channels).view(-1, 1, 1, 1))


def weight_normed_by_a_hook(conv: nn.Conv2d) -> None:
    torch.nn.utils.weight_norm(conv)
    with torch.no_grad():
        conv.weight_g.mul_(torch.linspace(1, 2, conv.out_channels).view(-1, 1, 1, 1))


@pytest.mark.parametrize(
    "compute",
    [
        masked,
        weight_normed,
        weight_normed_by_a_hook,
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_the_kernel_that_a_layer_computes_with_is_scored(compute) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    images = torch.randn(2, 3, 9, 9)
    compute(net[0])
    structure = infoprune.trace(net, images)
    scores = get_criterion("l1")(net, structure)["0"]
    net(images)  # hooks set the weight of a forward
    assert torch.allclose(scores.float(), net[0].weight.detach().abs().flatten(1).sum(dim=1))
    assert not torch.allclose(scores.float(), net.get_parameter(structure.layers[0].weight).abs().flatten(1).sum(dim=1))
