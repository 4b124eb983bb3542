"""Exports: the same outputs in another runtime, any batch size, and what an export forbids is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

import infoprune
from infoprune.deploy import to_executorch, to_int8, to_openvino
from infoprune.errors import ConfigurationError, DataError, ExportError
from infoprune.export import compared, onnx, parity, to_onnx, to_program, to_weights
from infoprune.models import CifarResNet
from infoprune.structure import PruningPlan
from tests.commands import NET, SHAPE, Shell
from tests.tiny import TinyNet, same

pytestmark = pytest.mark.usefixtures("onnx_operators")

IMAGES = torch.randn(1, 3, 16, 16)


@torch.library.custom_op("infoprune_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Odd(nn.Module):
    """A convolution and something that some exporter cannot follow."""

    def __init__(self, kind: str = "custom") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "custom":
            return doubled(x)
        if self.kind == "svd":
            return torch.linalg.svdvals(x)
        if self.kind == "batch":
            return x.view(2, -1)
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    """Two inputs by name, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(image).mean((2, 3)) + self.b(vector), vector.relu()


class Digits(nn.Sequential):
    """Two layers, with so many weights that int8 makes the file smaller."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 10))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


def pruned() -> TinyNet:
    """Return a pruned residual network of few operators, which exporters take in a second."""
    model = TinyNet().eval()
    infoprune.prune(model, IMAGES, "l1", macs=0.5)
    return model


def test_a_program_takes_any_batch_and_survives_the_disk(tmp_path: Path) -> None:
    model = pruned()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, parity = to_program(model, IMAGES, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 2, 9):
        images = torch.randn(size, 3, 16, 16)
        assert torch.allclose(again(images), model(images), atol=1e-6)
    assert (parity.batches, parity.max_error < 1e-6) == ((2, 5), True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_onnx_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the export extra")
    model = pruned()
    parity = to_onnx(model, IMAGES, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape[1:] == [3, 16, 16]
    assert isinstance(entry.shape[0], str)
    images = torch.randn(7, 3, 16, 16)
    (logits,) = session.run(None, {entry.name: images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), model(images), atol=1e-5)
    assert parity.max_error < 1e-5


@pytest.mark.slow
def test_several_inputs_by_name_and_several_outputs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    inputs = {"image": torch.randn(2, 3, 8, 8), "vector": torch.randn(2, 5)}
    assert to_onnx(Two().eval(), inputs, tmp_path / "two.onnx").max_error < 1e-5
    assert to_onnx(Two().eval(), tuple(inputs.values()), tmp_path / "pair.onnx").max_error < 1e-5


def test_plain_weights_and_the_structure_record_rebuild_the_model(tmp_path: Path) -> None:
    model = pruned()
    to_weights(model, IMAGES, tmp_path / "weights.pt", tmp_path / "structure.json")
    record = json.loads((tmp_path / "structure.json").read_text())
    again = TinyNet().eval()
    infoprune.shrink(again, PruningPlan.from_dict(record["plan"]))
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert same(again, model)
    assert record["macs"] == infoprune.trace(model, IMAGES).cost().macs == sum(x["macs"] for x in record["layers"])
    assert {x["name"]: x["filters"] for x in record["layers"]}["conv1"] == model.conv1.out_channels


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("custom", "no operator for infoprune_tests.doubled"),
        pytest.param("svd", "no operator for aten._linalg_svd", marks=pytest.mark.slow),
        ("batch", "fixes its batch size at 2"),
        ("values", r"test_export.py:\d+ \(return x if x.sum\(\) > 0 else -x\)"),
    ],
)
def test_what_an_export_forbids_is_named(kind: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    with pytest.raises(ExportError, match=message):
        to_onnx(Odd(kind).eval(), torch.randn(2, 3, 16, 16), tmp_path / "odd.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_a_way_out(tmp_path: Path) -> None:
    _, parity = to_program(Odd("batch").eval(), torch.randn(2, 3, 16, 16), tmp_path / "odd.pt2", dynamic_batch=False)
    assert parity.batches == (2,)


def test_outputs_that_differ_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="outputs differ"):
        to_onnx(pruned(), IMAGES, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else object())
    message = r"needs onnxruntime, which is not installed: pip install 'infoprune\[export\]'"
    with pytest.raises(ConfigurationError, match=message):
        to_onnx(pruned(), IMAGES, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_packages_too_new_for_an_old_torch_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
    monkeypatch.setattr(onnx, "version", {"onnxscript": "0.5.3", "onnx_ir": "1.1.0"}.__getitem__)
    message = r"torch 2\.6\.0.* with onnx_ir 1\.1\.0: pip install 'onnxscript<0\.5\.4' 'onnx_ir<0\.1\.16', or a newer"
    with pytest.raises(ConfigurationError, match=message):
        to_onnx(pruned(), IMAGES, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class TestCommand:
    def test_writes_every_form_and_says_how_close_they_are(self, shell: Shell) -> None:
        """In int8 too, with the images of a datamodule."""
        pytest.importorskip("onnxruntime", reason="needs the export extra")
        words = ["--model", "tests.test_export.Digits", "--input_shape", "1,1,8,8", "--data", "DigitsDataModule"]
        forms = shell("export", *words, "--images", "64", "--out", "out", "--int8", "--json").json["forms"]
        assert {file.name for file in Path("out").iterdir()} == {
            "model.onnx", "model.int8.onnx", "model.pt2", "weights.pt", "structure.json"
        }  # fmt: skip
        assert set(forms) == {"onnx", "onnx int8", "torch", "weights"}
        assert forms["onnx"]["max_error"] < 1e-5
        assert forms["onnx"]["bytes"] == Path("out/model.onnx").stat().st_size
        int8 = forms["onnx int8"]
        assert int8["files"] == ["model.int8.onnx"]
        assert int8["bytes"] < 0.6 * forms["onnx"]["bytes"]
        assert {0 <= int8[name] <= 1 for name in ("accuracy_before", "accuracy")} == {True}
        assert abs(int8["accuracy"] - int8["accuracy_before"]) < 0.1

    def test_table(self, shell: Shell) -> None:
        ran = shell("export", *NET, *SHAPE, "--out", "out", "--to", "program")
        assert ran.code == 0
        assert "model.pt2" in ran.out
        assert "any batch size" in ran.out

    def test_mistakes(self, shell: Shell, tmp_path: Path) -> None:
        assert "did you mean 'onnx'" in shell.refuses("export", *NET, *SHAPE, "--out", "out", "--to", "onxx")
        odd = ["--model", "tests.test_export.Odd", "--input_shape", "2,3,16,16", "--out", "out", "--to", "program"]
        assert "fixes its batch size" in shell.refuses("export", *odd, "--model.kind", "batch")
        assert list(tmp_path.iterdir()) == []
        assert shell("export", *odd, "--model.kind", "batch", "--static_batch").code == 0


@pytest.mark.parametrize("form", ["openvino", pytest.param("executorch", marks=pytest.mark.slow)])
def test_runtimes_compute_the_same(form: str, tmp_path: Path) -> None:
    pytest.importorskip(form)
    model = pruned()
    if form == "openvino":
        parity = to_openvino(model, IMAGES, tmp_path / "model.xml")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
        assert parity.batches == (2, 5)
    else:
        parity = to_executorch(model, IMAGES, tmp_path / "model.pte")
        assert [path.name for path in tmp_path.iterdir()] == ["model.pte"]
    assert parity.max_error < 1e-3


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_comes_close_with_images_out_of_pairs_and_mappings(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if runtime == "onnxruntime" else "nncf")
    model = TinyNet().eval()
    images = torch.randn(8, 3, 32, 32)
    labelled, named = (images[:4], torch.zeros(4)), {"id": torch.arange(4), "image": images[4:]}
    path = tmp_path / ("model.onnx" if runtime == "onnxruntime" else "model.xml")
    quantized = to_int8(model, images, path, [labelled, named], runtime)
    expected = model(images)
    assert 0 < (quantized(images) - expected).norm() / expected.norm() < 0.2
    assert path.exists()
    with pytest.raises(DataError, match="int8: the calibration data holds no image"):
        to_int8(nn.Conv2d(3, 4, 3).eval(), images, tmp_path / f"other{path.suffix}", [], runtime)
    assert not (tmp_path / f"other{path.suffix}").exists()


def test_int8_needs_images_and_a_runtime(shell: Shell) -> None:
    ran = shell("export", *NET, *SHAPE, "--out", "out", "--to", "onnx", "--int8")
    assert "choose them with --data" in ran.err[0]
    ran = shell("export", *NET, *SHAPE, "--out", "out", "--to", "torch", "--int8", "--data", "DigitsDataModule")
    assert "--int8 is for onnx and openvino" in ran.err[0]
    assert not Path("out").exists()


def test_int8_of_images_in_bytes_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="the images are bytes"):
        to_int8(nn.Conv2d(3, 4, 3).eval(), images[:1].float(), tmp_path / "bytes.onnx", [images])
    assert list(tmp_path.iterdir()) == []


class Named(nn.Module):
    """A pooled image beside a vector; a number scales the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)

    def forward(self, image: Tensor, vector: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        pooled = self.conv(image).mean((2, 3))
        return {"sum": pooled + scale * self.linear(vector), "pooled": pooled}


@pytest.mark.slow
def test_int8_in_openvino_computes_nearly_the_same_at_any_batch_size(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    net = CifarResNet(8).eval()  # its shortcuts put zeros beside channels
    images = torch.randn(24, 3, 16, 16)
    run = to_int8(net, images[:1], tmp_path / "net.xml", [images], "openvino")
    for size in (1, 7, 24):
        with torch.no_grad():
            expected = net(images[:size])
            assert (run(images[:size]) - expected).norm() < 0.2 * expected.norm()
    assert (tmp_path / "net.xml").exists()
    assert (tmp_path / "net.bin").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [True, False])
def test_openvino_takes_several_inputs_and_numbers(by_name: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    named = {"vector": torch.randn(2, 5), "image": torch.randn(2, 3, 8, 8), "scale": 2.0}
    inputs = named if by_name else (named["image"], named["vector"], named["scale"])
    assert to_openvino(Named().eval(), inputs, tmp_path / "model.xml").max_error < 1e-5


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([1.0, float("nan")], [1.0, float("nan")], 0.0),
        ([1.0, float("inf")], [1.0, float("inf")], 0.0),
        ([1.0, float("nan")], [1.0, 2.0], float("inf")),
        ([1.0, 2.0], [1.0, float("nan")], float("inf")),
        ([1.0, -float("inf")], [1.0, float("inf")], float("inf")),
        ([1.0, 2.0, float("inf")], [1.0, 1.5, float("inf")], 0.25),
        ([1.0, 2.0], [1.0], float("inf")),
        ([True, False], [True, True], 1.0),
    ],
)
def test_outputs_that_are_not_finite_have_to_be_the_same(
    expected: list[float], actual: list[float], difference: float
) -> None:
    assert parity._difference(torch.tensor(expected), torch.tensor(actual)) == difference


