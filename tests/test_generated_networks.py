"""Random networks after random plans compute what the masked original computes."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import infoprune
from infoprune.structure import check_plan
from tests.networks import BLOCKS, Net, networks, randomise
from tests.oracle import relative_error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MANY = int(os.environ.get("INFOPRUNE_GENERATED_NETWORKS", "5000"))


def random_plan(structure: infoprune.Structure, seed: int) -> infoprune.PruningPlan:
    generator = np.random.default_rng(seed)
    removed = {}
    for group in structure.prunable:
        count = int(generator.integers(0, group.size))
        removed[group.name] = generator.choice(group.size, count, replace=False).tolist()
    return structure.plan(removed)


def of_deformable(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def of_bilinear(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * out_shape[0] * math.prod(weight)


def of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


MORE = {
    torch.ops.torchvision.deform_conv2d: of_deformable,
    torch.ops.aten._trilinear: of_bilinear,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: of_attention,
}
"""What PyTorch's own counter leaves out."""


def counted_macs(net: Net) -> float:
    """Multiply-accumulates for one example, by PyTorch's own counter."""
    copied = copy.deepcopy(net)  # some nets keep what they compute, in the precision of that call
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter, torch.no_grad():
        copied(X)
    return counter.get_total_flops() / 2 / len(X)


def check_exact(net: Net, seed: int) -> None:
    """Prune at random; compare with the masked original; costs and widths must agree with the model itself."""
    original = copy.deepcopy(net)
    structure = infoprune.trace(net, X)
    assert structure.cost().macs == pytest.approx(counted_macs(net), abs=0.51)
    plan = random_plan(structure, seed)
    check_plan(net, X, structure, plan)
    infoprune.shrink(net, plan)
    if not any(kind == "einsum" for kind, _ in net.kinds):  # of one channel it multiplies without a matrix product
        assert structure.cost_of(plan).macs == pytest.approx(counted_macs(net), abs=0.51)
    assert sum(p.numel() for p in net.parameters()) == structure.cost_of(plan).params
    check_computes_the_same(original, net, plan)


def check_computes_the_same(original: Net, net: Net, plan: infoprune.PruningPlan) -> None:
    if not any(kind == "layer_norm" and number % 2 == 0 for kind, number in net.kinds):  # no weight to tell what stays
        assert relative_error(original, net, plan, X) < 1e-8
    assert infoprune.verify(original, net, plan, X).ok


def check_call(net: Net, amount: float) -> None:
    """A whole call, which runs only its own plan dry where it can."""
    original = copy.deepcopy(net)
    plan = infoprune.prune(net, X, "l1", filters=1 - amount).plan
    check_computes_the_same(original, net, plan)


@given(networks(), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_plans_are_exact(net: Net, seed: int) -> None:
    check_exact(net, seed)


@given(networks(), st.floats(0.05, 0.95))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_whole_calls_are_exact(net: Net, amount: float) -> None:
    check_call(net, amount)


@pytest.mark.slow
@given(networks(most_blocks=10), st.floats(0.05, 0.95))
@settings(
    max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
)
def test_many_whole_calls_are_exact(net: Net, amount: float) -> None:
    check_call(net, amount)


@pytest.mark.slow
@given(networks(most_blocks=10), st.integers(0, 2**16))
@settings(
    max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
)
def test_many_random_plans_are_exact(net: Net, seed: int) -> None:
    check_exact(net, seed)


@pytest.mark.parametrize("number", [0, *(pytest.param(more, marks=pytest.mark.slow) for more in (1, 2, 3))])
@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_by_itself_is_exact(kind: str, number: int) -> None:
    check_exact(randomise(Net([(kind, number)], flatten=False)), seed=number)  # type: ignore[arg-type]


def test_a_single_channel_that_takes_another_way_through_einsum_keeps_its_label() -> None:
    """Found by the slow test: what einsum makes of one channel is concatenated with others behind it."""
    check_exact(randomise(Net([("residual", 0), ("einsum", 0), ("dense", 0)], flatten=False)), seed=4044)


def test_padding_meets_what_stays_on_another_way_through_a_linear_layer() -> None:
    """Found by the slow test: few channels let PyTorch compute a linear layer as a batched product."""
    kinds = [("plain", 0), ("glu", 0), ("einsum", 0), ("padded", 0), ("attention", 0)]
    check_exact(randomise(Net(kinds, flatten=False)), seed=0)


def test_a_single_channel_that_a_view_puts_on_the_batch_dimension_stays_where_it_was() -> None:
    """Found by the slow test: instance norm folds channels into the batch and unfolds them, twice with one channel."""
    kinds = [("instance_norm", 0), ("glu", 0), ("plain", 0), ("instance_norm", 0)]
    check_exact(randomise(Net(kinds, flatten=False)), seed=640)
