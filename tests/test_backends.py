"""Backends: what they load, what they measure, and what they say when they cannot."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import infoprune
from infoprune.backends import BACKENDS, Eager, get_backend
from infoprune.backends.grid import WIDTHS, grid_of, smallest_that_pays, steps_in
from infoprune.backends.layers import timed_layers
from infoprune.backends.table import LatencyTable
from infoprune.errors import BudgetError, ConfigurationError, ExportError
from infoprune.models import CifarResNet

pytestmark = pytest.mark.usefixtures("one_thread", "onnx_operators")

IMAGES = torch.randn(1, 3, 16, 16)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFOPRUNE_CACHE", str(tmp_path / "cache"))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(16 * 14 * 14, 4)
    )


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino", "executorch"])
def test_a_backend_tells_seconds_and_leaves_the_model(name: str) -> None:
    try:
        backend = get_backend(name)
    except ConfigurationError as error:
        pytest.skip(str(error))
    net = network()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    time = infoprune.latency(net, IMAGES, repeats=3, backend=backend)
    assert 0 < time.median < 1
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.__version__.partition("+")[0] in backend.versions


def no_compiler() -> bool:
    return not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl")))


@pytest.mark.parametrize("through", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_tells_seconds_and_leaves_the_model(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler of C++, which takes half a minute, in the slow tests; the quick one stops before it."""
    if through == "inductor" and no_compiler():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=through))
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert infoprune.latency(net, torch.randn(2, 8), repeats=3, backend="compile").median > 0
    assert net.training
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    infoprune.prune(net, torch.randn(2, 8), "l1", params=0.6, backend="compile")
    assert net[0].out_features < 16
    assert infoprune.latency(net, torch.randn(2, 8), repeats=3, backend="compile").median > 0


def test_an_executorch_program_holds_the_bytes_that_it_runs_from() -> None:
    pytest.importorskip("executorch")
    from infoprune.backends import executorch

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    program = torch.export.export(net, (IMAGES,))
    execute = executorch.loaded(executorch.lowered(program))
    gc.collect()
    for _ in range(3):
        torch.rand(1 << 16)  # takes over memory that is free
        assert torch.allclose(execute([IMAGES])[0], net(IMAGES), atol=1e-4)
    held = [cell.cell_contents for cell in execute.__closure__ or ()]
    assert any(hasattr(value, "load_method") for value in held)


SIGNALS = """
import signal, subprocess
import torch
from infoprune.backends.openvino import OpenVino

layer, x = torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
first = OpenVino(precision="int8").load(layer, x)
second = OpenVino().load(layer, x)
del first, second
received = []
signal.signal(signal.SIGCHLD, lambda *_: received.append(1))
subprocess.run(["true"], check=True)
assert received
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO replaces the signal stack on Linux")
def test_signals_arrive_after_two_networks_were_loaded_in_openvino() -> None:
    """A DataLoader with workers handles SIGCHLD in the same way; it comes when any child process ends."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8(name: str) -> None:
    pytest.importorskip("onnxruntime" if name == "onnxruntime" else "nncf")
    backend = get_backend({"name": name, "precision": "int8"})
    assert infoprune.latency(network(), IMAGES, repeats=3, backend=backend).median > 0
    assert repr(backend) != repr(get_backend(name))


def test_several_inputs_by_name() -> None:
    pytest.importorskip("onnxruntime")

    class Sum(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + 2 * right

    given = {"right": torch.ones(2, 3), "left": torch.zeros(2, 3)}
    assert infoprune.latency(Sum(), given, repeats=2, backend="onnxruntime").median > 0
    assert infoprune.latency(Sum(), tuple(given.values()), repeats=2, backend="onnxruntime").median > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("onnxrt", r"unknown backend 'onnxrt', did you mean 'onnxruntime'\?"),
        ({"name": "onnxruntime", "precision": "int4"}, r"precision cannot be 'int4', did you mean 'int8'\?"),
        ({"name": "eager", "threads": 1}, "backend 'eager' has no option 'threads'"),
    ],
)
def test_what_does_not_exist(spec: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        infoprune.latency(network(), IMAGES, backend=spec)


@pytest.mark.parametrize("name", [name for name in BACKENDS.names if name not in ("eager", "compile")])
def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("infoprune.backends.backend.find_spec", lambda package: None)
    net = network()
    with pytest.raises(ConfigurationError, match=rf"backend '{name}' needs .*pip install 'infoprune\[{name}\]'"):
        infoprune.prune(net, IMAGES, "l1", macs=0.5, backend=name)
    assert net[0].out_channels == 16


@pytest.mark.parametrize("answer", [0, -1.0, float("inf"), None, "fast", True])
def test_a_function_that_returns_nonsense(answer: Any) -> None:
    with pytest.raises(ConfigurationError, match="it has to return the seconds of a forward pass"):
        infoprune.latency(network(), IMAGES, backend=lambda model, inputs: answer)


@pytest.mark.slow
def test_an_operator_that_it_cannot_take() -> None:
    pytest.importorskip("onnxruntime")

    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    with pytest.raises(ExportError, match="svd"):
        infoprune.latency(nn.Sequential(nn.Conv2d(3, 4, 1), Spectrum()), IMAGES, repeats=1, backend="onnxruntime")


def test_layers_as_wide_as_groups_say() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 144, 2)
    )
    structure = infoprune.trace(net, IMAGES)
    layers = timed_layers(net, structure, IMAGES)
    assert [layer.kind.name for layer in layers] == ["conv", "depthwise", "conv", "linear"]
    assert [(layer.inputs({}), layer.outputs({})) for layer in layers] == [(3, 16), (16, 16), (16, 8), (1152, 2)]
    cut = {"0": 12, "2": 4}
    assert [(layer.inputs(cut), layer.outputs(cut)) for layer in layers] == [(3, 12), (12, 12), (12, 4), (576, 2)]
    module, example = layers[1].kind.build(12, 12)
    assert module(example).shape[1] == 12


