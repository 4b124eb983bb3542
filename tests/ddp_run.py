"""What the DDP tests run in two processes: ``python ddp_run.py FOLDER SCENARIO...`` (started again by Lightning)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.nn.functional import all_reduce
from torch.utils.data import DataLoader, DistributedSampler

from infoprune.callbacks import Distillation
from infoprune.criteria import L1
from tests.tiny import Sound, TinyModule, images, pruning, sgd, trainer


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


class StillNorm(pl.Callback):
    """Batch statistics would differ between one batch and its halves, so norms keep their running ones."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.net.norm.eval()


class GlooSyncBatchNorm(torch.nn.BatchNorm2d):
    """What SyncBatchNorm does, which DDP refuses on a CPU: statistics of the batches of all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        processes = torch.distributed.get_world_size()
        count = processes * x.numel() // x.shape[1]
        mean = all_reduce(x.mean((0, 2, 3))) / processes
        centred = x - mean[:, None, None]
        var = all_reduce(centred.square().mean((0, 2, 3))) / processes
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight / (var + self.eps).sqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class Synchronised(LayerSync):
    """`Trainer(sync_batchnorm=True)` for a CPU; nothing where there is one process."""

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        model.net.norm = self._exchanged(model.net.norm, GlooSyncBatchNorm)
        return model

    def revert(self, model: torch.nn.Module) -> torch.nn.Module:
        model.net.norm = self._exchanged(model.net.norm, torch.nn.BatchNorm2d)
        return model

    def _exchanged(self, norm: torch.nn.Module, kind: type[torch.nn.Module]) -> torch.nn.Module:
        other = kind(norm.num_features, dtype=norm.weight.dtype)
        other.weight, other.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(other, name, buffer)
        return other.train(norm.training)


class Holder(pl.Callback):
    """Somebody who keeps the old DDP wrapper alive."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.held = trainer.strategy.model


class Gradients(pl.Callback):
    """Keeps the gradients of the last step."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.last = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


class Noisy(L1):
    """Scores that differ between processes, as they do where each scores its own data."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = torch.Generator().manual_seed(rank)
        return {
            name: scores + torch.rand(len(scores), generator=generator, dtype=torch.float64)
            for name, scores in super().__call__(*args, **options).items()
        }


class FailsOnOne(L1):
    """Fails on the second process only."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        if torch.distributed.get_rank() == 1:
            raise OSError("the disk of this machine is full")
        return super().__call__(*args, **options)


class PartlyUnused(TinyModule):
    """A head that only some steps use."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sometimes = torch.nn.Linear(3, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + self.sometimes(self(batch[0])).square().mean() if batch_idx == 0 else loss


class EqualWidths(TinyModule):
    """A step that multiplies two layers' biases, which have to stay of one size."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + (self.net.norm.bias * self.net.conv1.bias).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.stack([self.net.norm.running_mean, self.net.conv1.bias])


DOUBLE = {"precision": "64-true"}  # Adam divides by tiny numbers: in single precision it blows rounding up

SCENARIOS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": adamw, "options": DOUBLE},
    "accumulate": {"options": {"accumulate_grad_batches": 2, **DOUBLE}, "callbacks": (Holder,)},
    "unused": {"strategy": {"find_unused_parameters": True}, "module": PartlyUnused, "options": DOUBLE},
    "static": {"strategy": {"static_graph": True, "gradient_as_bucket_view": True}, "options": DOUBLE},
    "synchronised": {"norms": Synchronised, "optimizer": adamw, "options": DOUBLE},
    "noisy": {"criterion": Noisy, "optimizer": adamw},
    "equal": {"module": EqualWidths, "cut": {"allocation": "auto", "macs": 0.5}, "options": DOUBLE},
    "fitted": {"cut": {"allocation": "information_loss", "macs": 0.5}, "options": DOUBLE},
    "distilled": {"callbacks": (Distillation,), "options": DOUBLE},
    **({"ema": {"ema": True}} if hasattr(pl.callbacks, "EMAWeightAveraging") else {}),  # since Lightning 2.6
    "fails": {"criterion": FailsOnOne},
}


def run(scenario: str, folder: Path, processes: int, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Fit a scenario and return what a process ends with."""
    spec = SCENARIOS[scenario]
    torch.manual_seed(5)
    module = spec.get("module", TinyModule)(spec.get("optimizer", sgd))
    cut = pruning((1, 2), criterion=spec.get("criterion", L1)(), **spec.get("cut", {}))
    gradients = Gradients()
    still = () if "norms" in spec else (StillNorm(),)
    callbacks = [*still, *(make() for make in spec.get("callbacks", ())), cut, Sound(), gradients]
    if spec.get("ema"):
        callbacks.insert(0, pl.callbacks.EMAWeightAveraging(decay=0.5))
    if ckpt_path is None:
        callbacks.append(ModelCheckpoint(folder / scenario, "{epoch}", save_top_k=-1))
    if processes > 1:
        process_group = {"process_group_backend": "gloo", **spec.get("strategy", {})}
        parallel = {"strategy": DDPStrategy(**process_group), "devices": processes, "use_distributed_sampler": False}
        parallel["plugins"] = [spec["norms"]()] if "norms" in spec else None
    else:
        parallel = {"devices": 1}
    fit = trainer(*callbacks, enable_checkpointing=True, **parallel, **spec.get("options", {}))
    rank, data = fit.global_rank, images()
    sampler = DistributedSampler(data, processes, rank, shuffle=False)
    fit.fit(module, DataLoader(data, 8 // processes, sampler=sampler), DataLoader(data, 8), ckpt_path=ckpt_path)
    names = {p: name for name, p in module.named_parameters()}
    return {
        "weights": dict(module.state_dict()),
        "gradients": gradients.last,
        "state": {names[p]: state for o in fit.optimizers for p, state in o.state.items()},
        "kept": [event.kept for event in cut.history],
        "rank": rank,
    }


def main(folder: Path, scenarios: list[str]) -> None:
    torch.set_num_threads(1)
    for name in scenarios:
        scenario, _, resumed = name.partition("@")
        ckpt_path = folder / scenario / resumed if resumed else None
        end = run(scenario, folder, 2, ckpt_path)
        torch.save(end, folder / f"{name.replace('/', '-')}-{end['rank']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
