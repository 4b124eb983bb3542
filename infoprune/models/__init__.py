"""What ``infoprune fit`` trains out of the box: a classifier module, the CIFAR networks of the pruning papers."""

from typing import TYPE_CHECKING, Any

from infoprune.models.cifar_resnet import CifarResNet
from infoprune.models.cifar_vgg import CifarVGG16
from infoprune.models.lr import WarmupCosineLR
from infoprune.models.timm_model import timm_model
from infoprune.models.weights import load_weights

if TYPE_CHECKING:
    from infoprune.models.classifier import ImageClassifier

__all__ = ["CifarResNet", "CifarVGG16", "ImageClassifier", "WarmupCosineLR", "load_weights", "timm_model"]


def __getattr__(name: str) -> Any:
    if name != "ImageClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from infoprune.models.classifier import ImageClassifier  # imports Lightning, which takes seconds

    return ImageClassifier
