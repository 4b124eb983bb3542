from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from infoprune.errors import ConfigurationError
from infoprune.models import WarmupCosineLR


def sgd(lr: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    out = []
    for _ in range(steps):
        out.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return out


def test_without_warmup_it_is_torchs_cosine() -> None:
    ours = rates(WarmupCosineLR(sgd(0.3), epochs=10, min_lr=0.01), 10)
    assert ours == pytest.approx(rates(CosineAnnealingLR(sgd(0.3), T_max=10, eta_min=0.01), 10))


def test_warmup_is_linear_and_measured_in_epochs_when_stepped_on_batches() -> None:
    scheduler = WarmupCosineLR(sgd(), warmup_epochs=0.5)
    scheduler.follow(epochs=2, steps_per_epoch=8)
    first = rates(scheduler, 16)
    assert first[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a > b for a, b in pairwise(first[4:]))
    assert rates(scheduler, 1) == pytest.approx([0.0])


def test_the_end_is_held() -> None:
    assert rates(WarmupCosineLR(sgd(), epochs=2, min_lr=0.1), 5)[2:] == pytest.approx([0.1, 0.1, 0.1])


def test_a_resumed_run_may_be_longer() -> None:
    short = WarmupCosineLR(sgd(), epochs=4)
    rates(short, 2)
    state = short.state_dict()
    longer = WarmupCosineLR(sgd(), epochs=8)
    longer.load_state_dict(state)
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == pytest.approx([rates(WarmupCosineLR(sgd(), epochs=8), 4)[3]])


def test_errors() -> None:
    with pytest.raises(ConfigurationError, match="warmup_epochs=5 leaves nothing of a schedule of 5 epochs"):
        WarmupCosineLR(sgd(), epochs=5, warmup_epochs=5)
    scheduler = WarmupCosineLR(sgd())
    scheduler.optimizer.step()
    with pytest.raises(ConfigurationError, match="does not know how long"):
        scheduler.step()
    with pytest.raises(ConfigurationError, match="warmup_epochs=3"):
        WarmupCosineLR(sgd(), warmup_epochs=3).follow(epochs=2)
