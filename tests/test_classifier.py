from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from infoprune.callbacks import FilterPruning
from infoprune.data import DigitsDataModule
from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.models import CifarResNet, ImageClassifier, WarmupCosineLR


def small_net() -> CifarResNet:
    return CifarResNet(8, in_channels=1, width=8)


def digits(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(batch_size=256, **options)


def trainer(**options: Any) -> L.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(**({"accelerator": "cpu", "max_epochs": 1} | quiet | options))


def test_learns_and_logs(tmp_path: Path) -> None:
    L.seed_everything(0)
    module = ImageClassifier(small_net(), 10, label_smoothing=0.1, input_shape=(1, 8, 8))
    fit = trainer(max_epochs=4, logger=CSVLogger(tmp_path), log_every_n_steps=1, enable_checkpointing=True)
    data = DigitsDataModule(batch_size=128)
    fit.fit(module, data)
    assert {"train/loss", "val/loss", "val/acc", "val/acc5"} <= set(fit.callback_metrics)
    tested = fit.test(module, digits(), verbose=False)[0]
    assert set(tested) == {"test/loss", "test/acc", "test/acc5"}
    assert tested["test/acc"] > 0.8
    assert tested["test/acc"] <= tested["test/acc5"] <= 1.0
    # the checkpoint gives the same network back
    path = fit.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    again = ImageClassifier.load_from_checkpoint(path, model=small_net(), num_classes=10)
    assert trainer().test(again, digits(), verbose=False)[0] == pytest.approx(tested)
    # and serves as a start for another one
    started = ImageClassifier(small_net(), 10, init_from=path)
    assert trainer().test(started, digits(), verbose=False)[0] == pytest.approx(tested)


def test_metrics_are_those_of_all_images_together() -> None:
    module = ImageClassifier(small_net(), 10)
    data = digits(eval_batch_size=100)  # uneven batches
    logged = trainer().test(module, data, verbose=False)[0]
    images = data.normalize(data.test_set.images)
    logits = module.eval()(images)
    labels = data.test_set.labels
    top5 = logits.topk(5).indices.eq(labels[:, None]).any(1)
    assert logged["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert logged["test/acc5"] == pytest.approx(top5.float().mean().item())
    assert logged["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_label_smoothing_is_for_training_only() -> None:
    plain, smooth = (ImageClassifier(small_net(), 10, label_smoothing=share) for share in (0.0, 0.5))
    smooth.load_state_dict(plain.state_dict())
    batch = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    assert smooth.training_step(batch, 0).item() != pytest.approx(plain.training_step(batch, 0).item())
    losses = [trainer().validate(module, digits(), verbose=False)[0]["val/loss"] for module in (plain, smooth)]
    assert losses[0] == pytest.approx(losses[1])


def test_no_top5_with_five_classes() -> None:
    assert set(ImageClassifier(nn.Linear(2, 5), 5).val_metrics) == {"loss", "acc"}
    assert set(ImageClassifier(nn.Linear(2, 6), 6).val_metrics) == {"loss", "acc", "acc5"}


def test_prediction_is_probabilities_in_the_order_of_the_images() -> None:
    module, data = ImageClassifier(small_net(), 10), digits(eval_batch_size=50)
    parts = trainer().predict(module, data)
    assert parts is not None
    probabilities = torch.cat(parts)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = module.eval()(data.normalize(data.test_set.images)).softmax(1)
    assert torch.allclose(probabilities, expected, atol=1e-5)
    assert module.predict_step(torch.zeros(3, 1, 8, 8), 0).shape == (3, 10)


class TestScheduler:
    @staticmethod
    def rates(fit: L.Trainer, **options: Any) -> list[float]:
        seen = []

        class Watch(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                seen.append(trainer.optimizers[0].param_groups[0]["lr"])

        fit.callbacks.append(Watch())  # type: ignore[attr-defined]
        fit.fit(ImageClassifier(small_net(), 10, **options), digits())
        return seen

    def test_follows_max_epochs(self) -> None:
        rates = self.rates(trainer(max_epochs=4, limit_train_batches=2))
        assert rates[::2] == rates[1::2]  # constant within an epoch
        assert rates[::2] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-4)

    def test_every_step_with_accumulation(self) -> None:
        rates = self.rates(
            trainer(max_epochs=2, limit_train_batches=4, accumulate_grad_batches=2),
            scheduler=lambda optimizer: WarmupCosineLR(optimizer, warmup_epochs=1),
            scheduler_interval="step",
        )
        assert rates == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])

    def test_follows_max_steps(self) -> None:
        rates = self.rates(trainer(max_epochs=-1, max_steps=4, limit_train_batches=2), scheduler_interval="step")
        assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-4)

    def test_a_run_without_end_needs_a_length(self) -> None:
        with pytest.raises(ConfigurationError, match=r"set trainer\.max_epochs"):
            self.rates(trainer(max_epochs=-1, max_time="00:00:00:05"))

    def test_torchs_own(self) -> None:
        fit = trainer(max_epochs=2, limit_train_batches=1)
        assert self.rates(fit, scheduler=lambda o: StepLR(o, 1)) == pytest.approx([0.1, 0.01])
        assert self.rates(trainer(max_epochs=2, limit_train_batches=1), scheduler=None) == [0.1, 0.1]
        fit = trainer(max_epochs=3, limit_train_batches=1)
        rates = self.rates(fit, scheduler=lambda o: ReduceLROnPlateau(o, patience=0, threshold=1e9))
        assert rates[-1] < rates[0]  # it saw val/loss


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision: Any) -> None:
    module = ImageClassifier(small_net(), 10, input_shape=(1, 8, 8))
    fit = trainer(precision=precision, limit_train_batches=2, enable_model_summary=True)
    fit.fit(module, digits())
    assert fit.callback_metrics["train/loss"].isfinite()
    kind = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert module.model.conv1.weight.dtype == kind


