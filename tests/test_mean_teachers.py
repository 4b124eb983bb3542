"""Mean teachers, which training and evaluation run, follow a cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class MeanTeacher(TinyModule):
    """The teacher labels in training, and is what forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(batch[0])
        student = self.net(batch[0])
        return nn.functional.mse_loss(student, wanted) + nn.functional.cross_entropy(student, batch[1])

    @torch.no_grad()
    def on_before_zero_grad(self, *_: Any) -> None:
        for old, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            old.lerp_(new, 0.1)


@pytest.mark.parametrize("everything", [True, False], ids=["all-in-the-optimizer", "only-the-trained"])
def test_a_mean_teacher_that_both_modes_run_follows(everything: bool) -> None:
    module = MeanTeacher()
    if not everything:
        module.make_optimizer = lambda _: torch.optim.SGD(module.net.parameters(), lr=0.1)
    trainer(pruning((1,)), epochs=2).fit(module, loader())
    assert widths(module.teacher) == widths(module.net) != widths(TinyNet())