def test_the_smallest_step_that_is_not_punished() -> None:
    work = {width: float(width) ** 2 for widths in WIDTHS.values() for width in widths}
    for step in (1, 2, 4, 8, 16, 32):
        assert smallest_that_pays({w: s * (1.0 if w % step == 0 else 1.3) for w, s in work.items()}) == step


def test_a_backend_decides_the_widths() -> None:
    backend = get_backend("eager")
    structure = infoprune.trace(CifarResNet(depth=8), torch.zeros(1, 3, 32, 32))
    step = steps_in(structure, backend)
    assert set(grid_of(backend)) == {"conv", "depthwise", "linear"}
    assert all(4 <= step[group.name] <= group.size // 2 for group in structure.prunable if group.size >= 16)
    net = CifarResNet(depth=8)
    infoprune.prune(net, torch.zeros(1, 3, 32, 32), "l1", macs=0.5, backend="eager")
    assert {m.out_channels % 4 for m in net.modules() if isinstance(m, nn.Conv2d)} == {0}


def test_a_function_may_do_anything_with_its_model() -> None:
    def careless(model: nn.Module, inputs: Any) -> float:
        for parameter in model.parameters():
            parameter.zero_()
        model.train()(torch.cat([inputs, inputs]))
        return 1e-9 * sum(parameter.numel() for parameter in model.parameters())

    net = CifarResNet(depth=8).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert infoprune.latency(net, torch.zeros(1, 3, 32, 32), repeats=2, backend=careless).median > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    result = infoprune.prune(net, torch.zeros(1, 3, 32, 32), "l1", latency=0.6, backend=careless)
    assert result.latency == pytest.approx(0.6, abs=0.05)
    assert all(parameter.abs().sum() > 0 for parameter in net.parameters() if parameter.dim() > 1)


def test_a_function_that_cannot_be_called_is_refused_before_it_is() -> None:
    net = network()
    with pytest.raises(ConfigurationError, match=r"takes \(model\): it has to take \(model, example_inputs\)"):
        infoprune.prune(net, IMAGES, "l1", macs=0.5, backend=lambda model: 1.0)  # type: ignore[arg-type, misc]
    assert net[0].out_channels == 16


def test_a_function_that_fails() -> None:
    def unplugged(model: nn.Module, inputs: Any) -> float:
        raise OSError("no route to the board")

    with pytest.raises(ConfigurationError, match=r"failed \(OSError: no route to the board\)"):
        infoprune.prune(network(), IMAGES, "l1", latency=0.5, backend=unplugged)


def test_seconds_may_be_numpys() -> None:
    assert infoprune.latency(network(), IMAGES, repeats=2, backend=lambda *_: np.float32(0.25)).median == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "executorch"])
def test_the_layer_of_an_operator_that_a_backend_lacks(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(name)

    class Decomposed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.linalg.svdvals(x)[..., :1, None]

    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 16, 3))
    net.add_module("middle", nn.Conv2d(16, 8, 3))
    net.add_module("decomposed", Decomposed())
    with pytest.raises(ExportError, match=r"no operator for aten\._linalg_svd \(in decomposed\)"):
        infoprune.prune(net, IMAGES, "l1", latency=0.7, backend=name)
    assert net.stem.out_channels == 16
    written = capfd.readouterr()
    assert "graph(" not in written.out + written.err


