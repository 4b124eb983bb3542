"""Fashion-MNIST in its files, and images in folders."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from infoprune.data import FashionMNISTDataModule, ImageFolderDataModule
from infoprune.errors import DataError
from infoprune.models import CifarResNet, ImageClassifier
from tests.test_data import moved


def write_fashion(folder: Path, compress: bool, count: int = 30) -> None:
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.arange(count * 784, dtype=np.uint8).reshape(count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            content = header + array.tobytes()
            name = f"{part}-{kind}-ubyte" + (".gz" if compress else "")
            (folder / name).write_bytes(gzip.compress(content) if compress else content)


def write_folders(root: Path, classes: Iterable[str] = ("cat", "dog"), per_class: int = 6) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")


class TestFashionMNIST:
    @pytest.mark.parametrize("compress", [False, True])
    @pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
    def test_plain_and_compressed_here_and_there(self, tmp_path: Path, compress: bool, inside: str) -> None:
        write_fashion(tmp_path / "root" / inside, compress)
        data = FashionMNISTDataModule(tmp_path / "root", val_fraction=0.0)
        data.prepare_data()
        data.setup()
        expected = torch.arange(30 * 784).to(torch.uint8).view(30, 1, 28, 28)
        assert torch.equal(data.train_set.images, expected)
        assert data.test_set.labels.tolist() == [i % 10 for i in range(30)]

    def test_incomplete(self, tmp_path: Path) -> None:
        write_fashion(tmp_path / "root", compress=True)
        (tmp_path / "root" / "t10k-labels-idx1-ubyte.gz").unlink()
        data = FashionMNISTDataModule(tmp_path / "root")
        data.prepare_data()
        with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.* is missing; add the file"):
            data.setup()

    @pytest.mark.parametrize("compress", [False, True])
    def test_truncated(self, tmp_path: Path, compress: bool) -> None:
        write_fashion(tmp_path / "root", compress)
        file = next((tmp_path / "root").glob("train-images*"))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"train-images.*truncated"):
            FashionMNISTDataModule(tmp_path / "root").setup()

    def test_no_idx_file(self, tmp_path: Path) -> None:
        write_fashion(tmp_path / "root", compress=False)
        (tmp_path / "root" / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
        with pytest.raises(DataError, match="is no idx file"):
            FashionMNISTDataModule(tmp_path / "root").setup()

    def test_images_without_labels(self, tmp_path: Path) -> None:
        write_fashion(tmp_path / "root", compress=False)
        write_fashion(tmp_path / "other", compress=False, count=29)
        (tmp_path / "other" / "train-labels-idx1-ubyte").rename(tmp_path / "root" / "train-labels-idx1-ubyte")
        with pytest.raises(DataError, match=r"train images have shape \(30, 28, 28\) and labels \(29,\)"):
            FashionMNISTDataModule(tmp_path / "root").setup()


class TestImageFolder:
    def test_trains_and_evaluates(self, tmp_path: Path) -> None:
        write_folders(tmp_path)
        data = ImageFolderDataModule(tmp_path, batch_size=4, image_size=32, resize_size=36, num_workers=0)
        module = ImageClassifier(CifarResNet(8, num_classes=2), 2, input_shape=(3, 32, 32))
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data)
        assert trainer.num_training_batches == 3
        assert set(trainer.test(module, data, verbose=False)[0]) == {"test/loss", "test/acc"}
        assert (data.num_classes, data.input_shape) == (2, (3, 32, 32))

    def test_evaluation_is_torchvisions_preset(self, tmp_path: Path) -> None:
        write_folders(tmp_path)
        data = ImageFolderDataModule(tmp_path, image_size=24, resize_size=28, num_workers=0)
        data.setup()
        preset = torchvision.transforms._presets.ImageClassification(crop_size=24, resize_size=28)
        images, labels = moved(data, data.val_dataloader())[0]
        assert labels.tolist() == [0] * 6 + [1] * 6
        expected = preset(Image.open(tmp_path / "val" / "cat" / "0.png").convert("RGB"))
        assert torch.allclose(images[0], expected, atol=1e-5)

    def test_calibration_batches_leave_the_random_state_alone(self, tmp_path: Path) -> None:
        write_folders(tmp_path)
        data = ImageFolderDataModule(tmp_path, image_size=16, resize_size=20, num_workers=1)
        data.setup()
        before = torch.get_rng_state()
        batches = data.calibration_batches(7, batch_size=4, augment=True)
        first, second = ([x for x, _ in batches] for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        assert [len(x) for x in first] == [4, 3]
        assert len(batches) == 2
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(torch.cat(first), torch.cat([x for x, _ in data.calibration_batches(7, 4)]))

    def test_missing_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="train does not exist; root must hold"):
            ImageFolderDataModule(tmp_path).setup()
        write_folders(tmp_path)
        for file in sorted((tmp_path / "val").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.rename(tmp_path / "val" / f"{file.parent.name}{file.name}")
        with pytest.raises(DataError, match="val has no folder of images for each class"):
            ImageFolderDataModule(tmp_path).setup()

    def test_classes_are_numbered_by_the_training_folder(self, tmp_path: Path) -> None:
        write_folders(tmp_path, ("cat", "dog", "emu"))
        for file in (tmp_path / "val" / "cat").iterdir():
            file.unlink()
        (tmp_path / "val" / "cat").rmdir()
        data = ImageFolderDataModule(tmp_path, image_size=16, resize_size=16, num_workers=0)
        data.setup()
        assert {label for _, label in data.val_set.samples} == {1, 2}
        assert set(next(iter(data.val_dataloader()))[1].tolist()) == {1, 2}
        (tmp_path / "train" / "emu").rename(tmp_path / "train" / "yak")
        with pytest.raises(DataError, match="val has class 'emu'"):
            ImageFolderDataModule(tmp_path).setup()
