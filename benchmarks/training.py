"""Images per second of training: the Trainer with our data module, against a bare PyTorch loop and a plain DataLoader.

ResNet-56 on CIFAR-sized random images, dense and at the widths of configs/reproduce/cifar10/resnet56/method_b_46. All
take the same steps with the same network, batch size and memory layout:

- Trainer: `ImageClassifier` and `CIFAR10DataModule`, as ``infoprune fit`` runs them, metrics logged;
- bare loop: forward, loss, backward and step on the same data module's batches, and nothing else;
- plain loader: the bare loop on torchvision's CIFAR10 in a DataLoader, with transforms image by image;
- with ``--compile``, Trainer, compiled: `ImageClassifier` with ``compile_mode="default"``. Compiling is not timed.

    python -m benchmarks.training --compile      # writes benchmarks/results/training.md
    python -m benchmarks.training --device cuda --batch-size 256 --steps 100 --images 50000
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import infoprune
from benchmarks.callback_overhead import now
from benchmarks.data_loading import plain, write_random_cifar
from benchmarks.machine import describe
from infoprune.data import CIFAR10DataModule
from infoprune.models import CifarResNet, ImageClassifier
from infoprune.models.classifier import CompileMode

RESULTS = Path(__file__).parent / "results" / "training.md"
WIDTHS = "[0.]*3+[0.5]*18+[0.375]*9"
WARM = 2
"""Steps that are not timed."""
Speeds = dict[str, float]


class Stopwatch(pl.Callback):
    """Times the steps of an epoch, from the beginning of one to the end of the last."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # The batch of the step at hand has been loaded, that of the step behind the last one has not: it evens out.
        if batch_idx == WARM:
            self._start = now()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM + self.steps:
            self.seconds = now() - self._start


class Benchmark:
    """Three ways to train the same network.

    Args:
        root: a folder in CIFAR-10's layout.
        options: of the command line.
    """

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.device = root, options.device
        self.batch_size, self.steps, self.compile = options.batch_size, options.steps, options.compile

    def data(self) -> CIFAR10DataModule:
        """Load the images into memory."""
        return CIFAR10DataModule(self.root, batch_size=self.batch_size, val_fraction=0.0)

    def trainer(self, network: nn.Module, compile_mode: CompileMode | None = None) -> float:
        """Seconds of the steps in a fit."""
        module = ImageClassifier(
            network, num_classes=10, input_shape=(3, 32, 32), channels_last=True, compile_mode=compile_mode
        )
        watch = Stopwatch(self.steps)
        trainer = pl.Trainer(
            accelerator=self.device.type,
            devices=1,
            max_epochs=1,
            limit_train_batches=WARM + self.steps + 1,
            limit_val_batches=0,
            callbacks=[watch],
            logger=CSVLogger(self.root / "runs"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=self.data())
        return watch.seconds

    def compiled_trainer(self, network: nn.Module) -> float:
        """Run the same with a compiled copy of the network."""
        return self.trainer(copy.deepcopy(network), "default")

    def bare_loop(self, network: nn.Module) -> float:
        """Seconds of the steps, written by hand."""
        data = self.data()
        data.setup()

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for batch in data.train_dataloader():
                yield data.on_after_batch_transfer([part.to(self.device) for part in batch], 0)

        return self._loop(network, batches())

    def plain_loader(self, network: nn.Module) -> float:
        """Seconds of the steps, and of reading image by image in the same process."""
        images = plain(self.root, self.batch_size, self.device, 0)()
        labels = torch.zeros(self.batch_size, dtype=torch.long, device=self.device)
        return self._loop(network, ((batch, labels[: len(batch)]) for batch in images))

    def _loop(self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        network.to(self.device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        start = 0.0
        for number, (images, labels) in enumerate(batches):
            if number == WARM:
                start = now()
            loss = F.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if number == WARM + self.steps:
                break
        return now() - start

    def round(self, network: nn.Module) -> Speeds:
        """Images per second of each, one after another."""
        ways = {"Trainer": self.trainer, "bare loop": self.bare_loop, "plain loader": self.plain_loader}
        if self.compile:
            ways["Trainer, compiled"] = self.compiled_trainer
        images = self.batch_size * (self.steps + 1)
        return {name: images / way(network) for name, way in ways.items()}


def networks() -> dict[str, nn.Module]:
    """ResNet-56, dense and pruned."""
    pruned = CifarResNet(depth=56)
    example = torch.zeros(1, 3, 32, 32)
    infoprune.prune(pruned, example, criterion="l1", allocation={"name": "per_stage", "ratios": WIDTHS})
    return {"dense": CifarResNet(depth=56), "pruned (−45.7 % MACs)": pruned}


def line(network: str, way: str, rounds: list[Speeds]) -> str:
    """Return a row of the table."""
    speeds = [speed[way] for speed in rounds]
    ratios = [speed[way] / speed["bare loop"] for speed in rounds]
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    return f"| {network} | {way} | {statistics.median(speeds):,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f}) | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2_000, help="in the training set")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_random_cifar(Path(folder), options.images // 5)
        benchmark = Benchmark(Path(folder), options)
        nets = networks()
        rounds: dict[str, list[Speeds]] = {name: [] for name in nets}
        for _ in range(options.rounds):  # in turns, so that whatever else the machine does meets all of them
            for name, network in nets.items():
                rounds[name].append(benchmark.round(network))
    text = "\n".join(
        [
            "# Training speed",
            "",
            f"`python -m benchmarks.training{' --compile' * options.compile}` on {describe()}.",
            "",
            f"ResNet-56, batches of {options.batch_size}, channels_last; {options.steps + 1} steps of each in turn;",
            f"median of {options.rounds} rounds (slowest–fastest), ratios within a round. On the CPU: processor time",
            "of one thread, loading included.",
            "",
            "| network | | images/s | of the bare loop |",
            "|---|---|---|---|",
            *(line(network, way, speeds) for network, speeds in rounds.items() for way in speeds[0]),
            "",
        ]
    )
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
