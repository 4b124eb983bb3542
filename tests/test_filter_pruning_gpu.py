"""FilterPruning on a GPU: what the CPU cannot show."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import SGD, AdamW

from tests.tiny import Sound, TinyModule, loader, pruning, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
@pytest.mark.parametrize(
    "make",
    [partial(SGD, lr=0.05, momentum=0.9), partial(AdamW, lr=0.01, fused=True), partial(AdamW, lr=0.01, foreach=True)],
    ids=["sgd", "fused", "foreach"],
)
def test_mixed_precision_and_its_scaler(precision: str, make: Any) -> None:
    """Traps 1 and 3: the GradScaler of 16-mixed meets new parameters; fused kernels read state of any shape."""
    module, sound = TinyModule(make), Sound()
    trainer(pruning((1, 2)), sound, precision=precision, accumulate_grad_batches=2, **GPU).fit(module, loader())
    assert sound.events == 2
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_nccl_and_synchronised_norms() -> None:
    """DDP over NCCL with SyncBatchNorm, whose layers shrink like other norms."""
    module, sound = TinyModule(), Sound()
    strategy = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    fit = trainer(pruning((1, 2)), sound, strategy=strategy, sync_batchnorm=True, **GPU)
    fit.fit(module, loader(), loader())
    assert sound.events == 2
    assert module.net.norm.num_features == module.net.stem.out_channels < 12
    torch.distributed.destroy_process_group()


def test_the_same_plan_as_on_the_cpu() -> None:
    """Scores are taken in float64 on the CPU, so a plan does not depend on the device."""
    torch.manual_seed(0)
    here, there = TinyModule(), TinyModule()
    there.load_state_dict(here.state_dict())
    plans = []
    for module, device in ((here, {}), (there, GPU)):
        callback = pruning(0, criterion="capacity_independence")
        trainer(callback, epochs=1, limit_train_batches=1, **device).fit(module, loader())
        plans.append(callback.history[0].kept)
    assert plans[0] == plans[1]
    assert 0 < len(plans[0]["stem"]) < 12


def test_channels_last_and_compiled() -> None:
    """Memory layout and compiled code on the device."""
    module, sound = TinyModule().to(memory_format=torch.channels_last), Sound()
    module.net.compile(backend="aot_eager")
    trainer(pruning((1, 2)), sound, **GPU).fit(module, loader())
    assert sound.events == 2
    assert module.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
