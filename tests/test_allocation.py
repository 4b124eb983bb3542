"""How many filters stay: budgets that hold on real structures, and impossible demands that say why."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import infoprune
from infoprune.allocation import (
    Allocation,
    Budget,
    GlobalRanking,
    Isomorphic,
    PerLayer,
    Uniform,
    get_allocation,
    select,
)
from infoprune.allocation.grid import WidthGrid
from infoprune.criteria import get_criterion
from infoprune.errors import BudgetError, ConfigurationError
from infoprune.models import CifarResNet
from infoprune.structure import Structure
from tests.tiny import TinyNet


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(20, 33, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(33, 12, 1),
        nn.Flatten(),
        nn.Linear(12 * 64, 10),
    )


@functools.cache
def resnet() -> tuple[Structure, Mapping[str, torch.Tensor]]:
    """Return the structure of a ResNet-18 and its L1 scores."""
    net = torchvision.models.resnet18(num_classes=10)
    structure = infoprune.trace(net, torch.zeros(1, 3, 32, 32))
    return structure, get_criterion("l1")(net, structure)


SMALL = infoprune.trace(small_net(), torch.zeros(1, 3, 8, 8))
SMALL_SCORES = {group.name: torch.rand(group.size, dtype=torch.float64) for group in SMALL.prunable}

ALLOCATIONS: list[Allocation] = [
    Uniform(),
    GlobalRanking(floor=0.05),
    GlobalRanking(floor=0.2, normalize="minmax"),
    Isomorphic(),
    PerLayer(ratios={"*": 0.3, "layer3.*": 0.6, "layer4.0.conv1": 0.7}),
]


def share(structure: Structure, widths: dict[str, int], kind: str) -> float:
    return getattr(structure.cost(widths), kind) / getattr(structure.cost(), kind)


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.25])
def test_a_budget_is_met_within_one_percent_and_never_exceeded(allocation: Allocation, kind: str, keep: float):
    structure, scores = resnet()
    widths = allocation.widths(structure, scores, Budget(kind, keep))
    assert list(widths) == [group.name for group in structure.prunable]
    assert 0.99 * keep <= share(structure, widths, kind) <= keep
    assert share(structure, widths, kind) == pytest.approx(keep, rel=2e-3)


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_the_budget_holds_in_the_shrunk_model(kind: str):
    structure, scores = resnet()
    net = torchvision.models.resnet18(num_classes=10)
    widths = Uniform().widths(structure, scores, Budget(kind, 0.5))
    infoprune.shrink(net, select(structure, scores, widths))
    left = infoprune.trace(net, torch.zeros(1, 3, 32, 32)).cost()
    assert getattr(left, kind) / getattr(structure.cost(), kind) == pytest.approx(0.5, rel=0.01)
    assert sum(p.numel() for p in net.parameters()) == left.params


@settings(deadline=None, max_examples=60)
@given(
    allocation=st.sampled_from([*ALLOCATIONS[:3], PerLayer(ratios={"*": 0.4})]),
    kind=st.sampled_from(["macs", "params"]),
    keeps=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted),
    round_to=st.sampled_from([1, 2, 3, 8]),
    min_width=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_any_budget_keeps_every_rule(allocation, kind, keeps, round_to, min_width, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in SMALL.prunable}
    results = []
    for keep in keeps:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                widths = allocation.widths(SMALL, scores, Budget(kind, keep), round_to=round_to, min_width=min_width)
        except BudgetError:
            results.append(0.0)
            continue
        for group in SMALL.prunable:
            width = widths[group.name]
            assert 1 <= width <= group.size
            assert width == group.size or width % round_to == 0
            assert width >= min(group.size, min_width)
        assert share(SMALL, widths, kind) <= keep
        results.append(share(SMALL, widths, kind))
        plan = select(SMALL, scores, widths)
        assert SMALL.cost_of(plan) == SMALL.cost(widths)
    assert results[0] <= results[1], "a larger budget got a cheaper model"


@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 70),
    step=st.integers(1, 9),
    least=st.integers(1, 80),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_grids_never_empty_a_group_and_never_turn_back(size: int, step: int, least: int, shares: tuple[float, float]):
    grid = WidthGrid(size, step, least)
    widths = [grid.at(share) for share in sorted(shares)]
    assert widths == sorted(widths)
    for width in widths:
        assert grid.lowest <= width <= size
        assert width == size or width % step == 0
        assert width < grid.up(width) or width == size
        assert width > grid.down(width) or width == grid.lowest
        assert grid.up(width) == size or grid.up(width) % step == 0
        assert grid.down(width) == size or grid.down(width) % step == 0


def test_an_amount_keeps_the_whole_part_of_what_stays():
    widths = Uniform().widths(SMALL, amount=0.35)
    assert [widths[group.name] for group in SMALL.prunable] == [13, 21, 7]
    assert WidthGrid(10).at(1 - 0.9) == 1, "0.09999... of 10 is one unit"
    assert Uniform().widths(SMALL, amount=0.0) == {group.name: group.size for group in SMALL.prunable}
    assert set(Uniform().widths(SMALL, amount=0.999).values()) == {1}


def test_rounding_and_least_widths_without_a_budget():
    assert list(Uniform().widths(SMALL, amount=0.5, round_to=8).values()) == [8, 16, 8]
    assert list(Uniform().widths(SMALL, amount=0.9, min_width=4).values()) == [4, 4, 4]
    assert list(Uniform().widths(SMALL, amount=0.9, round_to=16).values()) == [16, 16, 12]


def test_gradual_cuts_refer_to_the_original():
    sizes = {group.name: group.size for group in SMALL.prunable}
    reference = SMALL.cost()
    net = small_net()
    structure, scores = SMALL, SMALL_SCORES
    for fraction in (0.25, 0.5, 1.0):
        widths = Uniform().widths(structure, scores, Budget("macs", 0.4), fraction=fraction, reference=reference)
        infoprune.shrink(net, select(structure, scores, widths))
        structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
        scores = {group.name: torch.rand(group.size, dtype=torch.float64) for group in structure.prunable}
        assert structure.cost().macs / reference.macs == pytest.approx(1 - fraction * 0.6, rel=0.015)
    structure = infoprune.trace(shrunk_to_half(), torch.zeros(1, 3, 8, 8))
    widths = Uniform().widths(structure, amount=0.8, sizes=sizes)
    assert [widths[group.name] for group in SMALL.prunable] == [4, 6, 2]
    assert PerLayer(ratios={"2": 0.6}).widths(structure, sizes=sizes, fraction=0.5)["2"] == 16


@pytest.mark.parametrize("keep", [0.9, 0.8, 0.75, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3])
def test_single_units_do_not_pull_a_uniform_cut_apart(keep: float):
    """Of two groups of 12 that cost alike, 9 and 12 may meet a budget better than 10 and 10; uniform it is not."""
    structure = infoprune.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        widths = Uniform().widths(structure, budget=Budget("macs", keep))
    assert max(widths.values()) - min(widths.values()) <= 2
    reached = share(structure, widths, "macs")
    assert 0.92 * keep < reached <= keep
    assert bool(told) == (reached < 0.99 * keep)  # then it says how near it came


def shrunk_to_half() -> nn.Module:
    net = small_net()
    infoprune.shrink(net, select(SMALL, SMALL_SCORES, Uniform().widths(SMALL, amount=0.5)))
    return net


def test_a_budget_that_the_model_already_meets_removes_nothing():
    assert Uniform().widths(SMALL, budget=Budget("macs", 1.0)) == {group.name: group.size for group in SMALL.prunable}


def test_a_budget_below_the_floor_says_the_floor():
    frozen = infoprune.trace(small_net(), torch.zeros(1, 3, 8, 8), frozen=["2"])
    floor = share(frozen, {group.name: 1 for group in frozen.prunable}, "macs")
    with pytest.raises(BudgetError, match=rf"macs budget of 0.02 is below the floor of {floor:.4g} .*frozen: 2"):
        Uniform().widths(frozen, budget=Budget("macs", 0.02))


def test_coarse_widths_say_how_near_they_come():
    with pytest.warns(UserWarning, match=r"the macs budget of 0.5 is met at 0.4\d+, the nearest .* with round_to=10 "):
        Uniform().widths(SMALL, budget=Budget("macs", 0.5), round_to=10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Budget("macs", 0.0), r"macs to keep must be in \(0, 1\], got 0.0"),
        (lambda: Budget("macs", 1.5), r"must be in \(0, 1\], got 1.5"),
        (lambda: Budget("mac", 0.5), "kind cannot be 'mac', did you mean 'macs'"),
        (lambda: Uniform().widths(SMALL), "needs a budget: .* or filters"),
        (lambda: Uniform().widths(SMALL, amount=1.0), r"amount must be in \[0, 1\), got 1.0"),
        (lambda: Uniform().widths(SMALL, amount=-0.1), r"amount must be in \[0, 1\), got -0.1"),
        (
            lambda: Uniform().widths(SMALL, amount=0.5, budget=Budget("macs", 0.5)),
            "macs budget of 0.5 and an amount of 0.5",
        ),
        (
            lambda: Uniform().widths(SMALL, amount=0.5, round_to=0),
            "round_to must be a whole number of at least 1, or 'auto', got 0",
        ),
        (
            lambda: Uniform().widths(SMALL, amount=0.5, min_width=0),
            "min_width must be a whole number of at least 1, got 0",
        ),
        (lambda: Uniform().widths(SMALL, amount=0.5, fraction=0.0), r"fraction must be in \(0, 1\], got 0.0"),
        (lambda: Uniform().widths(SMALL, budget=Budget("latency", 0.5)), "a latency budget needs a measure"),
        (lambda: GlobalRanking().widths(SMALL, amount=0.5), "ranks scores: pass the scores"),
        (lambda: GlobalRanking(floor=1.5), "floor must be a number of at least 0 and at most 1"),
        (lambda: PerLayer(), "needs ratios"),
        (lambda: PerLayer(ratios={"0": 1.0}), r"pattern '0': a ratio is the share .* got 1.0"),
        (lambda: PerLayer(ratios={"0": 0.5}).widths(SMALL, amount=0.5), "both say how many units go"),
        (lambda: PerLayer(ratios={"9": 0.5}).widths(SMALL), "no layer matches the pattern '9'"),
        (lambda: PerLayer(ratios={"6": 0.5}).widths(SMALL), "'6' with ratio 0.5 matches only frozen layers"),
        (lambda: get_allocation("unifrom"), "unknown allocation 'unifrom', did you mean 'uniform'"),
        (lambda: get_allocation({"name": "global", "flor": 0.1}), "no option 'flor', did you mean 'floor'"),
    ],
)
def test_impossible_demands_say_what_is_wrong(call, message: str):
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_nothing_to_prune_says_why():
    frozen = infoprune.trace(small_net(), torch.zeros(1, 3, 8, 8), frozen=["*"])
    with pytest.raises(ConfigurationError, match=r"nothing to prune: all .* channel groups are frozen"):
        Uniform().widths(frozen, amount=0.5)


def test_global_ranking_takes_the_lowest_units_of_the_model_and_respects_the_floor():
    scores = {"0": torch.ones(20), "2": torch.linspace(2, 3, 33), "4": torch.linspace(4, 5, 12)}
    scores = {name: value.double() for name, value in scores.items()}
    widths = GlobalRanking(floor=0.1, normalize="none").widths(SMALL, scores, amount=20 / 65)
    assert widths == {"0": 2, "2": 31, "4": 12}
    with pytest.raises(BudgetError, match=r"give filters=0\.\d+ or more"):
        GlobalRanking(floor=0.5).widths(SMALL, scores, amount=0.8)


def test_per_layer_later_patterns_override_earlier_ones_and_name_coupled_layers():
    structure, _ = resnet()
    widths = PerLayer(ratios={"layer*": 0.5, "layer1.0.conv1": 0.25}).widths(structure)
    assert (widths["layer1.0.conv1"], widths["layer1.1.conv1"]) == (48, 32)
    coupled = PerLayer(ratios={"layer1.1.conv2": 0.5}).widths(structure)
    assert {name for name, width in coupled.items() if width < structure.group(name).size} == {"conv1"}


def test_groups_without_scores_keep_everything():
    scores = {name: value for name, value in SMALL_SCORES.items() if name != "2"}
    assert set(Uniform().widths(SMALL, scores, amount=0.5)) == {"0", "4"}


def test_select_removes_the_lowest_and_of_equals_the_higher_index():
    scores = {"0": torch.tensor([2.0, 1.0, 1.0, 3.0] * 5), "2": torch.zeros(33), "4": torch.arange(12.0)}
    plan = select(SMALL, scores, {"0": 13, "2": 31, "4": 11})
    assert plan.removed["0.weight"][0] == (6, 9, 10, 13, 14, 17, 18)
    assert plan.removed["2.weight"] == {0: (31, 32), 1: (6, 9, 10, 13, 14, 17, 18)}
    assert plan.removed["4.weight"][0] == (0,)
    assert select(SMALL, scores, {}).is_empty


@pytest.mark.parametrize(
    ("scores", "widths", "message"),
    [
        (SMALL_SCORES, {"0": 0}, "group 0: cannot keep 0 of 20 units"),
        (SMALL_SCORES, {"0": 21}, "group 0: cannot keep 21 of 20 units"),
        (SMALL_SCORES, {"6": 3}, "group 6 is frozen"),
        (SMALL_SCORES, {"7": 3}, "no channel group is called '7'"),
        ({}, {"0": 3}, "group 0 has no scores"),
        ({"0": torch.zeros(3)}, {"0": 3}, r"group 0: \(3,\) scores for 20 units"),
    ],
)
def test_select_refuses_what_does_not_fit(scores, widths, message):
    with pytest.raises(ConfigurationError, match=message):
        select(SMALL, scores, widths)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("depth", [8, 20])
def test_a_budget_by_a_measure_is_met_within_one_percent(depth: int) -> None:
    """Also where many groups change at one pressure, and one unit of the stream that all blocks share is worth 2 %."""
    structure = infoprune.trace(CifarResNet(depth=depth), torch.zeros(1, 3, 32, 32))

    def share(widths: Mapping[str, int]) -> float:
        return structure.cost(widths).macs / structure.cost().macs

    last = 0.0
    for keep in (0.3, 0.31, 0.5, 0.501, 0.6, 0.8):
        widths = Uniform().widths(structure, budget=Budget("latency", keep), measure=share)
        reached = structure.cost(widths).macs / structure.cost().macs
        assert 0.99 * keep <= reached <= keep
        assert reached >= last
        last = reached


def test_a_timed_budget_that_the_widths_cannot_meet_is_met_from_below_with_a_warning() -> None:
    structure = infoprune.trace(CifarResNet(depth=8), torch.zeros(1, 3, 32, 32))

    def share(widths: Mapping[str, int]) -> float:  # a device that runs channels in blocks of 16
        blocks = {name: -(-width // 16) * 16 for name, width in widths.items()}
        return structure.cost({g.name: min(blocks[g.name], g.size) for g in structure.prunable}).macs

    whole = share({g.name: g.size for g in structure.prunable})
    with pytest.warns(UserWarning, match="the nearest from below"):
        widths = Uniform().widths(structure, budget=Budget("latency", 0.9), measure=lambda w: share(w) / whole)
    assert 0.5 < share(widths) / whole <= 0.9


@pytest.mark.parametrize("allocation", ["uniform", "global", "coupled_last"])
def test_layers_keep_what_min_width_says(allocation: str):
    structure, scores = resnet()
    rules = {"*": 0.25, "layer1.*": 40, "layer4.1.conv1": 7}
    widths = get_allocation(allocation).widths(structure, scores, Budget("macs", 0.2), min_width=rules)
    for name, width in widths.items():
        size = structure.group(name).size
        layers = {layer.name for layer, _ in structure.producers(structure.group(name))}
        wanted = 40 if any(layer.startswith("layer1.") for layer in layers) else size // 4
        assert width >= (7 if name == "layer4.1.conv1" else wanted), name
    assert widths["layer4.1.conv1"] < 160


@pytest.mark.parametrize("rules", [0, True, {"layer1.*": 0}, {"layer1.*": 1.5}, {"*": "4"}])
def test_min_width_out_of_range_is_refused(rules):
    structure, scores = resnet()
    with pytest.raises(ConfigurationError, match="min_width must be a whole number of at least 1, got"):
        Uniform().widths(structure, scores, Budget("macs", 0.5), min_width=rules)


def test_a_min_width_for_no_layer_is_refused():
    with pytest.raises(ConfigurationError, match=r"no layer matches the pattern 'layr1\.\*'"):
        infoprune.prune(small_net(), torch.zeros(1, 3, 8, 8), macs=0.5, min_width={"layr1.*": 4})


def test_isomorphic_rankings_stay_within_a_kind_of_structure():
    """A global ranking spares streams with scores a thousand times as high; this one does not notice."""
    structure, l1 = resnet()
    streams = [g.name for g in structure.prunable if len(structure.producers(g)) > 1]
    scores = {name: values * (1000 if name in streams else 1) for name, values in l1.items()}
    plain = Isomorphic(normalize="none")
    assert plain.widths(structure, scores, Budget("macs", 0.5)) == plain.widths(structure, l1, Budget("macs", 0.5))
    ranked = GlobalRanking(normalize="none")
    assert ranked.widths(structure, scores, Budget("macs", 0.5)) != ranked.widths(structure, l1, Budget("macs", 0.5))