def test_another_number_of_outputs_is_refused() -> None:
    net = nn.Conv2d(3, 4, 3).eval()
    with pytest.raises(ExportError, match="the file has 2 outputs, the model 1"):
        compared(net, lambda given: (net(given), net(given)), IMAGES, False, "file")


def test_where_nothing_can_be_written_is_said_before_the_export(tmp_path: Path) -> None:
    (tmp_path / "taken.xml").mkdir()
    (tmp_path / "half.bin").mkdir()
    net = nn.Conv2d(3, 4, 3).eval()
    for write, name, message in (
        (to_program, "taken.xml", "is a folder: name a file in it"),
        (to_program, "none/model.pt2", "none is no folder"),
        (to_openvino, "half.xml", "half.bin is a folder"),
        (to_openvino, "model", "ends in .xml"),
        (to_onnx, "none/model.onnx", "none is no folder"),
    ):
        if write is to_openvino:
            pytest.importorskip("openvino")
        with pytest.raises(ConfigurationError, match=message):
            write(net, IMAGES, tmp_path / name)
    with pytest.raises(ConfigurationError, match="none is no folder"):
        to_weights(net, IMAGES, tmp_path / "weights.pt", tmp_path / "none" / "structure.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.bin", "taken.xml"]


def test_a_model_in_bfloat16_is_refused_by_runtimes_without_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net, images = nn.Conv2d(3, 4, 3).bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    with pytest.raises(ExportError, match=r"takes no bfloat16: use model\.float\(\)\): .*Conv"):
        to_onnx(net, images, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match="bfloat16"):
        infoprune.latency(net, images, repeats=1, backend="onnxruntime")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which nobody, root included, can write")
def test_a_folder_that_takes_no_file_is_said(tmp_path: Path) -> None:
    net, images = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    refused = (ExportError, ConfigurationError)
    with pytest.raises(refused, match=r"/proc/self/fdinfo/net.pt2 cannot be written: "):
        to_program(net, images, "/proc/self/fdinfo/net.pt2")
    with pytest.raises(refused, match=r"/proc/self/fdinfo/w.pt cannot be written: "):
        to_weights(net, images, "/proc/self/fdinfo/w.pt", tmp_path / "s.json")
    with pytest.raises(refused, match=r"/proc/self/fdinfo/s.json cannot be written: "):
        to_weights(net, images, tmp_path / "w.pt", "/proc/self/fdinfo/s.json")
    assert not list(tmp_path.iterdir())


class Wrapped(nn.Module):
    """Hands on whatever it gets (nn.DataParallel, AveragedModel)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


def test_a_forward_of_any_arguments_takes_any_batch() -> None:
    program, parity = to_program(Wrapped(nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 8, 8))
    assert parity.batches == (2, 5)
    assert program.module()(torch.randn(7, 3, 8, 8)).shape == (7, 4, 6, 6)