def test_channels_last_changes_the_layout_and_not_the_results() -> None:
    torch.manual_seed(0)
    network, images = CifarResNet(depth=8, width=4).eval(), torch.randn(2, 3, 8, 8)
    layouts = []
    network.layer3.register_forward_hook(
        lambda _, __, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    plain, turned = (ImageClassifier(network, 10, channels_last=last)(images) for last in (False, True))
    assert layouts == [False, True]
    torch.testing.assert_close(plain, turned)


@pytest.mark.slow
def test_compiled() -> None:
    # the cheap backend: what is tested is that the graph is caught, not what a compiler makes of it
    L.seed_everything(0)
    module = ImageClassifier(small_net(), 10)
    eager = ImageClassifier(small_net(), 10)
    eager.load_state_dict(module.state_dict())
    losses = []
    for candidate in (eager, torch.compile(module, backend="aot_eager")):
        fit = trainer(limit_train_batches=2)
        fit.fit(candidate, digits(seed=0))  # type: ignore[arg-type]
        losses.append(fit.callback_metrics["val/loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_compile_mode() -> None:
    compiled, plain = (ImageClassifier(small_net(), 10, compile_mode=mode) for mode in ("default", None))
    assert compiled.model._compiled_call_impl is not None
    assert plain.model._compiled_call_impl is None
    assert list(compiled.state_dict()) == list(plain.state_dict())
    network = small_net()
    with pytest.raises(ConfigurationError, match=r"compile_mode.*'fast'.*reduce-overhead"):
        ImageClassifier(network, 10, compile_mode="fast")  # type: ignore[arg-type]
    assert network._compiled_call_impl is None


@pytest.mark.slow
def test_compiled_through_a_pruning_event() -> None:
    """With the real compiler: the losses are those of the network as it is, before the event and behind it."""

    def fit(mode: Literal["default"] | None) -> tuple[list[float], int]:
        L.seed_everything(0)
        module = ImageClassifier(small_net(), 10, input_shape=(1, 8, 8), compile_mode=mode)
        losses: list[float] = []
        watch = LambdaCallback(on_train_batch_end=lambda trainer, module, out, *_: losses.append(out["loss"].item()))
        pruning = FilterPruning("l1", filters=0.5, schedule=[1])
        trainer(max_epochs=2, limit_train_batches=3, callbacks=[pruning, watch]).fit(module, digits(seed=0))
        return losses, sum(parameter.numel() for parameter in module.parameters())

    (eager, left), (compiled, left_compiled) = fit(None), fit("default")
    assert len(eager) == 6
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert left == left_compiled < sum(parameter.numel() for parameter in small_net().parameters())


def test_stopped_in_mid_epoch_and_resumed_it_ends_as_if_never_stopped(tmp_path: Path) -> None:
    def fit(path: Path | None = None, **options: Any) -> dict[str, Tensor]:
        L.seed_everything(1)
        module = ImageClassifier(small_net(), 10, scheduler_interval="step")
        trainer(max_epochs=2, **options).fit(module, DigitsDataModule(batch_size=128), ckpt_path=path)
        return module.state_dict()

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    whole = fit(callbacks=[save], enable_checkpointing=True)
    resumed = fit(tmp_path / "step=5.ckpt")  # of nine batches in an epoch
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="num_classes=1"):
        ImageClassifier(small_net(), 1)
    with pytest.raises(ConfigurationError, match=r"label_smoothing=1\.0 is outside"):
        ImageClassifier(small_net(), 10, label_smoothing=1.0)
    module = ImageClassifier(small_net(), 7)
    with pytest.raises(ConfigurationError, match=r"logits of shape \(N, 7\), but gives shape \(2, 10\)"):
        module.training_step((torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)), 0)
    googlenet = torchvision.models.googlenet(num_classes=10, init_weights=False)
    with pytest.raises(ConfigurationError, match=r"gives GoogLeNetOutputs.*turn auxiliary outputs off"):
        ImageClassifier(googlenet, 10).training_step((torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.int64)), 0)
    with pytest.raises(CheckpointError, match="no such file"):
        ImageClassifier(small_net(), 10, init_from=tmp_path / "none.pt")


