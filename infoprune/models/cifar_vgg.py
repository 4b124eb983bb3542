"""VGG-16 with batch norm for CIFAR, as the filter-pruning papers from HRank on use it."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVGG16(nn.Module):
    """Thirteen 3x3 convolutions with biases and batch norm, then two linear layers with a batch norm between them.

    Module names (``features.conv0``, ``features.norm0``, …, ``classifier.linear2``) are those of the HRankPlus weights.
    The biases do nothing in front of a batch norm; they are there so that those weights load and the counts agree:
    313.74 M multiply-accumulates (with one for every bias that a convolution adds), 14.98 M parameters of convolutions
    and linear layers, 14.99 M with those of batch norm.

    Source: Simonyan and Zisserman, ICLR 2015, in the CIFAR form of Lin et al., HRank, CVPR 2020.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.

    Images must be 32x32.

    >>> import torch
    >>> CifarVGG16().eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential()
        position = 0
        for stage in STAGES:
            if position:
                self.features.add_module(f"pool{position}", nn.MaxPool2d(2))
                position += 1
            for channels in stage:
                self.features.add_module(f"conv{position}", nn.Conv2d(in_channels, channels, 3, padding=1))
                self.features.add_module(f"norm{position}", nn.BatchNorm2d(channels))
                self.features.add_module(f"relu{position}", nn.ReLU(inplace=True))
                in_channels = channels
                position += 1
        self.classifier = nn.Sequential()
        self.classifier.add_module("linear1", nn.Linear(in_channels, 512))
        self.classifier.add_module("norm1", nn.BatchNorm1d(512))
        self.classifier.add_module("relu1", nn.ReLU(inplace=True))
        self.classifier.add_module("linear2", nn.Linear(512, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_channels, 32, 32)``."""
        x = self.features(x)  # (N, 512, 2, 2)
        return self.classifier(x.mean(dim=(2, 3)))