def test_the_layer_whose_forward_cannot_be_followed() -> None:
    pytest.importorskip("executorch")

    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"cannot follow Sequential at test_backends.py:\d+ \(.*x.sum.*\) in 1"):
        infoprune.latency(nn.Sequential(nn.Conv2d(3, 4, 3), Gate()), IMAGES, backend="executorch")


def test_a_clock_on_which_nothing_gets_faster() -> None:
    with pytest.raises(BudgetError, match="no cut makes the model cheaper"):
        infoprune.prune(CifarResNet(depth=8), torch.zeros(1, 3, 32, 32), "l1", latency=0.6, backend=lambda *_: 1.0)


def test_a_backend_is_an_object_and_a_model_a_module() -> None:
    with pytest.raises(ConfigurationError, match=r"the backend Eager is a class: give an object, Eager\(\)"):
        infoprune.latency(network(), IMAGES, backend=Eager)
    with pytest.raises(ConfigurationError, match=r"must be a torch.nn.Module in Python, got a str"):
        infoprune.latency("network", IMAGES)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"got the class Eager; build the model first"):
        infoprune.latency(Eager, IMAGES)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="warmup must be a whole number of at least 0, got -1"):
        infoprune.latency(network(), IMAGES, warmup=-1)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[1, 2]", b"[" * 100_000, b'{"a": -1.0, "b": NaN, "c": "x", "d": 1e999}']
)
def test_a_damaged_table_of_times_is_measured_anew(content: bytes) -> None:
    table = LatencyTable(get_backend("eager"))
    table.path.parent.mkdir(parents=True)
    table.path.write_bytes(content)
    again = LatencyTable(get_backend("eager"))
    assert again.seconds == {}
    again.measure({"layer": lambda: (nn.Linear(1, 1), torch.zeros(1, 1))})
    again.keep()
    assert 0 < LatencyTable(get_backend("eager")).seconds["layer"] < 1


def test_layers_are_timed_together_until_they_take_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    class Noting(Eager):
        def seconds_of(self, networks: Any, runs: int) -> list[float]:
            together.append(len(networks))
            return [float(network.in_features) for network, _ in networks]

    table = LatencyTable(Noting())
    table.seconds = {"known": 0.5}
    megabyte = 4 * (512 * 510 + 2 * 512)
    monkeypatch.setattr("infoprune.backends.table.AT_ONCE", 2 * megabyte)

    def linear() -> tuple[nn.Module, torch.Tensor]:
        return nn.Linear(512, 512), torch.zeros(1, 512)

    table.measure(dict.fromkeys(("known", "a", "b", "c", "d", "e"), linear))
    assert together == [2, 2, 1]
    assert table.seconds == {"known": 0.5} | dict.fromkeys("abcde", 512.0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_counters_of_openvino_tell_networks_apart(precision: str) -> None:
    pytest.importorskip("nncf" if precision == "int8" else "openvino")
    images = torch.randn(1, 64, 28, 28)
    networks: list[tuple[nn.Module, Any]] = [
        (nn.Conv2d(64, 4, 1), images),
        (nn.Sequential(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3)), images),
        (nn.Linear(8, 8), torch.randn(1, 8)),
        (nn.Conv2d(64, 64, 3, groups=64), images),
    ]
    backend = get_backend({"name": "openvino", "precision": precision})
    narrow, wide, linear, depthwise = backend.seconds_of(networks, 25)  # a busy machine slows down a few runs
    assert 0 < linear < wide
    assert 0 < narrow < wide / 4
    assert 0 < depthwise < wide / 4


def test_every_operator_of_openvino_belongs_to_a_network() -> None:
    pytest.importorskip("openvino")
    from infoprune.backends.onnx_model import onnx_bytes
    from infoprune.backends.openvino import compiled, read_model
    from infoprune.backends.openvino_counters import SideBySide, name_by_network, seconds_by_network

    net = SideBySide([nn.Conv2d(3, 16, 3), nn.Sequential(nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 3))])
    read = read_model(onnx_bytes(net, (IMAGES, IMAGES)))
    name_by_network(read)
    request = compiled(read, PERF_COUNT=True).create_infer_request()
    request.infer([IMAGES.numpy(), IMAGES.numpy()])
    counters = request.get_profiling_info()
    assert {counter.node_name.partition(":")[0] for counter in counters} == {"0", "1"}
    assert any("edge" in counter.node_name and counter.node_type == "Reorder" for counter in counters)
    inner = [c for c in counters if "edge" not in c.node_name]
    assert sum(seconds_by_network([counters], 2)) == pytest.approx(sum(c.real_time.total_seconds() for c in inner))
