"""Method B's widths: indicators against plain formulas, fusion, and budgets."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import infoprune
from infoprune.allocation import Budget, InformationConcentration, get_allocation
from infoprune.criteria.measures.concentration import Concentration, Indicators
from infoprune.criteria.measures.feature_entropy import histogram_entropy, pixel_entropy
from infoprune.errors import BudgetError, ConfigurationError, DataError
from tests.tiers import thinned


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(20, 16, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()


NET = net()
STRUCTURE = infoprune.trace(NET, torch.zeros(1, 3, 12, 12))
IMAGES = torch.randn(70, 3, 12, 12, generator=torch.Generator().manual_seed(5))
DATA = [IMAGES[:30], IMAGES[30:]]


def activations() -> dict[str, Tensor]:
    with torch.no_grad():
        first = NET[:3](IMAGES)
        second = torch.relu(NET[4](NET[3](first)))
        third = NET[6:9](second)
    return {"0": first, "4": second, "7": third}


def plain_rank(maps: Tensor, how: str) -> float:
    pooled = maps.mean(dim=(2, 3)).double()
    if how == "layer" or maps.shape[2] == 1:
        rank = torch.linalg.matrix_rank(pooled).item()
        return rank if how == "raw" else rank / min(pooled.shape)
    ranks = [torch.linalg.matrix_rank(m).item() for m in maps.flatten(0, 1)]
    return sum(ranks) / len(ranks) / (1 if how == "raw" else min(maps.shape[2:]))


def plain_entropy(maps: Tensor, how: str, bins: int) -> float:
    if how == "hist":
        return histogram_entropy(maps.mean(dim=(2, 3)).double(), bins, correct=len(maps) < 20 * bins).mean().item()
    if how == "pix":
        return pixel_entropy(maps).mean().item()
    if how == "chan":
        size = maps.abs().mean(dim=(0, 2, 3)).double()
        return torch.special.entr(size / size.sum()).sum().item() / math.log(len(size))
    values = maps.double().flatten()
    shares = torch.histc(values, bins, values.min().item(), values.max().item()) / len(values)
    return torch.special.entr(shares).sum().item() / math.log(bins)


@pytest.mark.parametrize("rank", ["map", "layer", "raw"])
@pytest.mark.parametrize("entropy", thinned(["hist", "pix", "chan", "act"]))
def test_indicators_against_plain_formulas(rank: str, entropy: str):
    found = Concentration(rank=rank, entropy=entropy, bins=8).measure(NET, STRUCTURE, DATA)
    assert list(found) == ["0", "4", "7"]
    for name, maps in activations().items():
        assert found[name].rank == pytest.approx(plain_rank(maps, rank))
        assert found[name].entropy == pytest.approx(plain_entropy(maps, entropy, 8), abs=1e-4)


def test_fusions():
    indicators = {
        "a": Indicators(0.5, 0.2),
        "b": Indicators(1.0, 0.4),
        "c": Indicators(0.25, 0.8),
        "d": Indicators(0.0, 0.8),
    }
    r, h = {"a": 0.5, "b": 1.0, "c": 0.25, "d": 0.0}, {"a": 0.25, "b": 0.5, "c": 1.0, "d": 1.0}

    def fused(**options: object) -> dict[str, float]:
        return Concentration(**options).fuse(indicators)

    assert fused() == pytest.approx({k: 2 * r[k] * h[k] / (r[k] + h[k]) for k in r})
    assert fused(fusion="arithmetic", rank_weight=0.25) == pytest.approx({k: 0.25 * r[k] + 0.75 * h[k] for k in r})
    assert fused(fusion="geometric", rank_weight=0.25) == pytest.approx({k: r[k] ** 0.25 * h[k] ** 0.75 for k in r})
    for fusion in ("harmonic", "arithmetic", "geometric"):
        assert fused(fusion=fusion, rank_weight=1.0) == pytest.approx(r)
        assert fused(fusion=fusion, rank_weight=0.0) == pytest.approx(h)


def test_poorer_layers_lose_more_and_the_budget_holds():
    known = InformationConcentration(concentrations={"0": 0.9, "4": 0.3, "7": 0.6})
    widths = known.widths(STRUCTURE, budget=Budget("params", 0.4))
    shares = {name: widths[name] / STRUCTURE.group(name).size for name in widths}
    assert shares["4"] < shares["7"] < shares["0"]
    params = STRUCTURE.cost(widths).params / STRUCTURE.cost().params
    assert 0.99 * 0.4 <= params <= 0.4
    sharper = InformationConcentration(concentrations=known.concentrations, sharpness=3.0)
    plain, uneven = (a.widths(STRUCTURE, budget=Budget("params", 0.3)) for a in (known, sharper))
    assert uneven["4"] / uneven["0"] < plain["4"] / plain["0"]
    flat = InformationConcentration(concentrations=known.concentrations, sharpness=0.0)
    assert list(flat.widths(STRUCTURE, amount=0.5).values()) == [6, 10, 8]


def test_shares_are_proportional_to_concentration_and_clipped():
    allocation = InformationConcentration(concentrations={"0": 1.0, "4": 0.5, "7": 0.01}, floor=0.25)
    widths = allocation.widths(STRUCTURE, amount=0.5)
    assert sum(widths.values()) == 24
    assert widths["7"] == 4
    assert widths["4"] / 20 == pytest.approx(widths["0"] / 12 / 2, abs=0.06)


def test_stages_share_their_mean():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.Conv2d(10, 2, 1)
    )
    structure = infoprune.trace(model, torch.zeros(1, 3, 6, 6))
    known = {"0": 0.2, "2": 0.6, "4": 0.9}
    single = InformationConcentration(concentrations=known).widths(structure, amount=0.4)
    stages = InformationConcentration(concentrations=known, by_stage=True).widths(structure, amount=0.4)
    assert single["0"] < single["2"]
    assert abs(stages["0"] - stages["2"]) <= 1
    assert stages["4"] / 10 > stages["0"] / 8


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    sharpness=st.floats(0, 4),
    keeps=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
)
def test_any_concentrations_keep_the_rules(values: list[float], sharpness: float, keeps: list[float]):
    allocation = InformationConcentration(
        concentrations=dict(zip(("0", "4", "7"), values, strict=True)), sharpness=sharpness
    )
    costs = []
    for keep in keeps:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                widths = allocation.widths(STRUCTURE, budget=Budget("params", keep))
        except BudgetError:
            costs.append(0)
            continue
        assert all(1 <= widths[group.name] <= group.size for group in STRUCTURE.prunable)
        costs.append(STRUCTURE.cost(widths).params)
        assert costs[-1] <= keep * STRUCTURE.cost().params
    assert costs[0] <= costs[1]


def test_prepared_measures_once_and_leaves_no_trace():
    allocation = get_allocation({"name": "information_concentration", "bins": 8})
    assert allocation.needs_data
    prepared = allocation.prepared(NET, STRUCTURE, DATA)
    assert isinstance(prepared, InformationConcentration)
    assert allocation.concentrations is None
    expected = Concentration(bins=8, rank="layer").fuse(Concentration(bins=8).measure(NET, STRUCTURE, DATA))
    assert prepared.concentrations == expected
    assert prepared.prepared(NET, STRUCTURE, None) is prepared
    assert set(prepared.widths(STRUCTURE, budget=Budget("macs", 0.5))) == {"0", "4", "7"}
    assert get_allocation("uniform").prepared(NET, STRUCTURE, None) == get_allocation("uniform")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: InformationConcentration(rank="maps"),
            ConfigurationError,
            "rank cannot be 'maps', did you mean 'map'",
        ),
        (
            lambda: InformationConcentration(entropy="history"),
            ConfigurationError,
            "entropy cannot be 'history', did you",
        ),
        (lambda: InformationConcentration(fusion="mean"), ConfigurationError, "fusion cannot be 'mean'"),
        (lambda: InformationConcentration(rank_weight=2), ConfigurationError, "rank_weight must be a number .* got 2"),
        (
            lambda: InformationConcentration(sharpness=-1),
            ConfigurationError,
            "sharpness must be a number of at least 0",
        ),
        (
            lambda: InformationConcentration().widths(STRUCTURE, amount=0.5),
            ConfigurationError,
            "nothing measured yet: call prepared",
        ),
        (
            lambda: InformationConcentration().prepared(NET, STRUCTURE, None),
            ConfigurationError,
            "pass batches of training images",
        ),
        (
            lambda: InformationConcentration().prepared(NET, STRUCTURE, [IMAGES[:9]]),
            DataError,
            "9 calibration images are too few for a histogram of 32",
        ),
        (lambda: Concentration(entropy="act").measure(NET, STRUCTURE, iter(DATA)), DataError, "reads the data twice"),
        (
            lambda: InformationConcentration(concentrations={"0": 1.0}).widths(STRUCTURE, amount=0.5),
            ConfigurationError,
            "no concentration of 4; measure",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(call, error, message: str):
    with pytest.raises(error, match=message):
        call()
