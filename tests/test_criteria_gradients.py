"""`hessian` and `grouped_taylor` against plain loops, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infoprune
from infoprune.criteria import GroupedTaylor, Hessian, get_criterion
from infoprune.errors import ConfigurationError, DataError

Data = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """A flattened map in front of the last layer, so that a unit is read at several places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4 * 4, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def structure(net: Net) -> infoprune.Structure:
    return infoprune.trace(net, torch.zeros(1, 3, 4, 4))


@pytest.fixture
def data() -> Data:
    return [(torch.randn(n, 3, 4, 4), torch.randint(5, (n,))) for n in (5, 3)]


def test_hessian_against_a_loop_over_images(net, structure, data):
    expected = torch.zeros(4)
    for x, y in zip(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]), strict=True):
        gradient = torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), net.conv.weight)[0]
        expected += (gradient.square() * net.conv.weight.detach().square()).sum(dim=(1, 2, 3)) / 2 / 8
    assert torch.allclose(Hessian()(net, structure, data)["conv"], expected.double(), rtol=1e-4)


def test_grouped_taylor_against_all_that_goes_with_a_unit(net, structure, data):
    loss = F.cross_entropy(net(torch.cat([x for x, _ in data])), torch.cat([y for _, y in data]))
    loss.backward()
    products = {name: (p.grad * p.detach()).abs() for name, p in net.named_parameters()}
    expected = products["conv.weight"].sum(dim=(1, 2, 3)) + products["conv.bias"]
    expected = expected + products["norm.weight"] + products["norm.bias"]
    expected = expected + products["head.weight"].reshape(5, 4, 16).sum(dim=(0, 2))
    net.zero_grad()
    assert torch.allclose(GroupedTaylor()(net, structure, data)["conv"], expected.double(), rtol=1e-4)


@pytest.mark.parametrize("name", ["hessian", "grouped_taylor"])
def test_scoring_leaves_the_model_as_it_was(name: str, net, structure, data):
    net.train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    scores = get_criterion({"name": name, "images": 6})(net, structure, data)
    assert scores["conv"].shape == (4,)
    assert scores["conv"].dtype == torch.float64
    assert net.training
    assert not net.norm.training
    assert not net.conv.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["hessian", "grouped_taylor"])
def test_only_the_first_images_count_and_a_loss_may_be_given(name: str, net, structure, data):
    targets = [(x, torch.randn(len(x), 5)) for x, _ in data]
    spec = {"name": name, "images": 5, "loss": F.mse_loss}
    scores = get_criterion(spec)(net, structure, targets)["conv"]
    assert torch.equal(scores, get_criterion({**spec, "images": 640})(net, structure, targets[:1])["conv"])
    assert not torch.equal(scores, get_criterion({**spec, "images": 8})(net, structure, targets)["conv"])


@pytest.mark.parametrize("name", ["hessian", "grouped_taylor"])
def test_a_loss_that_sees_no_layer_and_data_without_targets_are_refused(name: str, net, structure, data):
    def blind(outputs: Tensor, targets: Tensor) -> Tensor:
        return net.head.bias.sum()

    with pytest.raises(ConfigurationError, match="conv"):
        get_criterion({"name": name, "loss": blind})(net, structure, data)
    with pytest.raises(DataError, match="no targets"):
        get_criterion(name)(net, structure, [x for x, _ in data])
    with pytest.raises(ConfigurationError, match="pass batches of training images"):
        get_criterion(name)(net, structure)
