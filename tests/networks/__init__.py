"""Networks composed at random from the blocks that pruners get wrong, for hypothesis."""

from tests.networks import code, convolutions, norms, places, products  # each file adds its blocks to the list
from tests.networks.building import BLOCKS, block, chain, conv, conv_bn
from tests.networks.net import Net, networks, randomise

__all__ = [
    "BLOCKS",
    "Net",
    "block",
    "chain",
    "code",
    "conv",
    "conv_bn",
    "convolutions",
    "networks",
    "norms",
    "places",
    "products",
    "randomise",
]
