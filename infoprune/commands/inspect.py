"""``infoprune inspect``: show coupled channels, frozen groups with reasons, and the cost of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

import infoprune
from infoprune.commands.named_data import NamedData, add_data_arguments, open_data
from infoprune.commands.named_model import NamedModel, add_model_arguments, open_model
from infoprune.commands.parser import add_json_argument, make_parser, parse, show
from infoprune.report.coupling import shortened
from infoprune.report.text import count, group_name, percent

if TYPE_CHECKING:
    from infoprune.allocation import Allocation
    from infoprune.decide import Target
    from infoprune.structure import Structure

WHAT = """\
Show a model's channel groups (filters that are removed together), its frozen groups with reasons, and the cost of each
layer; with --budget, the width of every group at several budgets. Nothing is changed and nothing is
written."""

EXAMPLES = """\
  infoprune inspect --model torchvision.models.resnet18 --input_shape 1,3,224,224
  infoprune inspect --model CifarResNet --model.depth 56 --weights resnet56.pt --input_shape 1,3,32,32 --sensitivity
  infoprune inspect --model CifarResNet --model.depth 56 --weights resnet56.pt --input_shape 1,3,32,32 \\
      --data CIFAR10DataModule --data.root data --budget 0.7 0.5 0.3
  infoprune inspect --model runs/quickstart/version_0 --explain layer2.0.conv1
  infoprune inspect --model my_package.Net --input_shape 1,3,64,64 --json | jq '.groups[] | select(.reason)'"""


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("inspect", WHAT, EXAMPLES)
    add_model_arguments(parser, words)
    parser.add_argument("--frozen", nargs="+", default=[], help="patterns of layers whose filters shall all stay")
    parser.add_argument("--explain", type=str | None, help="a group, layer or tensor: why its channels are coupled")
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="cut a quarter, half and three quarters of each group alone and measure the model: its accuracy on the "
        "training images of --data, else the change of its outputs on random inputs",
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        type=float | str,
        default=[],
        help="MACs to keep, shares or numbers (0.5, 60e6): shows widths, and the information lost if --data is given",
    )
    parser.add_argument("--curves", type=str | None, help="loss curves to reuse; the file is written if it is missing")
    parser.add_argument(
        "--criterion", type=str | dict, default="l1", help="which filters --sensitivity and --budget remove first"
    )
    add_data_arguments(parser, words)
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parser = make(words)
    options = parse(parser, words)
    named = open_model(parser, options)
    structure = infoprune.trace(named.network, named.inputs, options.frozen)
    from infoprune.decide import Target

    targets = [Target(macs=budget) for budget in options.budget]
    images = open_data(parser, options)
    figures = _sensitivity(named, structure, options.criterion, images, options.sensitivity)
    data = describe(named, structure, figures)
    if targets:
        data["front"] = _front(named, structure, options.criterion, images, targets, options.curves)
    if options.explain is not None:
        data["explanation"] = shortened(structure.explain(options.explain), most=1000)
    show("inspect", data, options.json, lambda console: _print(console, data))


def describe(named: NamedModel, structure: Structure, figures: dict[str, dict[float, float]]) -> dict[str, Any]:
    """Return the output of the command, as primitives.

    Args:
        named: The model and its example inputs.
        structure: Its channel groups.
        figures: Group name -> share that is cut -> what was measured, of ``--sensitivity``.
    """
    from infoprune.report.collect import layer_rows
    from infoprune.structure import PruningPlan

    cost = structure.cost()
    layers = [
        {
            "name": row.name,
            "group": row.group,
            "kind": row.kind,
            "filters": row.channels_before,
            "params": row.params_before,
            "macs": row.macs_before,
        }
        for row in layer_rows(structure, PruningPlan())
    ]
    groups = [
        {
            "name": group.name,
            "units": group.size,
            "prunable": not group.frozen,
            "reason": group.reason,
            "layers": [layer.name for layer, _ in structure.producers(group)],
            "tensors": len({slot.tensor for slot in group.slots}),
            "macs_if_halved": structure.cost({group.name: max(1, group.size // 2)}).macs if not group.frozen else None,
            "sensitivity": {str(amount): value for amount, value in figures.get(group.name, {}).items()},
        }
        for group in structure.groups
    ]
    return {
        "model": named.describes,
        "macs": cost.macs,
        "params": cost.params,
        "groups": groups,
        "layers": layers,
    }


def _sensitivity(
    named: NamedModel, structure: Structure, criterion: Any, data: NamedData | None, wanted: bool
) -> dict[str, dict[float, float]]:
    if not wanted:
        return {}
    from infoprune.criteria import get_criterion
    from infoprune.evaluate import accuracy, output_change
    from infoprune.sensitivity import sensitivity

    images = data.training() if data else None
    scores = get_criterion(criterion)(named.network, structure, images)
    evaluate = (lambda model: accuracy(model, images)) if images else output_change(named.network, named.inputs)
    return sensitivity(named.network, structure, scores, evaluate)


def _front(
    named: NamedModel,
    structure: Structure,
    criterion: Any,
    data: NamedData | None,
    targets: Sequence[Target],
    kept: str | None,
) -> list[dict[str, Any]]:
    """Return the accuracy of the model at each budget, from one measurement."""
    from infoprune.allocation import CoupledLast, InformationLoss, LossCurves
    from infoprune.criteria import get_criterion
    from infoprune.network_batches import NetworkBatches

    images = NetworkBatches(data.training(), named.inputs) if data else None
    scores = get_criterion(criterion)(named.network, structure, images)
    chosen: Allocation = CoupledLast()
    if kept is not None and Path(kept).exists():
        chosen = InformationLoss(curves=kept)
    elif images is not None:
        chosen = InformationLoss().prepared(named.network, structure, images, scores=scores)
    curves = getattr(chosen, "curves", None)
    if kept is not None and isinstance(curves, LossCurves):
        curves.save(kept)
    rows = []
    for target in targets:
        budget = target.relative_to(structure.cost()).budget
        widths = chosen.widths(structure, scores, budget, round_to=target.round_to)
        macs, params = structure.cost(widths).ratio(structure.cost())
        loss = curves.estimate(widths) if isinstance(curves, LossCurves) else None
        unit = curves.unit if isinstance(curves, LossCurves) else None
        rows.append({"keep": budget.keep if budget else 1.0, "macs": macs, "params": params, "loss": loss, "unit": unit,
                     "widths": widths})  # fmt: skip
    return rows


def _front_table(data: dict[str, Any]) -> Table:
    rows = data["front"]
    unit = rows[0]["unit"]
    table = _table("Budgets" + (f": expected loss as {unit}" if unit else " (by rule: give --data to measure)"))
    table.add_column("group", overflow="fold")
    for row in rows:
        table.add_column(percent(row["keep"], 0), justify="right", no_wrap=True)
    table.add_row("MACs left", *(percent(row["macs"]) for row in rows), style="bold")
    table.add_row("parameters left", *(percent(row["params"]) for row in rows), style="bold")
    if unit:
        table.add_row("expected loss", *(f"{row['loss']:.3f}" for row in rows), style="bold")
    for group in data["groups"]:
        if group["prunable"]:
            kept = (row["widths"].get(group["name"], group["units"]) for row in rows)
            table.add_row(Text(group_name(group["name"])), *(f"{width} of {group['units']}" for width in kept))
    return table


def _print(console: Console, data: dict[str, Any]) -> None:
    model = data["model"]
    console.print(_groups(data))
    console.print(_layers(data))
    prunable = sum(group["prunable"] for group in data["groups"])
    console.print(
        Text(
            f"{model['class']} on {model['input_shape']}: {count(data['macs'])} MACs, {count(data['params'])} "
            f"parameters, {prunable} prunable and {len(data['groups']) - prunable} frozen groups."
        )
    )
    if "front" in data:
        console.print(_front_table(data))
    if "explanation" in data:
        console.print(Text(data["explanation"]), soft_wrap=True)


def _groups(data: dict[str, Any]) -> Table:
    table = _table("Channel groups")
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("made by", overflow="fold")
    amounts = next((list(group["sensitivity"]) for group in data["groups"] if group["sensitivity"]), [])
    for amount in amounts:
        table.add_column(f"−{percent(float(amount), 0)}", justify="right", no_wrap=True)
    table.add_column("half of it saves", justify="right")
    table.add_column("frozen because one of its channels", overflow="fold")
    for group in data["groups"]:
        saves = 1 - group["macs_if_halved"] / data["macs"] if group["prunable"] and data["macs"] else None
        table.add_row(
            Text(group_name(group["name"])),
            str(group["units"]),
            Text(_few(group["layers"])),
            *(f"{group['sensitivity'][amount]:.3f}" if group["sensitivity"] else "" for amount in amounts),
            "" if saves is None else percent(saves),
            Text(group["reason"] or ""),
            style=None if group["prunable"] else "dim",
        )
    return table


def _layers(data: dict[str, Any]) -> Table:
    table = _table("Cost by layer")
    table.add_column("layer", overflow="fold")
    for column in ("kind", "filters", "parameters", "MACs", "of all"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in data["layers"]:
        share = percent(layer["macs"] / data["macs"]) if data["macs"] else ""
        cells = (layer["kind"], str(layer["filters"]), count(layer["params"]), count(layer["macs"]), share)
        table.add_row(Text(layer["name"]), *cells)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
