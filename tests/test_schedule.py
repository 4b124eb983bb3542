"""When filters go: reading schedules, and refusing those that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoprune.errors import ConfigurationError
from infoprune.schedule import Schedule

pytestmark = pytest.mark.smoke


def test_a_list_of_epochs_takes_equal_steps_in_order_of_time():
    assert Schedule.parse([6, 2, 4]).events == ((2, pytest.approx(1 / 3)), (4, pytest.approx(2 / 3)), (6, 1.0))


def test_one_epoch_is_one_shot():
    assert Schedule.parse(3).events == ((3, 1.0),)
    assert Schedule.parse({"start": 3, "kind": "one_shot"}).events == ((3, 1.0),)


def test_pairs_and_finished_schedules_stay_as_they_are():
    schedule = Schedule.parse([[1, 0.5], [4, 1.0]])
    assert schedule.events == ((1, 0.5), (4, 1.0))
    assert Schedule.parse(schedule) is schedule


def test_cubic_is_zhu_and_gupta_and_the_default():
    schedule = Schedule.parse({"start": 2, "end": 8, "every": 2})
    assert schedule.epochs == (2, 4, 6, 8)
    assert [f for _, f in schedule.events] == pytest.approx([1 - (3 / 4) ** 3, 1 - (2 / 4) ** 3, 1 - (1 / 4) ** 3, 1.0])
    linear = Schedule.parse({"start": 2, "end": 8, "every": 2, "kind": "linear"})
    assert [f for _, f in linear.events] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_fraction_at():
    schedule = Schedule.parse([1, 3])
    assert (schedule.fraction_at(1), schedule.fraction_at(2), schedule.fraction_at(3)) == (0.5, None, 1.0)


@given(
    start=st.integers(0, 50),
    length=st.integers(0, 50),
    every=st.integers(1, 9),
    kind=st.sampled_from(["linear", "cubic"]),
)
def test_gradual_schedules_rise_to_one_inside_their_range(start: int, length: int, every: int, kind: str):
    schedule = Schedule.parse({"start": start, "end": start + length, "every": every, "kind": kind})
    fractions = [fraction for _, fraction in schedule.events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert fractions[0] > 0
    assert schedule.epochs[0] == start
    assert start + length - every < schedule.epochs[-1] <= start + length


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "no event"),
        ([2, -1], "epoch -1 is negative"),
        ([2, 4, 2], "epoch 2 is repeated"),
        ([1.5], "whole epochs"),
        ([True], "whole number, got True"),
        ("2", "a schedule is"),
        (None, "a schedule is"),
        ([[1, 0.0]], r"epoch 1 must be in \(0, 1\], got 0.0"),
        ([[1, 0.8], [2, 0.5]], "falls from 0.8 at epoch 1 to 0.5 at epoch 2"),
        ([[4, 0.5], [2, 1.0]], "epoch 2 comes after epoch 4"),
        ({"start": 5, "end": 3}, "end 3 comes before start 5"),
        ({"start": 1, "end": 3, "every": 0}, "every must be at least 1, got 0"),
        ({"start": 1}, "end is missing"),
        ({"start": 1.5, "end": 3}, "start must be a whole number, got 1.5"),
        ({"start": 1, "end": 3, "kind": "cubik"}, "unknown kind 'cubik', did you mean 'cubic'"),
        ({"start": 1, "end": 3, "evry": 2}, "no option 'evry', did you mean 'every'"),
        ({"start": 1, "end": 3, "kind": "one_shot"}, "takes start alone"),
    ],
)
def test_impossible_schedules_say_what_is_wrong(spec: object, message: str):
    with pytest.raises(ConfigurationError, match=message):
        Schedule.parse(spec)  # type: ignore[arg-type]


def test_events_beyond_the_last_epoch_name_both_numbers():
    with pytest.raises(ConfigurationError, match="event at epoch 10, but max_epochs is 10 and the last epoch is 9"):
        Schedule.parse([2, 10], max_epochs=10)
    Schedule.parse([2, 9], max_epochs=10)
    Schedule.parse([2, 900], max_epochs=-1)
