"""``infoprune export``: write a model for other runtimes, and check that the outputs are the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infoprune.commands.named_data import NamedData, add_data_arguments, open_data
from infoprune.commands.named_model import NamedModel, add_model_arguments, open_model
from infoprune.commands.parser import add_json_argument, check_folder, make_parser, parse, show
from infoprune.errors import ConfigurationError, ExportError, nearest
from infoprune.report.text import count, percent

WHAT = """\
Write a model in forms that do not need infoprune, in eval mode and for any batch size, and compare the outputs of each
with those of the model:
  onnx        model.onnx, run in onnxruntime for the comparison (needs pip install 'infoprune[export]')
  openvino    model.xml and model.bin (needs pip install 'infoprune[openvino]')
  executorch  model.pte with XNNPACK, for the batch size of --input_shape (needs pip install 'infoprune[executorch]')
  torch       model.pt2, for torch.export.load and AOTInductor
  weights     weights.pt, a plain state dict, and structure.json, with the shape of every layer and the plan"""

EXAMPLES = """\
  infoprune export --model pruned --out exported
  infoprune export --model runs/quickstart/version_0 --out exported --to torch weights
  infoprune export --model torchvision.models.mobilenet_v2 --input_shape 1,3,224,224 --out exported --json
  infoprune export --model pruned --out exported --to onnx openvino --int8 --data CIFAR10DataModule --data.root data"""

FORMS = ("onnx", "openvino", "executorch", "torch", "weights")
DEFAULT = ["onnx", "torch", "weights"]
QUANTIZED = {"onnx": "onnxruntime", "openvino": "openvino"}


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("export", WHAT, EXAMPLES)
    add_model_arguments(parser, words)
    parser.add_argument("--out", type=str, required=True, help="the folder to write into")
    parser.add_argument("--to", nargs="+", default=DEFAULT, help=f"which forms to write: {', '.join(FORMS)}")
    parser.add_argument(
        "--static_batch",
        action="store_true",
        help="fix the batch size at that of --input_shape, for models that need it",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write the onnx and openvino forms in int8, by images of --data, and measure the accuracy of both",
    )
    add_data_arguments(parser, words)
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parser = make(words)
    options = parse(parser, words)
    forms = [{"program": "torch"}.get(form, form) for form in options.to]  # its name before
    for form in forms:
        if form not in FORMS:
            raise ConfigurationError(
                f"--to {form}: no such form{nearest(form, FORMS)} (choose from {', '.join(FORMS)})"
            )
    if options.int8 and options.data is None:
        raise ConfigurationError("--int8 needs images for the ranges of activations: choose them with --data")
    if options.int8 and not set(forms) & set(QUANTIZED):
        raise ConfigurationError(f"--int8 is for {' and '.join(QUANTIZED)}: add one of them to --to")
    check_folder("--out", Path(options.out))
    for form in forms:
        _check(form)
    named = open_model(parser, options)
    data = open_data(parser, options)
    out, dynamic = Path(options.out), not options.static_batch
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    try:
        for form in forms:
            done[form] = _write(form, named, out, dynamic)
        if options.int8 and data is not None:
            from infoprune.evaluate import accuracy

            before = accuracy(named.network, data.test())
            for form in (form for form in forms if form in QUANTIZED):
                done[f"{form} int8"] = _write_int8(form, named, out, data, before)
    except ExportError:
        with suppress(OSError):  # it stays where it holds something
            out.rmdir()
        raise
    for form in done.values():
        form["bytes"] = sum((out / name).stat().st_size for name in form["files"])
    facts = {"model": named.describes, "out": str(out), "dynamic_batch": dynamic, "forms": done}
    show("export", facts, options.json, lambda console: _print(console, facts))


def _check(form: str) -> None:
    """Raise a ConfigurationError where a form needs what is not installed."""
    from infoprune.backends import BACKENDS, get_backend
    from infoprune.export import check_onnx

    if form == "onnx":
        check_onnx()
    elif form in BACKENDS.names:
        get_backend(form)


def _write(form: str, named: NamedModel, out: Path, dynamic: bool) -> dict[str, Any]:
    from infoprune.deploy import to_executorch, to_openvino
    from infoprune.export import to_onnx, to_program, to_weights

    model, inputs = named.network, named.inputs
    if form == "onnx":
        return {"files": ["model.onnx"], **asdict(to_onnx(model, inputs, out / "model.onnx", dynamic))}
    if form == "openvino":
        return {"files": ["model.xml", "model.bin"], **asdict(to_openvino(model, inputs, out / "model.xml", dynamic))}
    if form == "executorch":
        return {"files": ["model.pte"], **asdict(to_executorch(model, inputs, out / "model.pte"))}
    if form == "torch":
        return {"files": ["model.pt2"], **asdict(to_program(model, inputs, out / "model.pt2", dynamic)[1])}
    to_weights(model, inputs, out / "weights.pt", out / "structure.json")
    return {"files": ["weights.pt", "structure.json"], "max_error": 0.0, "batches": []}


def _write_int8(form: str, named: NamedModel, out: Path, data: NamedData, before: dict[str, float]) -> dict[str, Any]:
    from infoprune.deploy import to_int8
    from infoprune.evaluate import accuracy

    files = ["model.int8.onnx"] if form == "onnx" else ["model.int8.xml", "model.int8.bin"]
    quantized = to_int8(named.network, named.inputs, out / files[0], data.training(), QUANTIZED[form])
    figures = {"accuracy_before": before["accuracy"], "accuracy": accuracy(quantized, data.test())["accuracy"]}
    return {"files": files, "max_error": 0.0, "batches": [], **figures}


def _print(console: Console, data: dict[str, Any]) -> None:
    table = Table(title="Exported", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("form", "files", "size", "outputs differ by", "tried with batches of"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for form, facts in data["forms"].items():
        table.add_row(
            form,
            ", ".join(facts["files"]),
            f"{count(facts['bytes'])}B",
            f"{facts['max_error']:.1e} of the largest" if facts["batches"] else "",
            ", ".join(map(str, facts["batches"])),
        )
    console.print(table)
    for form, facts in data["forms"].items():
        if "accuracy" in facts:
            change = f"{percent(facts['accuracy_before'], 2)} in float32, {percent(facts['accuracy'], 2)} in int8"
            console.print(Text(f"{form}: accuracy {change}"), soft_wrap=True)
    size = "any" if data["dynamic_batch"] else "only the given"
    console.print(Text(f"{data['model']['class']} for {size} batch size, in {data['out']}"), soft_wrap=True)
