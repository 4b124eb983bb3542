"""Second names, tied weights and parametrized layers live through a fit: saved, resumed and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import infoprune
from infoprune import FilterPruning
from tests.tiers import thinned
from tests.tiny import TinyModule, TinyNet, loader, trainer


class SecondName(TinyNet):
    """A convolution that is registered a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"inner": self.conv1})


class TiedWeights(TinyNet):
    """Two convolutions in a row share one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(12, 12, 3, padding=1)
        self.again.weight = self.conv1.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.conv2(torch.relu(self.conv1(x)) + torch.relu(self.again(x)))
        return self.head(x.mean((2, 3)))


def weight_normed() -> TinyNet:
    net = TinyNet()
    parametrizations.weight_norm(net.conv1)
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "second name": SecondName,
    "tied weights": TiedWeights,
    "parametrization": weight_normed,
}


def line() -> FilterPruning:
    return FilterPruning("l1", macs=0.5, schedule=[1], round_to=1)


@pytest.mark.parametrize("kind", thinned(NETWORKS, 3))
def test_a_fit_is_saved_resumed_and_exported(kind: str, tmp_path: Path) -> None:
    make = NETWORKS[kind]
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module = TinyModule(net=make())
    trainer(line(), keep, epochs=3, enable_checkpointing=True).fit(module, loader())
    names = [name for name, _ in module.named_parameters()]

    resumed = TinyModule(net=make())
    trainer(line(), epochs=3).fit(resumed, loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert [name for name, _ in resumed.named_parameters()] == names  # what was tied still is
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name

    net, x = module.net.eval(), torch.randn(2, 3, 8, 8)
    infoprune.save(net, tmp_path / "pruned.pt")
    loaded = infoprune.load(tmp_path / "pruned.pt", make()).eval()
    assert torch.equal(loaded(x), net(x))
    program: Any = torch.export.export(loaded, (x,))
    torch.testing.assert_close(program.module()(x), net(x))


def test_a_monitored_checkpoint_of_fixed_name_holds_the_final_shape(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="best", monitor="val/loss")
    module = TinyModule()
    trainer(line(), keep, epochs=3, enable_checkpointing=True).fit(module, loader(), loader())
    state = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    assert state["net.conv1.weight"].shape == module.net.conv1.weight.shape != TinyNet().conv1.weight.shape
