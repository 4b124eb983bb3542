"""What blocks are made of, and the list of all blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {}
"""name -> (input channels, a small random number) -> block; every block has ``out_channels``."""


def block(make: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
    BLOCKS[make.__name__] = make
    return make


class Lambda(nn.Module):
    """A function as a block that keeps its number of channels (unless told otherwise)."""

    def __init__(self, function: Callable[[Tensor], Tensor], out_channels: int) -> None:
        super().__init__()
        self.function = function
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Branches(nn.Module):
    """Runs modules and joins their results with a function."""

    def __init__(self, join: Callable[..., Tensor], out_channels: int, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.join = join
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, *(branch(x) for branch in self.branches))


def chain(*modules: nn.Module, out: int) -> nn.Module:
    result = nn.Sequential(*modules)
    result.out_channels = out  # type: ignore[assignment]
    return result


def conv(c: int, out: int, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(c, out, k, padding=k // 2, **options)  # type: ignore[arg-type]


def conv_bn(c: int, out: int, k: int = 3) -> nn.Module:
    return nn.Sequential(conv(c, out, k, bias=False), nn.BatchNorm2d(out), nn.ReLU())