def parse(*args: str) -> ImageClassifier:
    """What the command line makes of these arguments."""
    cli = LightningCLI(
        L.LightningModule,
        None,
        subclass_mode_model=True,
        run=False,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=["--model", "infoprune.models.ImageClassifier", *args],
    )
    assert isinstance(cli.model, ImageClassifier)
    return cli.model


LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v3_small", "vit_b_16")]


class TestCommandLine:
    @pytest.mark.parametrize("name", ["resnet18", *LARGER])
    def test_torchvision_functions_by_class_path(self, name: str) -> None:
        module = parse(
            f"--model.model=torchvision.models.{name}", "--model.model.num_classes=7", "--model.num_classes=7"
        )
        with torch.no_grad():
            assert module.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 7)

    def test_defaults(self) -> None:
        module = parse("--model.model=infoprune.models.CifarResNet", "--model.num_classes=10")
        configured = module.configure_optimizers()
        optimizer = configured["optimizer"]  # type: ignore[index, call-overload]
        assert isinstance(optimizer, torch.optim.SGD)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.1, 0.9, True, 5e-4)
        assert isinstance(configured["lr_scheduler"]["scheduler"], WarmupCosineLR)  # type: ignore[index, call-overload]

    def test_optimizer_and_schedule_from_the_command_line(self) -> None:
        module = parse(
            "--model.model=infoprune.models.CifarResNet",
            "--model.num_classes=10",
            "--model.optimizer=torch.optim.AdamW",
            "--model.optimizer.lr=0.002",
            "--model.scheduler=torch.optim.lr_scheduler.MultiStepLR",
            "--model.scheduler.milestones=[50, 100]",
        )
        configured = module.configure_optimizers()
        assert isinstance(configured["optimizer"], torch.optim.AdamW)  # type: ignore[index, call-overload]
        scheduler = configured["lr_scheduler"]["scheduler"]  # type: ignore[index, call-overload]
        assert sorted(scheduler.milestones) == [50, 100]


SCRIPT = """
import sys
import lightning as L
import torch
from infoprune.callbacks import FilterPruning
from infoprune.data import DigitsDataModule
from infoprune.models import CifarResNet, ImageClassifier

def run(devices):
    torch.set_num_threads(1)
    L.seed_everything(5)
    module = ImageClassifier(CifarResNet(8, in_channels=1, width=8), 10)
    seen = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: (seen.append(len(batch[1])), step(batch, batch_idx))[1]
    options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1)
    trainer = L.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", **options)
    data = DigitsDataModule(batch_size=128 // devices, eval_batch_size=77)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    images = int(trainer.strategy.reduce(torch.tensor(float(sum(seen))), reduce_op="sum"))
    loss = trainer.callback_metrics["train/loss"].item()
    return trainer, {"before": before, "loss": loss, "images": images, "steps": trainer.global_step}

if __name__ == "__main__":
    trainer, result = run(2)
    if trainer.global_rank == 0:
        torch.save(result, sys.argv[1])
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_count_every_image_once(tmp_path: Path) -> None:
    script = tmp_path / "two_processes.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "two.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = runpy.run_path(str(script))["run"](1)[1]
    assert two["before"] == pytest.approx(one["before"], rel=1e-5)
    assert two["loss"] == pytest.approx(one["loss"], rel=0.2)  # batch norm sees half batches
    assert (two["images"], two["steps"]) == (one["images"], one["steps"]) == (1079, 9)
