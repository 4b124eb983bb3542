"""Method A: its estimators against plain loops, their invariances, and layers where they have nothing to see."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import infoprune
from infoprune.criteria import CapacityIndependence
from infoprune.criteria.measures.capacity import CAPACITIES, capacity
from infoprune.criteria.measures.independence import INDEPENDENCES, independence


def bits(shares: list[float]) -> float:
    total = sum(shares)
    return -sum(s / total * math.log2(s / total) for s in shares if s > 0) if total else 0.0


def plain_capacity(filters: torch.Tensor, estimator: str, bins: int, neighbours: int) -> list[float]:
    low, high = filters.min().item(), filters.max().item()
    result = []
    for row in filters:
        if estimator == "histogram":
            counts = [0.0] * bins
            for weight in row.flatten().tolist():
                counts[min(bins - 1, int((weight - low) / (high - low) * bins))] += 1
            result.append(bits(counts))
        elif estimator == "gaussian":
            result.append(0.5 * math.log2(2 * math.pi * math.e * row.var(correction=0).item()))
        elif estimator == "kernel_norm":
            result.append(bits([kernel.norm().item() for kernel in row]))
        else:
            density = []
            for i, kernel in enumerate(row):
                others = sorted((kernel - other).norm().item() for j, other in enumerate(row) if j != i)
                density.append(sum(others[:neighbours]))
            result.append(bits(density))
    return result


def plain_independence(filters: torch.Tensor, estimator: str, neighbours: int) -> list[float]:
    rows = filters.flatten(1)
    result = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        if estimator == "correlation":
            rho = [abs(torch.corrcoef(torch.stack([row, other]))[0, 1].item()) for other in others]
            result.append(1 - sum(rho) / len(rho))
        else:
            distances = sorted((row - other).norm().item() for other in others)
            distances = distances[:neighbours] if estimator == "l2_knn" else distances
            result.append(sum(distances) / len(distances))
    return result


@pytest.mark.parametrize("shape", [(10, 7, 9), (5, 12, 1), (9, 3, 9), (2, 2, 4)])
def test_estimators_against_plain_loops(shape: tuple[int, int, int]):
    filters = torch.randn(shape, dtype=torch.float64) * torch.rand(shape[0], 1, 1, dtype=torch.float64)
    for name in CAPACITIES:
        expected = plain_capacity(filters, name, bins=16, neighbours=3)
        assert capacity(filters, name, bins=16, neighbours=3).tolist() == pytest.approx(expected, abs=1e-9), name
    for name in INDEPENDENCES:
        expected = plain_independence(filters, name, neighbours=3)
        assert independence(filters, name, neighbours=3).tolist() == pytest.approx(expected, abs=1e-9), name


def test_kernel_knn_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch):
    filters = torch.randn(7, 6, 4, dtype=torch.float64)
    whole = capacity(filters, "kernel_knn")
    monkeypatch.setattr("infoprune.criteria.measures.capacity.CHUNK", 2 * 6 * 6)
    assert torch.equal(capacity(filters, "kernel_knn"), whole)


def test_the_ends_of_kernel_norm():
    even = torch.ones(1, 8, 9, dtype=torch.float64)
    single = torch.zeros(1, 8, 9, dtype=torch.float64)
    single[0, 2] = 5.0
    assert capacity(torch.cat([even, single, 0 * even]), "kernel_norm").tolist() == pytest.approx([3.0, 0.0, 0.0])


@given(seed=st.integers(0, 1000), filters=st.integers(3, 12), kernels=st.integers(2, 9))
@settings(deadline=None, max_examples=30)
def test_order_of_kernels_does_not_matter(seed: int, filters: int, kernels: int):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(filters, kernels, 9, generator=generator, dtype=torch.float64)
    mixed = weights[:, torch.randperm(kernels, generator=generator)]
    for name in CAPACITIES:
        assert torch.allclose(capacity(weights, name), capacity(mixed, name)), name
    for name in INDEPENDENCES:
        assert torch.allclose(independence(weights, name), independence(mixed, name)), name


@given(seed=st.integers(0, 1000), factor=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_scale_free_estimators_do_not_see_the_scale_of_a_filter(seed: int, factor: float):
    weights = torch.randn(8, 5, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = weights.clone()
    scaled[2] *= factor
    assert torch.allclose(capacity(weights, "kernel_norm"), capacity(scaled, "kernel_norm"))
    assert torch.allclose(capacity(weights, "kernel_knn"), capacity(scaled, "kernel_knn"))
    assert torch.allclose(independence(weights, "correlation"), independence(scaled, "correlation"))


def test_a_copy_makes_a_filter_less_independent():
    weights = torch.randn(8, 5, 9, dtype=torch.float64)
    copied = weights.clone()
    copied[7] = copied[0]
    for name in INDEPENDENCES:
        assert independence(copied, name)[0] < independence(weights, name)[0], name
    assert independence(copied, "l2_knn", neighbours=1)[0] == 0


def test_balance_one_and_zero_are_the_single_metrics_and_half_is_their_mean():
    weights = torch.randn(9, 4, 9, dtype=torch.float64)
    for cap, ind in itertools.product(CAPACITIES, INDEPENDENCES):
        one, zero, half = (
            CapacityIndependence(capacity=cap, independence=ind, balance=balance).filter_scores(weights)
            for balance in (1.0, 0.0, 0.5)
        )
        assert torch.equal(one.argsort(), capacity(weights, cap).argsort())
        assert torch.equal(zero.argsort(), independence(weights, ind).argsort())
        assert torch.allclose(half, (one + zero) / 2)
        assert (one.min(), one.max(), zero.min(), zero.max()) == (0, 1, 0, 1)


@pytest.mark.parametrize("cap", CAPACITIES)
@pytest.mark.parametrize("ind", INDEPENDENCES)
@pytest.mark.parametrize(
    "weights",
    [
        torch.zeros(6, 3, 9),
        torch.full((6, 3, 9), 0.1),
        torch.randn(1, 4, 9).expand(6, 4, 9),
        torch.randn(6, 1, 9),
        torch.randn(6, 1, 1),
        torch.randn(1, 4, 9),
        torch.randn(6, 4, 9) * torch.tensor([1.0, 1, 1, 0, 1, 1])[:, None, None],
        torch.randn(6, 4, 9) * 1e-30,
    ],
    ids=["zeros", "constant", "all the same", "depthwise", "one weight", "one filter", "a dead filter", "tiny"],
)
def test_layers_where_a_metric_has_nothing_to_see_stay_finite(cap: str, ind: str, weights: torch.Tensor, request):
    scores = CapacityIndependence(capacity=cap, independence=ind).filter_scores(weights.double())
    assert torch.isfinite(scores).all()
    assert (scores.min() >= 0) & (scores.max() <= 1)
    case = request.node.callspec.id
    if any(word in case for word in ("zeros", "constant", "all the same", "one filter")):
        assert scores.tolist() == [0.0] * len(scores)
    if "depthwise" in case or "one weight" in case:
        assert scores.max() > 0


def test_a_dead_filter_has_the_least_capacity_and_is_not_independent_by_correlation():
    weights = torch.randn(6, 4, 9, dtype=torch.float64)
    weights[3] = 0
    for name in CAPACITIES:
        assert capacity(weights, name).argmin() == 3, name
    assert independence(weights, "correlation").argmin() == 3


def test_depthwise_and_pointwise_layers_are_scored_in_a_net():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    )
    structure = infoprune.trace(net, torch.zeros(1, 3, 6, 6))
    scores = CapacityIndependence()(net, structure)
    pointwise = CapacityIndependence().filter_scores(net[0].weight.detach().double().flatten(2))
    depthwise = CapacityIndependence().filter_scores(net[2].weight.detach().double().flatten(2))
    normal = [(row - row.min()) / (row.max() - row.min()) for row in (pointwise, depthwise)]
    assert torch.allclose(scores["0"], sum(normal) / 2)
