"""Pruned models as folders and repositories of the Hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.hub import from_pretrained, push_to_hub, save_pretrained

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module, hub.PyTorchModelHubMixin):
    """A model of one's own that the Hub knows."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, classes, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_mixin_model_round_trips_with_its_configuration(tmp_path: Path) -> None:
    net = Mixed(width=12).eval()
    infoprune.prune(net, X, "l1", filters=0.5)
    save_pretrained(net, tmp_path)
    again = from_pretrained(tmp_path, Mixed).eval()
    assert again.net[0].out_channels == 6
    assert torch.equal(again(X), net(X))
    assert infoprune.PruningPlan.load(tmp_path / "plan.json") == infoprune.plan_of(net)
    own = Mixed.from_pretrained(tmp_path, width=6)  # the Hub's own way, for one who knows the widths
    assert torch.equal(own.eval()(X), net(X))


def test_a_timm_model_is_built_by_its_own_convention(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=7).eval()
    infoprune.prune(net, X, "l1", filters=0.5)
    save_pretrained(net, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet10t"
    again = from_pretrained(tmp_path).eval()
    assert torch.equal(again(X), net(X))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="names no model of timm: give the unpruned model or its class"):
        from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        from_pretrained(tmp_path, Mixed())
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        from_pretrained(tmp_path, Mixed)


class Endpoint(BaseHTTPRequestHandler):
    """As much of the Hub as refuses everybody."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_refused_upload_is_the_hubs_own_error_and_changes_nothing() -> None:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    net = Mixed()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        with pytest.raises(hub.errors.HfHubHTTPError, match="401"):
            push_to_hub(net, "nobody/net", endpoint=f"http://127.0.0.1:{server.server_port}", token="none")
    finally:
        server.shutdown()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_uploads_hold_weights_plan_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own client, with the two calls that need a server answered here."""
    sent: dict[str, object] = {}

    def upload_folder(self: object, *, repo_id: str, folder_path: str, **_: object) -> str:
        sent.update({"repo": repo_id, "files": sorted(path.name for path in Path(folder_path).iterdir())})
        return "commit"

    made = hub.RepoUrl("https://huggingface.co/somebody/net")
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo_id, **_: made)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    assert push_to_hub(Mixed(), "somebody/net", token="none") == "commit"
    assert sent == {"repo": "somebody/net", "files": ["config.json", "model.safetensors", "plan.json"]}


@dataclass
class Widths:
    """The options of `Configured`, as an object."""

    inner: int = 8
    outer: int = 4


class Configured(nn.Module, hub.PyTorchModelHubMixin):
    """A model whose options are one object."""

    def __init__(self, config: Widths) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, config.inner, 3), nn.ReLU(), nn.Conv2d(config.inner, config.outer, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Chosen(Configured, coders={torch.dtype: (str, lambda text: getattr(torch, text.removeprefix("torch.")))}):
    """A model with an option that the Hub has to be told how to write."""

    def __init__(self, inner: int = 8, kind: torch.dtype = torch.float32) -> None:
        super().__init__(Widths(inner))
        self.kind = kind


@pytest.mark.parametrize("make", [lambda: Configured(Widths(inner=12)), lambda: Chosen(12, torch.float64)])
def test_configurations_are_read_as_the_mixin_reads_them(make: Callable[[], Configured], tmp_path: Path) -> None:
    net = make().eval()
    infoprune.prune(net, X, "l1", filters=0.5)
    save_pretrained(net, tmp_path)
    again = from_pretrained(tmp_path, type(net)).eval()
    assert type(again) is type(net)
    assert again.net[0].out_channels == 6
    assert torch.equal(again(X), net(X))
    assert getattr(again, "kind", None) == getattr(net, "kind", None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            nn.Linear,
            r"Linear cannot be built from .*config\.json \(TypeError: .*width.*: give the unpruned model itself",
        ),
        (lambda **_: "net", "makes a str, not a torch.nn.Module"),
        ("resnet18", "str cannot be built from"),
    ],
)
def test_what_cannot_be_built_is_named(kind: Any, message: str, tmp_path: Path) -> None:
    save_pretrained(Mixed(), tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        from_pretrained(tmp_path, kind)


def test_neither_a_folder_nor_a_repository(tmp_path: Path) -> None:
    for source in (tmp_path / "no" / "such", "nobody/nothing"):
        with pytest.raises(CheckpointError, match="is no folder, and cannot be read from the Hub"):
            from_pretrained(source, Mixed, local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"must be a torch.nn.Module in Python, got a dict"):
        save_pretrained({}, tmp_path / "new")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
