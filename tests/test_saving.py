"""What `prune` accepts, `save` writes and `load` reads; a file that fails to load leaves the model as it was."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import infoprune
from infoprune.checkpoint import attach
from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.models.weights import load_weights
from infoprune.weight_files import read_torch

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class TwoNames(nn.Module):
    """The body is an attribute of its own, and part of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)])
        self.first = self.parts[0]
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts[1](self.first(x).relu()).mean((2, 3)))


class TiedEmbedding(nn.Module):
    """A decoder whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(10, 16), nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 10, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, 0, 0].abs() * 3).long() % 10
        return self.lm_head(self.inner(self.embedding(tokens)).relu())


class SharedBias(nn.Module):
    """One bias for two layers, and a buffer that is registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
        self.left.bias = self.right.bias
        self.register_buffer("scale", torch.ones(8, 1, 1))
        self.right.register_buffer("scale", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) + self.right(x)).relu() * self.scale)


class Parametrized(nn.Module):
    """A layer with spectral norm stays; what is around it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.normed = parametrizations.spectral_norm(nn.Conv2d(8, 6, 1))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.normed(self.inner(self.stem(x).relu()).relu()))


class Scripted(nn.Module):
    """A part that ``torch.jit`` has compiled stays; what is around it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.body = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.inner(self.stem(x).relu())))


