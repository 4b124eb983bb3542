"""What ``infoprune fit`` trains out of the box: a classifier module, the CIFAR networks of the pruning papers."""

from infoprune.models.cifar_resnet import CifarResNet
from infoprune.models.cifar_vgg import CifarVGG16
from infoprune.models.classifier import ImageClassifier
from infoprune.models.lr import WarmupCosineLR
from infoprune.models.timm_model import timm_model
from infoprune.models.weights import load_weights

__all__ = ["CifarResNet", "CifarVGG16", "ImageClassifier", "WarmupCosineLR", "load_weights", "timm_model"]
