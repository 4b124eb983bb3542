"""Whole networks: a stem, blocks, a head, and values that are all different."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks.building import BLOCKS, conv_bn


class Net(nn.Module):
    """Stem, blocks, and a head behind pooling or flattening."""

    def __init__(self, kinds: list[tuple[str, int]], flatten: bool) -> None:
        super().__init__()
        self.kinds = kinds
        self.stem = conv_bn(3, 8)
        blocks, c = [], 8
        for kind, number in kinds:
            made = BLOCKS[kind](c, number)
            blocks.append(made)
            c = int(made.out_channels)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(c, 6, 1)
        self.head = nn.Linear(6 * 64 if flatten else 6, 5)
        self.flatten = flatten

    def __repr__(self) -> str:
        return f"Net({self.kinds}, flatten={self.flatten})"

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic its own value, so that nothing agrees by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.7)
            else:
                fan_in = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 10
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    return model.eval()


@st.composite
def networks(draw: st.DrawFn, most_blocks: int = 6) -> Net:
    """Random networks; shrinks to few and simple blocks."""
    kinds = draw(
        st.lists(st.tuples(st.sampled_from(list(BLOCKS)), st.integers(0, 7)), min_size=1, max_size=most_blocks)
    )
    net = Net(kinds, draw(st.booleans()))
    randomise(net, seed=len(kinds))
    return net
