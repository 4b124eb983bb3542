"""The CIFAR ResNets of He et al. (2016), section 4.2, with the parameter-free shortcuts (their option A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infoprune.errors import ConfigurationError


class ZeroPadShortcut(nn.Module):
    """Option-A shortcut: keep every second pixel, and fill the missing channels with zeros.

    The zeros are buffers rather than a padding number. A pruned stage then loses its zeros together with its other
    channels, like the weights of any layer; they are not part of the state dict.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least ``in_channels``; the zeros go half before, half behind the input.
        stride: Distance between the pixels that are kept.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    >>> shortcut = ZeroPadShortcut(16, 32, stride=2)
    >>> shortcut(torch.ones(1, 16, 8, 8)).sum(dim=(0, 2, 3))[[0, 7, 8, 23, 24, 31]].tolist()
    [0.0, 0.0, 16.0, 16.0, 0.0, 0.0]
    """

    before: Tensor
    after: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = out_channels - in_channels
        self.register_buffer("before", torch.zeros(missing // 2), persistent=False)
        self.register_buffer("after", torch.zeros(missing - missing // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Thin out the pixels, pad the channels."""
        x = x[:, :, :: self.stride, :: self.stride]
        # in the type of x: under autocast that is bfloat16, and concatenating it with float32 would widen it
        before, after = (
            zeros.to(x.dtype)[:, None, None].expand(x.shape[0], -1, x.shape[2], x.shape[3])
            for zeros in (self.before, self.after)
        )
        return torch.cat([before, x, after], dim=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut around them."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.shortcut = ZeroPadShortcut(in_channels, channels, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-20/32/44/56/110 for 32x32 images (any size from 4x4 on works).

    Three stages of ``(depth - 2) / 6`` basic blocks with ``width``, ``2 * width`` and ``4 * width`` channels. The names
    of the state dict (``conv1``, ``bn1``, ``layer1.0.conv1``, …, ``linear``) are those of the public CIFAR-10 weights
    of this architecture, which load as they are.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016. At 32x32, in multiply-accumulates of the
    convolutions and the linear layer: ResNet-56 125.49 M (0.85 M parameters), ResNet-110 252.89 M (1.73 M).

    Args:
        depth: Layers with weights, ``6 n + 2``: 20, 32, 44, 56, 110; 8 and 14 make small ones.
        num_classes: Outputs.
        in_channels: Channels of the images: 3, or 1 for grey ones.
        width: Channels of the first stage.

    Raises:
        ConfigurationError: ``depth`` is not of the form ``6 n + 2``.

    >>> net = CifarResNet(depth=20)
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> sum(p.numel() for p in net.parameters())
    269722
    """

    def __init__(self, depth: int = 56, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            possible = 6 * max(1, round((depth - 2) / 6)) + 2
            raise ConfigurationError(f"depth={depth}: a CIFAR ResNet has 6 n + 2 layers; nearest is depth={possible}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, stride=1)
        self.layer2 = self._stage(width, 2 * width, blocks, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_channels, H, W)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))
