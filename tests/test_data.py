from __future__ import annotations

import builtins
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from infoprune.data import CIFAR10DataModule, CIFAR100DataModule, DigitsDataModule, ImageDataModule
from infoprune.errors import ConfigurationError, DataError
from infoprune.models import CifarResNet, ImageClassifier
from tests import warm

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


def write_cifar10(root: Path, per_file: int = 40) -> Path:
    """A complete CIFAR-10 folder in the official layout, with few and random images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = [i % 10 for i in range(per_file)]
        data = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    meta = {"label_names": list("abcdefghij"), "num_cases_per_batch": per_file, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return folder


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 200), ("test", 100)):
        data = np.zeros((count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": [i % 100 for i in range(count)]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))


def cifar(root: Path, **options: Any) -> CIFAR10DataModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = CIFAR10DataModule(root, **options)
        data.setup()
    return data


def moved(data: ImageDataModule, loader: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    """What reaches the model."""
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


class TestDigits:
    def test_the_split_is_fixed_stratified_and_complete(self) -> None:
        data, again, other = DigitsDataModule(), DigitsDataModule(seed=5), DigitsDataModule(split_seed=1)
        for module in (data, again, other):
            module.setup()
        parts = (data.train_set, data.val_set, data.test_set)
        assert sum(len(part.labels) for part in parts) == 1797
        assert len(torch.cat([part.images for part in parts]).flatten(1).unique(dim=0)) == 1797  # no image twice
        for part in parts:
            share = part.labels.bincount().float() / len(part.labels)
            assert share.min() > 0.09
            assert share.max() < 0.11
        assert torch.equal(data.test_set.images, again.test_set.images)
        assert not torch.equal(data.test_set.images, other.test_set.images)

    def test_normalised(self) -> None:
        data = DigitsDataModule(val_fraction=0.0)
        data.setup()
        images = data.normalize(torch.cat([data.train_set.images, data.test_set.images]))
        assert images.mean().abs() < 1e-3
        assert (images.std() - 1).abs() < 1e-3
        assert torch.equal(data.val_set.images, data.test_set.images)  # as documented

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def missing(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("sklearn"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(DataError, match="pip install scikit-learn"):
            DigitsDataModule().setup()

    def test_importing_the_package_does_not_import_it(self) -> None:
        code = "import sys, infoprune.data; sys.exit('sklearn' in sys.modules)"
        assert warm.python("-c", code).returncode == 0

    @pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.2, 0.0), (-0.1, 0.2)])
    def test_impossible_fractions(self, fractions: tuple[float, float]) -> None:
        with pytest.raises(ConfigurationError, match="must leave images to train on"):
            DigitsDataModule(val_fraction=fractions[0], test_fraction=fractions[1])


class TestCifar:
    def test_a_complete_folder_with_other_checksums_is_taken_with_a_warning(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path)
        data = CIFAR10DataModule(tmp_path, val_fraction=0.1)
        data.prepare_data()
        with pytest.warns(UserWarning, match=r"data_batch_1 and 6 more files differ.*200 training and 40 test images"):
            data.setup()
        assert [len(part.labels) for part in (data.train_set, data.val_set, data.test_set)] == [180, 20, 40]
        assert data.val_set.labels.bincount().tolist() == [2] * 10
        first = pickle.loads((folder / "test_batch").read_bytes())
        assert torch.equal(data.test_set.images[3].flatten(), torch.from_numpy(first["data"][3]))
        assert data.test_set.labels.tolist() == first["labels"]

    def test_official_checksums_are_silent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import hashlib

        folder = write_cifar10(tmp_path)

        def entry(name: str) -> list[str]:
            return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

        official = torchvision.datasets.CIFAR10
        monkeypatch.setattr(official, "train_list", [entry(name) for name, _ in official.train_list])
        monkeypatch.setattr(official, "test_list", [entry(name) for name, _ in official.test_list])
        monkeypatch.setattr(official, "meta", {**official.meta, "md5": entry("batches.meta")[1]})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = CIFAR10DataModule(tmp_path)
            data.setup()
        assert len(data.test_set.labels) > 0

    def test_cifar100(self, tmp_path: Path) -> None:
        write_cifar100(tmp_path)
        data = CIFAR100DataModule(tmp_path, val_fraction=0.0)
        with pytest.warns(UserWarning, match="official CIFAR100"):
            data.setup()
        assert len(data.train_set.labels.unique()) == data.num_classes == 100

    @pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
    def test_incomplete_folder(self, tmp_path: Path, name: str) -> None:
        folder = write_cifar10(tmp_path)
        (folder / name).unlink()
        data = CIFAR10DataModule(tmp_path)
        data.prepare_data()  # an existing folder is never downloaded into
        with pytest.raises(DataError, match=rf"{name} is missing; add the file, or remove the folder"):
            data.setup()

    def test_truncated_file(self, tmp_path: Path) -> None:
        file = write_cifar10(tmp_path) / "data_batch_2"
        file.write_bytes(file.read_bytes()[:2000])
        with pytest.raises(DataError, match="training files cannot be read"):
            cifar(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"data": np.zeros((5, 3072), np.uint8), "labels": [0]}, "45 images and 41 labels"),
            ({"data": np.zeros((1, 3072), np.uint8), "labels": [11]}, "label 11.*classes 0 to 9"),
            ({"data": np.zeros((1, 100), np.uint8), "labels": [1]}, "cannot be read"),
            ({"labels": [1]}, "cannot be read"),
        ],
    )
    def test_inconsistent_files(self, tmp_path: Path, content: dict[str, Any], message: str) -> None:
        folder = write_cifar10(tmp_path, per_file=10)
        (folder / "data_batch_5").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=message):
            cifar(tmp_path)

    def test_no_folder_and_no_download(self, tmp_path: Path) -> None:
        data = CIFAR10DataModule(tmp_path / "nowhere", download=False)
        data.prepare_data()
        with pytest.raises(DataError, match=r"nowhere.*does not exist; set download: true"):
            data.setup()
        assert not (tmp_path / "nowhere").exists()

    def test_failed_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*args: Any, **kwargs: Any) -> None:
            raise URLError("no network")

        monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
        with pytest.raises(DataError, match=r"could not be downloaded.*no network.*by hand"):
            CIFAR10DataModule(tmp_path).prepare_data()

    def test_normalisation_is_an_option(self, tmp_path: Path) -> None:
        write_cifar10(tmp_path)
        data = cifar(tmp_path, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        expected = torchvision.transforms.v2.functional.normalize(
            data.test_set.images.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        )
        assert torch.allclose(data.normalize(data.test_set.images), expected, atol=1e-5)
        with pytest.raises(ConfigurationError, match=r"mean=\[0\.5\] has 1 values; the images have 3 channels"):
            CIFAR10DataModule(tmp_path, mean=[0.5])
        with pytest.raises(ConfigurationError, match="every value must be above 0"):
            CIFAR10DataModule(tmp_path, std=[0.2, 0.0, 0.2])

    def test_training_images_are_augmented_and_others_are_not(self, tmp_path: Path) -> None:
        write_cifar10(tmp_path)
        data = cifar(tmp_path, batch_size=64)
        plain = data.normalize(data.train_set.images)
        for images, _ in moved(data, data.train_dataloader()):
            unchanged = [(image == plain).flatten(1).all(1).any().item() for image in images]
            assert sum(unchanged) < len(unchanged) / 4  # one of 162 views is the image itself
        for loader, part in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
            assert torch.equal(torch.cat([images for images, _ in moved(data, loader)]), data.normalize(part.images))
        images = torch.cat([x for x, _ in moved(cifar(tmp_path, augment=False), data.val_dataloader())])
        assert torch.equal(images, data.normalize(data.val_set.images))

    def test_the_run_decides_the_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_cifar10(tmp_path)

        def first_labels(seed: int | None) -> list[int]:
            return next(iter(cifar(tmp_path, seed=seed).train_dataloader()))[1].tolist()

        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        assert first_labels(None) == first_labels(0)
        monkeypatch.setenv("PL_GLOBAL_SEED", "3")
        assert first_labels(None) == first_labels(3) != first_labels(0)

    def test_val_fraction_out_of_range(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"val_fraction=1\.0 is outside"):
            CIFAR10DataModule(tmp_path, val_fraction=1.0)

    def test_calibration_batches(self, tmp_path: Path) -> None:
        write_cifar10(tmp_path)
        data = cifar(tmp_path)
        plain, augmented = data.calibration_batches(100, 32), data.calibration_batches(100, 32, augment=True)
        assert len(plain) == len(list(plain)) == 4
        first, second = (torch.cat([x for x, _ in plain]) for _ in range(2))
        assert torch.equal(first, second)
        known = data.normalize(data.train_set.images)
        where = [(image == known).flatten(1).all(1).nonzero().item() for image in first]
        assert len(set(where)) == 100  # distinct training images, with their labels
        assert torch.equal(torch.cat([y for _, y in plain]), data.train_set.labels[where])
        views = torch.cat([x for x, _ in augmented])
        assert torch.equal(views, torch.cat([x for x, _ in augmented]))
        assert not torch.equal(views, first)
        assert torch.equal(views, torch.cat([x for x, _ in plain.as_trained]))
        assert torch.equal(torch.cat([y for _, y in augmented]), torch.cat([y for _, y in plain]))
        with pytest.raises(DataError, match="asked for 181 calibration images; the training set has 180"):
            data.calibration_batches(181)

    def test_overfit_batches_repeats_plain_batches(self, tmp_path: Path) -> None:
        write_cifar10(tmp_path)
        seen = []

        class Watch(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
                seen.append(batch[0])

        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(accelerator="cpu", max_epochs=2, overfit_batches=1, callbacks=[Watch()], **options)
        trainer.fit(ImageClassifier(CifarResNet(8), 10, input_shape=(3, 32, 32)), cifar(tmp_path, batch_size=16))
        assert torch.equal(*seen)

    @pytest.mark.slow
    @pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (56, 0.9339)])
    def test_published_accuracy_on_the_real_images(
        self, tmp_path_factory: pytest.TempPathFactory, depth: int, accuracy: float
    ) -> None:
        if not SHARED.exists():
            pytest.skip("the CIFAR-10 writer and the pretrained networks are not beside the repository")
        root = tmp_path_factory.getbasetemp() / "real"
        subprocess.run([sys.executable, SHARED / "cifar10.py", root], check=True)
        data = cifar(root, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        assert (len(data.train_set.labels), len(data.val_set.labels)) == (45_000, 5_000)
        module = ImageClassifier(CifarResNet(depth), 10, init_from=SHARED / "cifar10_resnets" / f"resnet{depth}.pt")
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        assert trainer.test(module, data, verbose=False)[0]["test/acc"] == pytest.approx(accuracy, abs=5e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_are_slices_of_images_that_are_there() -> None:
    here, there = DigitsDataModule(seed=1), DigitsDataModule(seed=1)
    there.trainer = L.Trainer(accelerator="gpu", devices=1, logger=False, enable_progress_bar=False)
    for data in (here, there):
        data.setup()
    pairs = list(zip(here.train_dataloader(), there.train_dataloader(), strict=True))
    assert all(b[0].is_cuda and b[1].is_cuda for _, b in pairs)
    assert all(torch.equal(a[0], b[0].cpu()) and torch.equal(a[2], b[2].cpu()) for a, b in pairs)
    assert there.train_dataloader().data.images is there.train_dataloader().data.images  # copied once
