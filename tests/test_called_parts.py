"""Training steps that cannot be run on shapes: the parts that they call are traced, and keep what they return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class Mined(TinyModule):
    """Metric learning: the loss takes the pairs whose distance is large, however many they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.embedder(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        embedded = self.embedder(self.net(images))
        first, second = torch.nonzero(labels[:, None] != labels[None], as_tuple=True)
        far = (embedded[first] - embedded[second]).norm(dim=1)
        hard = far[far < far.median().item()]
        assert hard.numel()
        near = [embedded[labels == label].var(0, correction=0).sum() for label in labels.unique().tolist()]
        return torch.stack(near).mean() - hard.mean()


class Taught(Mined):
    """The same, with hints of a frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = TinyNet().requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hint = nn.functional.mse_loss(self.net(batch[0]), self.teacher(batch[0]))
        return super().training_step(batch, batch_idx) + hint


class Branched(TinyModule):
    """As STFPM: the step calls ``forward`` of a wrapper, which returns another thing in eval mode."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = TinyNet().requires_grad_(False), TinyNet()

        def forward(self, x: Tensor) -> Any:
            both = {"teacher": self.teacher(x), "student": self.student(x)}
            return both if self.training else (both["teacher"] - both["student"]).norm(dim=1)

    def __init__(self) -> None:
        super().__init__(net=self.Pair())
        self.make_optimizer = lambda _: torch.optim.SGD(self.net.student.parameters(), lr=0.1)

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch["image"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        both = self.net.forward(batch[0])
        return nn.functional.mse_loss(both["student"], both["teacher"])


def test_a_step_that_looks_for_pairs() -> None:
    module = Mined()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert module.net(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert module.embedder[0].out_features < 24
    assert module(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_a_frozen_teacher_that_such_a_step_calls_stays_whole() -> None:
    module = Taught()
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet()) == widths(module.teacher)


def test_a_step_that_train_mode_alone_can_run() -> None:
    module = Branched()
    trainer(pruning((1,), filters=0.5), epochs=2).fit(module, loader())
    assert widths(module.net.student) != widths(TinyNet()) == widths(module.net.teacher)