class Stateful(nn.Module):
    """Keeps extra state, which is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.seen = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), 0

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu())


KINDS = [TwoNames, TiedEmbedding, SharedBias, Parametrized, Scripted, Stateful]


def pruned(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = kind().eval()
    result = infoprune.prune(net, X, "l1", filters=0.5)
    assert not result.plan.is_empty
    return net


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_round_trip(kind: type[nn.Module], suffix: str, tmp_path: Path) -> None:
    net, path = pruned(kind), tmp_path / f"net{suffix}"
    if kind is Stateful and suffix == ".safetensors":
        with pytest.raises(CheckpointError, match="safetensors cannot hold _extra_state"):
            infoprune.save(net, path)
        assert not path.exists()
        return
    infoprune.save(net, path)
    assert zipfile.is_zipfile(path) == (suffix == ".pt")
    again = infoprune.load(path, kind()).eval()
    assert torch.equal(again(X), net(X))
    assert infoprune.plan_of(again) == infoprune.plan_of(net)
    names = [name for name, _ in net.named_parameters()]
    assert [name for name, _ in again.named_parameters()] == names  # what was tied still is
    more = infoprune.prune(again, X, "l1", filters=0.5)
    infoprune.save(again, path)
    assert torch.equal(infoprune.load(path, kind()).eval()(X), again(X))
    assert not more.plan.is_empty


@pytest.mark.parametrize("kind", [TwoNames, TiedEmbedding, SharedBias, Parametrized])
def test_other_ways_to_the_same_weights(kind: type[nn.Module], tmp_path: Path) -> None:
    """A state dict with its plan, and ``load_weights`` of what `save` wrote."""
    net = pruned(kind)
    fresh = kind()
    for model in (net, fresh):
        attach(model)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(X), net(X))
    for name in ("net.pt", "net.safetensors"):
        infoprune.save(net, tmp_path / name)
        loaded = kind()
        load_weights(loaded, tmp_path / name)
        assert torch.equal(loaded.eval()(X), net(X))


def test_safetensors_tell_their_plan(tmp_path: Path) -> None:
    from safetensors import safe_open

    net = pruned(TiedEmbedding)
    infoprune.save(net, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        record = json.loads(file.metadata()["infoprune"])
        names = set(file.keys())
    assert infoprune.PruningPlan.from_dict(record["plan"]) == infoprune.plan_of(net)
    assert record["aliases"] == {"lm_head.weight": "embedding.weight"}
    assert names == {"embedding.weight", "inner.weight", "inner.bias"}


def test_older_files_named_safetensors_are_still_read(tmp_path: Path) -> None:
    net = pruned(TwoNames)
    infoprune.save(net, tmp_path / "net.pt")
    old = torch.load(tmp_path / "net.pt", weights_only=True)
    del old["digest"]
    torch.save(old, tmp_path / "net.safetensors")
    assert torch.equal(infoprune.load(tmp_path / "net.safetensors", TwoNames()).eval()(X), net(X))


# -- files that do not load -------------------------------------------------------------------------------------------


def looks(net: nn.Module) -> list[Any]:
    tensors = [(name, id(t), t.tolist()) for name, t in net.state_dict(keep_vars=True).items() if isinstance(t, Tensor)]
    plain = [{key: value for key, value in vars(module).items() if key[0] != "_"} for module in net.modules()]
    modules = [(name, type(module)) for name, module in net.named_modules()]
    return [tensors, modules, plain, infoprune.plan_of(net)]


def refused(path: Path, message: str, kind: Callable[[], nn.Module] = TwoNames) -> None:
    net = kind()
    before = looks(net)
    with pytest.raises(CheckpointError, match=message):
        infoprune.load(path, net)
    assert looks(net) == before


def in_plan(**entries: Any) -> Callable[[dict[str, Any]], Any]:
    """Change a plan so that the digest does not tell."""
    return lambda content: (content.pop("digest"), content["plan"].update(entries))


def in_state(key: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["state_dict"].update({key: change(content["state_dict"][key])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_plan(caches=["_parameters"]), r"drops _parameters, which holds a dict and is no cache"),
        (in_plan(caches=["parts.0._buffers"]), "drops parts.0._buffers"),
        (in_plan(caches=["parts.0.kernel_size"]), "drops parts.0.kernel_size, which holds a tuple"),
        (in_plan(caches=["training"]), "drops training, which holds a bool"),
        (in_plan(attributes={"parts.0.kernel_size[0]": [3, 1]}), r"rewrites parts.0.kernel_size\[0\] from 3 to 1"),
        (in_plan(attributes={"parts.0.groups": [1, 2]}), "from 1 to 2, and that is no width"),
        (in_plan(attributes={"training": [1, 0]}), "training is True, the plan expects 1"),
        (in_plan(attributes={"parts.0.nothing": [4, 2]}), "rewrites parts.0.nothing, which this model does not have"),
        (in_state("head.weight", lambda t: t.to_sparse()), "head.weight is a torch.sparse_coo tensor in the file"),
        (in_state("head.weight", lambda t: t.to("meta")), "head.weight is a tensor without values in the file"),
        (in_state("head.weight", lambda t: t.to(torch.complex64)), "head.weight is complex in the file"),
        (
            in_state("head.weight", lambda t: t[:, :1].expand(4, 4_000_000_000)),
            r"head.weight has shape .*4000000000",
        ),
        (in_state("head.bias", lambda t: t + 1), "is damaged: its weights and plan are not those"),
        (lambda content: content.update(digest=7), "'digest' is a int"),
        (lambda content: content["state_dict"].update({3: torch.ones(1)}), "not tensors by name"),
        (lambda content: content["state_dict"].update({"\x1b[2J": torch.ones(1)}), r"the model has no '\\x1b\[2J'"),
        (lambda content: setattr(content["state_dict"], "_metadata", {"": 3}), "cannot be loaded into TwoNames"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "change",
)
def test_crafted_files(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    infoprune.save(pruned(TwoNames), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    refused(path, message)


def test_code_of_the_model_that_fails_while_loading(tmp_path: Path) -> None:
    class Picky(Stateful):
        def set_extra_state(self, state: dict[str, int]) -> None:
            raise KeyError("not mine")

    infoprune.save(pruned(Stateful), tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "cannot be loaded into Picky: KeyError: 'not mine'", Picky)


def test_a_model_without_values(tmp_path: Path) -> None:
    infoprune.save(pruned(TwoNames), tmp_path / "net.pt")
    with torch.device("meta"):
        net = TwoNames()
    with pytest.raises(CheckpointError, match=r"meta device, where parts.0.weight has no values"):
        infoprune.load(tmp_path / "net.pt", net)


def test_criteria_that_read_weights_say_that_there_are_none() -> None:
    with torch.device("meta"):
        net = TwoNames()
    with pytest.raises(ConfigurationError, match="meta device and has none: load the weights first"):
        infoprune.prune(net, X, "l1", filters=0.5)
    assert not infoprune.prune(net, X, "random", filters=0.5).plan.is_empty


class Allocate:
    """Pickles as a call that takes memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (4_000_000_000,)


def test_files_that_take_more_memory_than_they_are_long(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    infoprune.save(pruned(TwoNames), path)
    torch.save({"infoprune": 1, "plan": Allocate(), "state_dict": {}}, tmp_path / "calls.pt")
    refused(tmp_path / "calls.pt", "it calls 'builtins bytearray'|it calls '__builtin__ bytearray'")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "zipped.pt", "w", zipfile.ZIP_DEFLATED) as zipped:
        for record in whole.infolist():
            zipped.writestr(record.filename, whole.read(record))
    refused(tmp_path / "zipped.pt", "is compressed")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Allocate(), protocol=2))
    refused(tmp_path / "bare.pt", "it calls")


def test_read_torch_takes_what_state_dicts_hold(tmp_path: Path) -> None:
    content = {
        "a": torch.ones(2, dtype=torch.bfloat16),
        "b": nn.Parameter(torch.ones(2)),
        "c": {"d": [1, 2.0, None, "e", (True,)]},
        "f": torch.ones(3).to_sparse(),
    }
    torch.save(content, tmp_path / "a.pt")
    torch.save(content["a"], tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert read_torch(tmp_path / "a.pt")["c"] == content["c"]
    assert torch.equal(read_torch(tmp_path / "b.pt"), content["a"])
