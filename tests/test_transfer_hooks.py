"""Batches that infoprune takes from the training data pass the same hooks as in training."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched(TinyModule):
    """Hooks around the transfer make images out of bytes, and the step takes its labels out of the batch."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return {"images": images.permute(0, 2, 3, 1).contiguous(), "labels": labels}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "images": batch["images"].permute(0, 3, 1, 2)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["images"]), batch.pop("labels"))


def test_batches_pass_the_hooks_around_their_transfer(caplog: pytest.LogCaptureFixture) -> None:
    """The default allocation measures on them: no fallback to the rule of thumb."""
    module = Watched()
    trainer(pruning((1,), allocation="information_loss", macs=0.5), epochs=2).fit(module, loader())
    assert widths(module.net) != widths(TinyNet())
    assert "could not be measured" not in caplog.text
