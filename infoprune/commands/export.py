"""``infoprune export``: take a model out of the framework, and check that it still computes the same."""

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

from infoprune.commands.named_model import add_model_arguments, open_model
from infoprune.commands.parser import add_json_argument, make_parser, parse, show
from infoprune.errors import ConfigurationError, ExportError, nearest
from infoprune.report.text import count

WHAT = """\
Write a model in forms that need no infoprune, in eval mode and for any batch size, and compare the outputs of each with
the model's own:
  onnx      model.onnx, run in onnxruntime for the comparison (needs pip install 'infoprune[export]')
  program   model.pt2, for torch.export.load, AOTInductor and ExecuTorch
  weights   weights.pt, a plain state dict, and structure.json, which tells the shape of every layer and the plan"""

EXAMPLES = """\
  infoprune export --model pruned --out exported
  infoprune export --model runs/quickstart/version_0 --out exported --to program weights
  infoprune export --model torchvision.models.mobilenet_v2 --input_shape 1,3,224,224 --out exported --json"""

FORMS = ("onnx", "program", "weights")


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("export", WHAT, EXAMPLES)
    add_model_arguments(parser, words)
    parser.add_argument("--out", type=str, required=True, help="the folder to write into")
    parser.add_argument("--to", nargs="+", default=list(FORMS), help="which forms to write")
    parser.add_argument(
        "--static_batch",
        action="store_true",
        help="fix the batch size at that of --input_shape, for models that need it",
    )
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parser = make(words)
    options = parse(parser, words)
    for form in options.to:
        if form not in FORMS:
            raise ConfigurationError(
                f"--to {form}: no such form{nearest(form, FORMS)} (choose from {', '.join(FORMS)})"
            )
    # Importing the exporters takes long; mistakes on the command line are told before.
    from infoprune.export import check_onnx, to_onnx, to_program, to_weights

    if "onnx" in options.to:
        check_onnx()
    named = open_model(parser, options)
    out, dynamic = Path(options.out), not options.static_batch
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    try:
        if "onnx" in options.to:
            parity = to_onnx(named.network, named.inputs, out / "model.onnx", dynamic)
            done["onnx"] = {"files": ["model.onnx"], **asdict(parity)}
        if "program" in options.to:
            _, parity = to_program(named.network, named.inputs, out / "model.pt2", dynamic)
            done["program"] = {"files": ["model.pt2"], **asdict(parity)}
        if "weights" in options.to:
            to_weights(named.network, named.inputs, out / "weights.pt", out / "structure.json")
            done["weights"] = {"files": ["weights.pt", "structure.json"], "max_error": 0.0, "batches": []}
    except ExportError:
        with suppress(OSError):  # it stays where it holds something
            out.rmdir()
        raise
    for form in done.values():
        form["bytes"] = sum((out / name).stat().st_size for name in form["files"])
    data = {"model": named.describes, "out": str(out), "dynamic_batch": dynamic, "forms": done}
    show("export", data, options.json, lambda console: _print(console, data))


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
    size = "any" if data["dynamic_batch"] else "only the given"
    console.print(Text(f"{data['model']['class']} for {size} batch size, in {data['out']}"), soft_wrap=True)
