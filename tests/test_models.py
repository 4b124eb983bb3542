from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.models import CifarResNet, CifarVGG16, load_weights
from infoprune.models.cifar_resnet import ZeroPadShortcut

PRETRAINED = Path(__file__).resolve().parents[1] / "../shared/data/cifar10_resnets"


def count(model: nn.Module, size: int = 32) -> tuple[int, int]:
    """Multiply-accumulates of one image without and with convolution biases, counted apart from our cost model."""
    macs = biases = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs, biases
        macs += module.weight[0].numel() * output[0].numel()
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            biases += output[0].numel()

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return macs, macs + biases


def millions(value: int) -> str:
    return f"{value / 1e6:.2f}"


# The base numbers of HRankPlus and CHIP: convolutions and linear layers, and one for every bias a convolution adds.
@pytest.mark.parametrize(
    ("make", "macs", "params"),
    [
        (partial(CifarResNet, 56), "125.49", "0.85"),
        (partial(CifarResNet, 110), "252.89", "1.73"),
        (CifarVGG16, "313.74", "14.98"),
    ],
    ids=["resnet56", "resnet110", "vgg16"],
)
def test_base_counts_are_those_of_the_papers(make: Callable[[], nn.Module], macs: str, params: str) -> None:
    model = make()
    assert millions(count(model)[1]) == macs
    without_norm = sum(
        p.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters(recurse=False)
    )
    total = sum(p.numel() for p in model.parameters())
    if isinstance(model, CifarVGG16):  # the published 14.98 M leaves batch norm out; with it VGG has 14.99 M
        assert (millions(without_norm), millions(total)) == (params, "14.99")
    else:
        assert millions(total) == params


def test_our_cost_model_agrees_with_the_hooks() -> None:
    import infoprune

    for model in (CifarResNet(20), CifarVGG16()):
        cost = infoprune.trace(model.eval(), torch.zeros(2, 3, 32, 32)).cost()
        assert cost.macs == count(model)[0]
        assert cost.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth", [20, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (32, 44, 56))])
def test_public_weights_load_as_they_are(depth: int) -> None:
    path = PRETRAINED / f"resnet{depth}.pt"
    if not path.exists():
        pytest.skip("the pretrained CIFAR ResNets are not beside the repository")
    state = torch.load(path, weights_only=True)
    model = CifarResNet(depth)
    assert set(model.state_dict()) - set(state) <= {n for n in model.state_dict() if n.endswith("num_batches_tracked")}
    model.load_state_dict(state, strict=True)
    other = CifarResNet(depth)
    load_weights(other, path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shortcut_equals_padding_with_numbers(stride: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 16, 7, 9, dtype=dtype)
    shortcut = ZeroPadShortcut(16, 32, stride)
    out = shortcut(x)
    assert torch.equal(out, F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 8, 8)))
    assert out.dtype == dtype
    assert not shortcut.state_dict()


def test_every_stage_of_a_cifar_resnet_can_be_pruned() -> None:
    import infoprune

    model = CifarResNet(20).eval()
    x = torch.randn(2, 3, 32, 32)
    structure = infoprune.trace(model, x)
    assert {group.name for group in structure.groups if group.frozen} == {"linear", "conv1.weight"}
    original = copy.deepcopy(model)
    plan = structure.plan({group.name: list(range(0, group.size, 2)) for group in structure.prunable})
    infoprune.shrink(model, plan)
    assert infoprune.verify(original, model, plan, x).ok
    widths = [model.conv1, model.layer2[0].conv2, model.layer3[2].conv2]
    assert [conv.out_channels for conv in widths] == [8, 16, 32]
    assert model.layer2[0].shortcut.before.shape == model.layer2[0].shortcut.after.shape == (4,)


def test_cifar_resnets_take_grey_and_small_images() -> None:
    assert CifarResNet(8, num_classes=3, in_channels=1, width=8)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(("depth", "possible"), [(57, 56), (18, 20), (2, 8)])
def test_impossible_depth(depth: int, possible: int) -> None:
    with pytest.raises(ConfigurationError, match=f"depth={depth}.*nearest is depth={possible}"):
        CifarResNet(depth)


class TestLoadWeights:
    """`load_weights` takes what training leaves behind, and nothing else."""

    @staticmethod
    def saved(tmp_path: Path, content: object) -> Path:
        path = tmp_path / "weights.pt"
        torch.save(content, path)
        return path

    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "net._orig_mod.", "module.model."])
    def test_prefixes(self, tmp_path: Path, prefix: str) -> None:
        source, target = CifarResNet(8), CifarResNet(8)
        state = {prefix + name: value for name, value in source.state_dict().items()}
        # layer1.0.conv1.weight ends like conv1.weight, and must not be taken for it
        others = {"criterion.weight": torch.ones(3)} if prefix else {}
        load_weights(target, self.saved(tmp_path, {"state_dict": state | others}))
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(source.eval()(x), target.eval()(x))

    def test_first_layer_that_differs_is_named_and_nothing_changes(self, tmp_path: Path) -> None:
        model = CifarResNet(8)
        before = copy.deepcopy(model.state_dict())
        path = self.saved(tmp_path, CifarResNet(8, width=8).state_dict())
        with pytest.raises(CheckpointError, match=r"'conv1' differs.*\(8, 3, 3, 3\) in the file, \(16, 3, 3, 3\) in"):
            load_weights(model, path)
        path = self.saved(tmp_path, CifarResNet(8, num_classes=100).state_dict())
        with pytest.raises(CheckpointError, match=r"'linear' differs.*\(100, 64\)"):
            load_weights(model, path)
        path = self.saved(tmp_path, CifarResNet(14).state_dict())
        with pytest.raises(CheckpointError, match=r"'layer1\.1\.conv1' is in the file, not in the model"):
            load_weights(model, path)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        deeper = CifarResNet(14)
        path = self.saved(tmp_path, model.state_dict())
        with pytest.raises(CheckpointError, match=r"'layer1\.1\.conv1' is not in the file"):
            load_weights(deeper, path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"none\.pt: no such file"):
            load_weights(CifarResNet(8), tmp_path / "none.pt")

    def test_truncated_file(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, CifarResNet(8).state_dict())
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(CheckpointError, match="truncated"):
            load_weights(CifarResNet(8), path)

    @pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04garbage"])
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "weights.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cannot read .*truncated or not a checkpoint"):
            load_weights(CifarResNet(8), path)

    def test_whole_models_are_refused_unread(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, CifarResNet(8))
        with pytest.raises(CheckpointError, match="more than tensors"):
            load_weights(CifarResNet(8), path)

    def test_other_objects(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds a list"):
            load_weights(CifarResNet(8), self.saved(tmp_path, [1, 2]))
