"""What the default allocation of a fit measures on: the inputs that the network receives in the training step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from infoprune import FilterPruning
from infoprune.callbacks.engine.calibration import NetworkCalibration
from infoprune.inputs import ByMode
from tests.test_strangers import PROJECTS
from tests.tiers import slow, thinned
from tests.tiny import TinyModule, TinyNet, loader, trainer

IMAGES, LABELS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def calibration(batch: Any, receive: Any, example: Any = IMAGES[:1]) -> list[Any]:
    return list(NetworkCalibration([batch, batch], example, receive))


def test_what_the_step_hands_on_comes_with_its_targets() -> None:
    for batch in ((IMAGES, LABELS), {"image": IMAGES, "label": LABELS}):
        inputs, targets = calibration(batch, lambda given: IMAGES)[0]
        assert inputs is IMAGES
        assert targets is LABELS


def test_what_the_step_computes_is_what_counts() -> None:
    (inputs, targets), second = calibration((IMAGES, LABELS), lambda batch: (batch[0] - 1) / 2)
    assert torch.equal(inputs, (IMAGES - 1) / 2)
    assert targets is None
    assert torch.equal(second[0], inputs)


def test_noise_is_the_same_in_every_reading_and_the_random_state_stays() -> None:
    state = torch.get_rng_state()
    data = NetworkCalibration([IMAGES, IMAGES], ByMode(torch.zeros(1, 5), None), lambda batch: torch.randn(4, 5))
    first, again = ([inputs for inputs, _ in data] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(*first)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_the_step_cannot_be_run_the_batch_has_to_do() -> None:
    inputs, _ = calibration((IMAGES, LABELS), lambda batch: None)[0]
    assert inputs is IMAGES


class Normalising(TinyModule):
    """Computes the network's inputs in its training step."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss((batch[0] * 100 + 7, batch[1]))


def test_a_step_that_normalises_is_measured_on_what_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    own = NetworkCalibration.__iter__

    def noted(self: NetworkCalibration) -> Any:
        for batch in own(self):
            seen.append(batch[0])
            yield batch

    monkeypatch.setattr(NetworkCalibration, "__iter__", noted)
    trainer(FilterPruning(macs=0.5, schedule=[1]), epochs=2).fit(Normalising(net=TinyNet(16, 16)), loader())
    assert seen
    assert all(images.abs().max() > 50 for images in seen)


LONG = ("byol", "detection", "volumes")


@pytest.mark.parametrize("name", [*thinned((name for name in PROJECTS if name not in LONG), 3), *map(slow, LONG)])
def test_the_shortest_line_measures_on_projects_of_all_kinds(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    callback = FilterPruning(macs=0.5, schedule=[1])
    with caplog.at_level(logging.WARNING):
        trainer(callback, epochs=2).fit(PROJECTS[name]())
    assert "widths by rule" not in caplog.text
    assert callback.history[0].curves
    assert callback.unpruned is not None
    assert callback.history[0].macs <= 0.5 * callback.unpruned.macs
