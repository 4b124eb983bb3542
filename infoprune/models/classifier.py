"""The LightningModule that trains any image classifier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from infoprune.errors import ConfigurationError
from infoprune.models.lr import WarmupCosineLR
from infoprune.models.weights import load_weights
from infoprune.registry import check_choice

Batch = tuple[Tensor, Tensor]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class MeanLoss(Metric):
    """Mean over images, across batches and processes of any size.

    Lightning's own mean rounds the number of images in a process down to whole ones, so that its losses change with the
    number of processes; torchmetrics' leaves NaN out, which must be seen.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, size: int) -> None:
        """Add a batch of ``size`` images with a mean loss of ``loss``."""
        # not in place: states made under inference mode, as in validation, must not be written to in training
        self.total = self.total + loss.detach().float() * size
        self.count = self.count + size

    def compute(self) -> Tensor:
        """Return the mean so far."""
        return self.total / self.count


class ImageClassifier(L.LightningModule):
    """Cross-entropy training of any network that maps images to logits.

    Logs ``train/loss`` (mean of the epoch; ``train/loss_step`` as it goes) and, for validation and test,
    ``val/loss``, ``val/acc`` and, with more than five classes, ``val/acc5`` (``test/…`` alike). Accuracies are shares
    in [0, 1], summed over all processes before they are divided. Label smoothing changes the training loss only, so
    that validation losses of different settings compare.

    A checkpoint holds weights, not the network, so say which:
    ``ImageClassifier.load_from_checkpoint(path, model=net, num_classes=10)``.

    Args:
        model: The network, ``(N, C, H, W)`` to logits ``(N, num_classes)``. In a config any class, or function that
            returns a module, by ``class_path``: ``infoprune.models.CifarResNet``, ``torchvision.models.resnet50``.
        num_classes: Number of classes.
        label_smoothing: Probability mass that the training targets spread over all classes, in [0, 1).
        optimizer: Makes the optimizer from the parameters. Default: SGD, learning rate 0.1, momentum 0.9 (Nesterov),
            weight decay 5e-4.
        scheduler: Makes the learning-rate schedule from the optimizer; None keeps the rate. Default: half a cosine over
            the Trainer's ``max_epochs`` (`WarmupCosineLR`; its ``warmup_epochs`` gives a linear warm-up). Any torch
            scheduler works, with its lengths as you give them; ``ReduceLROnPlateau`` watches ``val/loss``.
        scheduler_interval: ``"epoch"``, or ``"step"`` to step the schedule after every optimizer step. `WarmupCosineLR`
            is measured in epochs in both cases; for torch's own schedulers the lengths are then in optimizer steps.
        init_from: File of weights to start from (`infoprune.models.load_weights`); read when the module is made, before
            any checkpoint that the Trainer resumes from.
        input_shape: ``(C, H, W)`` of an image; sets ``example_input_array``, which the model summary and
            ``infoprune.FilterPruning`` use.
        channels_last: Keep images and features in memory pixel by pixel instead of channel by channel. Changes no
            result beyond rounding; convolutions are often faster that way, on CPUs as well as on GPUs.
        compile_mode: Compile the network with this mode of ``torch.compile``: ``"default"``, ``"reduce-overhead"``
            (CUDA graphs), ``"max-autotune"`` or ``"max-autotune-no-cudagraphs"``. Every pruning event and every size of
            batch is compiled for, up to a minute for a ResNet-56: it has to pay.

    Raises:
        ConfigurationError: ``num_classes`` or ``label_smoothing`` out of range, or no such ``compile_mode``.
        CheckpointError: ``init_from`` cannot be read or does not fit.

    >>> from infoprune.models import CifarResNet
    >>> module = ImageClassifier(CifarResNet(depth=8), num_classes=10, input_shape=(3, 32, 32))
    >>> module(module.example_input_array).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosineLR(o),
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        init_from: str | Path | None = None,
        input_shape: tuple[int, int, int] | None = None,
        channels_last: bool = False,
        compile_mode: CompileMode | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigurationError(f"num_classes={num_classes}: a classifier needs at least 2")
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigurationError(f"label_smoothing={label_smoothing} is outside [0, 1)")
        if compile_mode is not None:
            check_choice("ImageClassifier", "compile_mode", compile_mode, get_args(CompileMode))
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.scheduler_interval = scheduler_interval
        self.channels_last = channels_last
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        if init_from is not None:
            load_weights(model, init_from)
        if compile_mode is not None:
            model.compile(mode=compile_mode)  # in place: no name of a parameter changes
        if input_shape is not None:
            self.example_input_array = torch.zeros(1, *input_shape)
        self.train_loss = MeanLoss()
        self.val_metrics = self._metrics()
        self.test_metrics = self._metrics()

    def _metrics(self) -> nn.ModuleDict:
        ranks = {"acc": 1, "acc5": 5} if self.num_classes > 5 else {"acc": 1}
        accuracies = {name: MulticlassAccuracy(self.num_classes, top_k=k, average="micro") for name, k in ranks.items()}
        return nn.ModuleDict({"loss": MeanLoss(), **accuracies})

    @property
    def example_input_array(self) -> Any:
        """One black image in the precision of the network, or None without ``input_shape``."""
        example = super().example_input_array
        return example.to(self.dtype) if isinstance(example, Tensor) else example

    @example_input_array.setter
    def example_input_array(self, example: Any) -> None:
        L.LightningModule.example_input_array.fset(self, example)  # type: ignore[attr-defined]

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        # The layout of the images decides: every layer hands on the one that it is given.
        return self.model(x.contiguous(memory_format=torch.channels_last) if self.channels_last else x)

    def _logits(self, images: Tensor) -> Tensor:
        logits = self(images)
        if not isinstance(logits, Tensor) or logits.shape[1:] != (self.num_classes,):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigurationError(
                f"{type(self.model).__name__} must give logits of shape (N, {self.num_classes}), but gives "
                f"{got}; set num_classes of the model and of ImageClassifier alike, and turn auxiliary outputs off"
            )
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the smoothed cross-entropy of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self._logits(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.train_loss.update(loss, len(labels))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the validation metrics."""
        self._evaluate("val", batch, self.val_metrics)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the test metrics."""
        self._evaluate("test", batch, self.test_metrics)

    def _evaluate(self, stage: str, batch: Batch, metrics: nn.ModuleDict) -> None:
        images, labels = batch
        logits = self._logits(images)
        for name, metric in metrics.items():
            if isinstance(metric, MeanLoss):
                metric.update(F.cross_entropy(logits, labels), len(labels))
            else:
                assert isinstance(metric, MulticlassAccuracy)
                metric.update(logits, labels)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name != "acc5")

    @override
    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Return class probabilities ``(N, num_classes)`` in float32; a batch is images, or (images, labels)."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float().softmax(dim=1)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the schedule that the config asks for."""
        optimizer = self._make_optimizer(self.parameters())
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        entry: dict[str, Any] = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            entry |= {"interval": "epoch", "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": entry}  # type: ignore[return-value]

    @override
    def on_train_start(self) -> None:
        """Tell the schedule how long the run is."""
        # Not in configure_optimizers: asking the Trainer for its steps there sets up the training loader too early, and
        # a run resumed in mid-epoch would then lose the loader's position.
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, WarmupCosineLR):
            scheduler.follow(*self._run_length())

    def _run_length(self) -> tuple[float, int]:
        """Return the epochs of the run, and the schedule steps in each."""
        trainer = self.trainer
        bounded = trainer.max_epochs is not None and trainer.max_epochs > 0
        if bounded and self.scheduler_interval == "epoch":
            return float(trainer.max_epochs or 0), 1
        total = trainer.estimated_stepping_batches
        if math.isinf(total) or math.isinf(trainer.num_training_batches):
            raise ConfigurationError("the schedule needs an end: set trainer.max_epochs, or the scheduler's epochs")
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return total / per_epoch, per_epoch if self.scheduler_interval == "step" else 1
