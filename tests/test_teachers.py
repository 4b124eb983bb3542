"""Networks that nothing trains and whose outputs the loss reads stay whole, also where evaluation runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infoprune.errors import BudgetError
from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class Compared(nn.Module):
    """Anomaly detection: how far a student is from a teacher of another width. ``forward`` runs both in every mode."""

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self.teacher, self.student, self.quiet = TinyNet(16, 20).requires_grad_(False), TinyNet(), quiet
        self.scale = nn.Parameter(torch.full((1, 3), 2.0))  # of the teacher's outputs; in no optimizer

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.quiet and torch.is_grad_enabled()):
            wanted = self.scale * self.teacher(x) + 1
        return (self.student(x) - wanted).square().mean(1)


class Anomalies(TinyModule):
    def __init__(self, quiet: bool = True) -> None:
        super().__init__(net=Compared(quiet))
        mine = self.net if quiet else self.net.student  # frozen parameters may be in the optimizer
        self.make_optimizer = lambda _: torch.optim.SGD([p for n, p in mine.named_parameters() if n != "scale"], lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self(batch[0]).mean()}


@pytest.mark.parametrize("quiet", [True, False])
def test_a_teacher_that_evaluation_runs_too_stays_whole(quiet: bool) -> None:
    module = Anomalies(quiet)
    trainer(pruning((1,), filters=0.5), epochs=2).fit(module, loader())
    assert widths(module.net.student) != widths(TinyNet())
    assert widths(module.net.teacher) == widths(TinyNet(16, 20))


def test_a_budget_that_only_the_teacher_could_meet_is_refused_at_the_start() -> None:
    module = Anomalies()
    run = trainer(pruning((1,), params=0.2), epochs=2)
    with pytest.raises(BudgetError):
        run.fit(module, loader())
    assert run.global_step == 0


class Distilled(nn.Module):
    """Reverse distillation: trained layers read the teacher's features too, and give them back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)])
        self.encoder.requires_grad_(False)
        self.decoder = nn.Sequential(nn.Conv2d(10, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 10, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder[1](self.encoder[0](x).relu())
        return 1 - nn.functional.cosine_similarity(self.decoder(features), features)


def test_a_teacher_that_trained_layers_read_too_stays_whole() -> None:
    module = Anomalies()
    module.net = Distilled()
    module.make_optimizer = lambda _: torch.optim.SGD(module.net.decoder.parameters(), lr=0.1)
    trainer(pruning((1,), filters=0.5), epochs=2).fit(module, loader())
    assert widths(module.net.encoder) == [12, 10]
    assert widths(module.net.decoder) == [8, 10]


def test_without_an_optimizer_nothing_is_a_teacher() -> None:
    class Idle(TinyModule):
        def configure_optimizers(self) -> None:
            return None

    module = Idle()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())


class Probe(TinyModule):
    """A frozen network that a trained head reads, behind ``no_grad`` as in linear probing."""

    def __init__(self) -> None:
        super().__init__()
        self.net.requires_grad_(False)
        self.probe = nn.Linear(3, 3)
        self.make_optimizer = lambda _: torch.optim.SGD(self.probe.parameters(), lr=0.1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.net(x)
        return self.probe(features)


def test_a_frozen_network_that_a_trained_head_reads_is_cut() -> None:
    module = Probe()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
