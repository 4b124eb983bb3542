"""Data modules that ``infoprune fit`` trains on: digits, CIFAR, Fashion-MNIST, image folders."""

from infoprune.data.calibration import CalibrationBatches
from infoprune.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from infoprune.data.digits import DigitsDataModule
from infoprune.data.fashion_mnist import FashionMNISTDataModule
from infoprune.data.image_folder import ImageFolderDataModule
from infoprune.data.loader import EpochBatches, ImageSet, TensorLoader
from infoprune.data.module import ImageDataModule, InMemoryDataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CalibrationBatches",
    "DigitsDataModule",
    "EpochBatches",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageSet",
    "InMemoryDataModule",
    "TensorLoader",
]
