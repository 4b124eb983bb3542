"""Plans from strangers: refused by size, name and type before they take memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from infoprune import PruningPlan
from infoprune.errors import PlanError
from infoprune.structure.plan import part_of
from infoprune.structure.plan_format import MAX_INDICES


def text_of(removed: str, size: int = 16, **more: Any) -> str:
    tensors = {"net.weight": {"shape": [size, 4], "removed": {"0": removed}}}
    return json.dumps({"format": 1, "tensors": tensors, **more})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (text_of("1" + "0" * 20), r"index 1(0){20} of dimension 0 of net\.weight, which has 16"),
        (text_of("0-4000000000"), "index 4000000000 of dimension 0"),
        (text_of("3-" + "9" * 30), "index 9+ of dimension 0"),
        (text_of("9" * 5000), "malformed: ValueError"),
        (text_of("0-2000000000", size=2_100_000_000), f"more than {MAX_INDICES:,} indices"),
        (text_of("1", size=10**20), "expected a size from 0 to"),
        (text_of("1", size=-16), "expected a size from 0 to"),
        (text_of("0-3,2-5"), "repeated or not in order"),
        (text_of("1", attributes={"net.heads": [4, 10**20]}), "expected a size"),
        (text_of("1", attributes={"net.heads": [True, False]}), "expected a whole number"),
        (text_of("1", caches=[["net"]]), "expected a name"),
        (text_of("1", caches=["net.\x1b[2J"]), "cannot be printed"),
        (text_of("1", caches=["n" * 5000]), "longer than"),
        ('{"format": 1, "tensors": {"net.weight": {"shape": 1' + "0" * 5000 + "}}}", "truncated or not JSON"),
        ('{"a":' * 50_000, "truncated or not JSON"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_plans_that_stand_for_more_than_they_say(text: str, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PlanError, match=message) as error:
            PruningPlan.from_json(text)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 400


def test_runs_that_are_alike_are_read_once() -> None:
    tensors = {f"{i}.weight": {"shape": [1 << 20], "removed": {"0": "0-900000"}} for i in range(30)}
    plan = PruningPlan.from_dict({"format": 1, "tensors": tensors})
    assert plan.removed["0.weight"][0] is plan.removed["29.weight"][0]
    assert plan.shape_after("7.weight") == ((1 << 20) - 900_001,)


def test_plans_made_in_python_are_checked_too() -> None:
    for indices in ((10**20,), ("a",), (1, (2, 3))):
        with pytest.raises(PlanError, match=r"net\.weight are no whole numbers"):
            PruningPlan({"net.weight": {0: indices}}, {"net.weight": (16, 4)})  # type: ignore[dict-item]


def test_a_part_of_a_plan_is_the_plan_of_those_tensors_alone() -> None:
    both = PruningPlan(
        {"conv.weight": {0: (1, 2), 1: (0,)}, "conv.bias": {0: (1, 2)}},
        {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)},
        {"width": (4, 2)},
        ("cache",),
    )
    part = part_of(both, {"weight": "conv.weight"})
    alone = PruningPlan({"weight": {0: (1, 2), 1: (0,)}}, {"weight": (4, 3, 3, 3)})
    assert part == alone
    assert part.shape_after("weight") == (2, 2, 3, 3)
    assert part.indices("weight", 0).tolist() == [1, 2]
    assert PruningPlan.from_json(part.to_json()) == alone
    assert both.shape_after("conv.bias") == (2,)
