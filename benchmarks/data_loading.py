"""Images per second that reach the model: `CIFAR10DataModule` against torchvision's data set in a plain DataLoader.

Both crop (padding 4), flip and normalise every training image; nothing trains. The images are random: their content
changes no timing. Run from the repository root, on a machine that does nothing else:

    python -m benchmarks.data_loading                # writes benchmarks/results/data_loading.md
    python -m benchmarks.data_loading --device cuda
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from infoprune.data import CIFAR10DataModule

RESULTS = Path(__file__).parent / "results" / "data_loading.md"


def write_random_cifar(root: Path, per_file: int) -> None:
    """Return a folder in CIFAR-10's layout with random pixels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, per_file).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    meta = {"label_names": [str(i) for i in range(10)], "num_cases_per_batch": per_file, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))


def ours(root: Path, batch_size: int, device: torch.device) -> Callable[[], Iterator[Tensor]]:
    """One epoch of the data module, normalised and augmented on the device."""
    data = CIFAR10DataModule(root, batch_size=batch_size, val_fraction=0.0)
    data.setup()
    loader = data.train_dataloader()

    def epoch() -> Iterator[Tensor]:
        for batch in loader:
            yield data.on_after_batch_transfer([item.to(device) for item in batch], 0)[0]

    return epoch


def plain(root: Path, batch_size: int, device: torch.device, workers: int) -> Callable[[], Iterator[Tensor]]:
    """One epoch of torchvision's CIFAR10 with the usual transforms."""

    class AnyChecksum(torchvision.datasets.CIFAR10):
        train_list = [[name, None] for name, _ in torchvision.datasets.CIFAR10.train_list]  # noqa: RUF012
        test_list = [[name, None] for name, _ in torchvision.datasets.CIFAR10.test_list]  # noqa: RUF012
        meta = {**torchvision.datasets.CIFAR10.meta, "md5": None}  # noqa: RUF012

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR10DataModule.default_mean, CIFAR10DataModule.default_std),
        ]
    )
    loader = DataLoader(
        AnyChecksum(str(root), train=True, transform=transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> Iterator[Tensor]:
        for images, _ in loader:
            yield images.to(device)

    return epoch


def images_per_second(epoch: Callable[[], Iterator[Tensor]], seconds: float, device: torch.device) -> float:
    """Speed over as many whole epochs as it takes to fill ``seconds``."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += sum(len(images) for images in epoch())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each variant in each round, at least")
    parser.add_argument("--images", type=int, default=20_000, help="training images in an epoch")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*differ from the official.*")
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]  # other programs' work: near 0 on a machine that does nothing else
    torch.set_num_threads(1)  # so that one process means one core; the workers of a DataLoader have one each anyway
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        write_random_cifar(root, args.images // 5)
        variants = {"`CIFAR10DataModule`": ours(root, args.batch_size, args.device)}
        for workers in sorted({0, cores}):
            variants[f"plain DataLoader, {workers} workers"] = plain(root, args.batch_size, args.device, workers)
        for epoch in variants.values():
            sum(len(images) for images in epoch())  # starts workers, warms caches
        # in turns, so that whatever else the machine does meets all of them
        rounds = [
            {name: images_per_second(epoch, args.seconds, args.device) for name, epoch in variants.items()}
            for _ in range(args.rounds)
        ]
    ours_name = next(iter(variants))
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else f"CPU, {cores} cores"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    lines = [
        "# Loading CIFAR-10",
        "",
        "Training images per second, cropped, flipped and normalised, ready for the model; nothing trains. Written by",
        "`python -m benchmarks.data_loading`.",
        "",
        f"{device}; {versions}. Load average when it began: {load:.1f}.",
        f"Batches of {args.batch_size}, epochs of {args.images:,} random images; median of {args.rounds} rounds",
        "(slowest–fastest), all loaders in turn in each round; the ratio is taken within a round. One thread each.",
        "",
        "| loader | images/s | data module is faster by |",
        "|---|---|---|",
    ]
    for name in variants:
        speeds = [measured[name] for measured in rounds]
        ratios = [measured[ours_name] / measured[name] for measured in rounds]
        ratio = "" if name == ours_name else f"{statistics.median(ratios):.1f} x ({min(ratios):.1f}–{max(ratios):.1f})"
        lines.append(f"| {name} | {statistics.median(speeds):,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f}) | {ratio} |")
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
