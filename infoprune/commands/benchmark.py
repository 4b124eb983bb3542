"""``infoprune benchmark``: time a pruned model against the unpruned and a uniformly narrowed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

import infoprune
from infoprune.commands.cutting import add_criterion_argument, add_cut_arguments, asks_for_a_cut, cut
from infoprune.commands.known_names import BACKENDS
from infoprune.commands.named_data import add_data_arguments, open_data
from infoprune.commands.named_model import NamedModel, add_model_arguments, open_model
from infoprune.commands.parser import add_json_argument, make_parser, parse, show
from infoprune.cost import Cost
from infoprune.errors import ConfigurationError
from infoprune.report.text import count, percent, seconds

if TYPE_CHECKING:
    import torch
    from torch import nn

    from infoprune.speed import Speed

WHAT = """\
Measure latency, throughput and memory of three models: the unpruned one (original), the pruned one, and one with the
same MACs in which every layer keeps the same share (uniform), to show the effect of the widths on speed. The three are
timed in turns, so that other load affects all equally. Prints medians with the interquartile range (±), and the
speed-up with its 95 % interval. With --backend also in ONNX Runtime, OpenVINO, ExecuTorch or compiled.

The pruned model is that of a run folder, or is made by --macs, --params or --filters."""

EXAMPLES = """\
  infoprune benchmark --model runs/quickstart/version_0 --batch 1 32
  infoprune benchmark --model torchvision.models.resnet50 --input_shape 1,3,224,224 --macs 0.5 --round_to 8
  infoprune benchmark --model pruned --device cuda --batch 64 --json
  infoprune benchmark --model pruned --backend eager,onnxruntime,openvino --threads 1"""


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("benchmark", WHAT, EXAMPLES)
    add_model_arguments(parser, words)
    add_criterion_argument(parser)
    add_cut_arguments(parser)
    add_data_arguments(parser, words)
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="batch sizes")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--threads", type=int | None, help="CPU threads; PyTorch's own choice if not given")
    parser.add_argument(
        "--backend",
        type=str,
        default="eager",
        help=f"where to run them, separated by commas: {', '.join(BACKENDS)}",
    )
    parser.add_argument("--warmup", type=int, default=3, help="passes of each model that are not counted")
    parser.add_argument("--repeats", type=int, default=20, help="rounds in which each model is timed once")
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parser = make(words)
    options = parse(parser, words)
    import torch

    from infoprune.backends import get_backend
    from infoprune.report.environment import device_name

    device = _device(options.device)
    for option in ("batch", "repeats"):
        values = options[option] if isinstance(options[option], list) else [options[option]]
        if min(values) < 1:
            raise ConfigurationError(f"--{option} {min(values)} must be at least 1")
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigurationError(f"--threads {options.threads} must be at least 1")
        torch.set_num_threads(options.threads)
    backends = {name: get_backend(name) for name in options.backend.split(",")}
    if device.type != "cpu" and set(backends) - {"eager", "compile"}:
        raise ConfigurationError(f"--backend {options.backend}: all but eager and compile run on the cpu")
    named = open_model(parser, options)
    models = _models(named, parser, options)
    costs = {name: infoprune.trace(model, named.inputs).cost() for name, model in models.items()}
    rows = [
        row
        for backend in backends
        for size in options.batch
        for row in _rows(models, costs, named, size, device, options, backend)
    ]
    data = {"model": named.describes, "device": device_name(device), "threads": torch.get_num_threads(), "rows": rows}
    show("benchmark", data, options.json, lambda console: _print(console, data))


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"--device {name}: no such device; give cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"--device {name}: only cpu and cuda are measured")
    return device


def _models(named: NamedModel, parser: ArgumentParser, options: Namespace) -> dict[str, nn.Module]:
    """Build the models to measure; their weights make no difference to their speed."""
    from infoprune.speed import uniformly_narrowed

    original = named.architecture()
    if asks_for_a_cut(options):
        cut(named, options, open_data(parser, options))
    if infoprune.plan_of(named.network).is_empty:
        return {"original": original}
    whole, left = (infoprune.trace(model, named.inputs).cost().macs for model in (original, named.network))
    models = {"original": original, "pruned": named.network}
    return {**models, "uniform": uniformly_narrowed(original, named.inputs, left / whole)} if left < whole else models


def _rows(
    models: dict[str, nn.Module],
    costs: dict[str, Cost],
    named: NamedModel,
    size: int,
    device: torch.device,
    options: Namespace,
    backend: str,
) -> list[dict[str, Any]]:
    import torch
    from torch.utils._pytree import tree_map_only

    from infoprune.shapes import with_batch
    from infoprune.speed import side_by_side

    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), with_batch(named.inputs, size))
    for model in models.values():
        model.to(device)
    speeds = side_by_side(models, inputs, options.repeats, options.warmup, backend=backend)
    return [{"backend": backend, **_row(name, costs, speeds)} for name in models]


def _row(name: str, costs: dict[str, Cost], speeds: dict[str, Speed]) -> dict[str, Any]:
    speed, first = speeds[name], speeds["original"]
    low, high = speed.interval(first)
    return {
        "model": name,
        "batch": speed.batch,
        "macs": costs[name].macs,
        "params": costs[name].params,
        "median_s": speed.median,
        "spread_s": speed.spread,
        "throughput": speed.throughput,
        "speedup": speed.times_as_fast_as(first),
        "speedup_low": low,
        "speedup_high": high,
        "ideal_speedup": costs["original"].macs / max(costs[name].macs, 1),
        "weight_bytes": speed.weight_bytes,
        "peak_bytes": speed.peak_bytes,
    }


def _print(console: Console, data: dict[str, Any]) -> None:
    """Print speed and size as two tables for each backend, so that both fit a terminal of 80 columns."""
    where = f"{data['model']['class']} on {data['device']}, {data['threads']} thread{'s' * (data['threads'] > 1)}"
    for backend in dict.fromkeys(row["backend"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["backend"] == backend]
        table = _table(f"{where}, {backend}", "batch", "latency", "±", "speed-up", "95 %", "ideal")
        for row in rows:
            table.add_row(
                row["model"],
                str(row["batch"]),
                seconds(row["median_s"]),
                percent(row["spread_s"] / row["median_s"], 0),
                f"{row['speedup']:.2f} ×",
                f"{row['speedup_low']:.2f} to {row['speedup_high']:.2f}",
                f"{row['ideal_speedup']:.2f} ×",
            )
        console.print(table)
        for line in _verdicts(rows):
            console.print(Text(line, style="yellow"), soft_wrap=True)
    table = _table("", "batch", "MACs", "a second", "weights", "activations")
    for row in data["rows"]:
        if row["backend"] == data["rows"][0]["backend"]:
            table.add_row(
                row["model"],
                str(row["batch"]),
                count(row["macs"]),
                count(row["throughput"]),
                f"{count(row['weight_bytes'])}B",
                f"{count(row['peak_bytes'])}B",
            )
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Name the cuts that bring no speed-up, and those for which the runs are inconclusive."""
    lines = []
    for row in rows:
        if row["model"] != "pruned" or row["ideal_speedup"] <= 1.1:
            continue
        if row["speedup_low"] <= 1.0 < row["speedup_high"] and row["speedup"] > 1.02:
            lines.append(f"Batch {row['batch']}: the runs scatter too much to tell a speed-up; try more --repeats.")
        elif row["speedup"] <= 1.02:
            lines.append(
                f"Batch {row['batch']}: this cut brings no speed-up here, {row['speedup']:.2f} times the speed for "
                f"{row['ideal_speedup']:.1f} times fewer MACs; try --round_to 16, larger batches or another device."
            )
    return lines
