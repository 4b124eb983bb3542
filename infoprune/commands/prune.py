"""``infoprune prune``: cut a model in one go, without training, and leave a run folder."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

import infoprune
from infoprune.commands.cutting import (
    add_backend_argument,
    add_criterion_argument,
    add_cut_arguments,
    cut,
    cut_options,
)
from infoprune.commands.named_data import NamedData, add_data_arguments, open_data
from infoprune.commands.named_model import NamedModel, add_model_arguments, open_model
from infoprune.commands.parser import add_json_argument, check_folder, make_parser, parse, show
from infoprune.errors import ConfigurationError
from infoprune.report import RunRecord, Totals, print_tables
from infoprune.report.text import speed_remarks

if TYPE_CHECKING:
    from torch import nn

    from infoprune.api import PruneResult

WHAT = """\
Prune a model in one step, without training, and write a run folder: the pruned weights (pruned.pt), the plan
(plan.json), a report (report.html) and the same as data (record.json), and the model's configuration (config.yaml).
Other commands accept the folder as --model. A cut costs accuracy: fine-tune afterwards, or prune inside a fit
(infoprune fit)."""

EXAMPLES = """\
  infoprune prune --model torchvision.models.resnet18 --input_shape 1,3,224,224 --macs 0.5 --out pruned
  infoprune prune --model CifarResNet --model.depth 56 --weights resnet56.pt --input_shape 1,3,32,32 --macs 0.5 \\
      --data CIFAR10DataModule --data.root data --reconstruct --out pruned
  infoprune prune --model runs/quickstart/version_0 --criterion l1 --filters 0.8 --out smaller
  infoprune prune --model runs/quickstart/version_0 --max_drop 0.5 --data DigitsDataModule --out smaller
then fine-tune the pruned model:
  infoprune fit --config my.yaml --model.init_args.init_from pruned/pruned.pt"""

FILES = ("pruned.pt", "plan.json", "record.json", "report.html", "config.yaml")


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("prune", WHAT, EXAMPLES)
    add_model_arguments(parser, words)
    add_criterion_argument(parser)
    add_cut_arguments(parser)
    add_backend_argument(parser)
    parser.add_argument(
        "--max_drop",
        type=float | None,
        help="instead of a budget: as few multiply-accumulates as possible with at most this drop of accuracy, in "
        "percentage points, on validation images of --data, with batch norm measured again",
    )
    add_data_arguments(parser, words)
    parser.add_argument(
        "--recalibrate", action="store_true", help="measure batch norm's statistics again on training images of --data"
    )
    parser.add_argument(
        "--reconstruct",
        action="store_true",
        help="fit the layers that read removed channels to their former outputs, by least squares on training images "
        "of --data, and measure batch norm's statistics again",
    )
    parser.add_argument("--out", type=str, required=True, help="the folder to write; it must not exist yet")
    parser.add_argument("--latency_repeats", type=int, default=20, help="timed passes of each model; 0 leaves them out")
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parser = make(words)
    options = parse(parser, words)
    out = Path(options.out)
    if out.exists():
        raise ConfigurationError(f"--out {out} exists already: name another folder, or remove it")
    check_folder("--out", out)
    for option in ("recalibrate", "reconstruct", "max_drop"):
        if options[option] and options.data is None:
            raise ConfigurationError(f"--{option} needs images: choose them with --data")
    from infoprune.structure.tensors import copied  # after the parser: its help does not wait for PyTorch

    named = open_model(parser, options)
    data = open_data(parser, options)
    original = copied(named.network)
    result = cut(named, options, data)
    if data is not None:
        _renew(named, original, result, options, data)
    record = _record(named, original, result, options, data, ["infoprune", "prune", *words])
    _write(out, named, record)
    facts = {"out": str(out), "record": record.to_dict()} | _drop_facts(result, options)
    show("prune", facts, options.json, lambda console: _print(console, record, out, result, options))


def _renew(named: NamedModel, original: nn.Module, result: PruneResult, options: Namespace, data: NamedData) -> None:
    """Fit the layers behind the cut and recalibrate batch norm, as the options say."""
    from infoprune.network_batches import NetworkBatches
    from infoprune.recalibration import tracked_norms

    batches = NetworkBatches(data.training(augment=True), named.inputs)
    if options.reconstruct and not result.plan.is_empty:
        infoprune.reconstruct(named.network, original, batches, plan=result.plan)
    if options.recalibrate or (options.reconstruct and tracked_norms(named.network)):
        infoprune.recalibrate(named.network, batches)


def _record(
    named: NamedModel, original: nn.Module, result: PruneResult, options: Namespace, data: NamedData | None,
    command: list[str],
) -> RunRecord:  # fmt: skip
    import torch

    from infoprune.criteria import get_criterion
    from infoprune.report.collect import event_record
    from infoprune.report.environment import device_name, versions
    from infoprune.structure.explain import explain_group

    structure = result.structure
    criterion = get_criterion(options.criterion).short_name
    event = event_record(0, -1, 0, criterion, structure, result.plan, result.scores, curves=result.curves)
    before, after = _totals(named, original, result, options.latency_repeats, data)
    return RunRecord(
        model=named.name,
        criterion=criterion,
        before=before,
        after=after,
        layers=event.layers,
        events=[event],
        options=cut_options(options) | {name: True for name in ("recalibrate", "reconstruct") if options[name]},
        frozen={group.name: group.reason for group in structure.groups if group.reason is not None},
        coupling={group.name: explain_group(structure, group) for group in structure.prunable},
        metric="accuracy" if data else None,
        warnings=speed_remarks(before, after),
        versions=versions(),
        device=device_name(torch.device("cpu")),
        command=shlex.join(command),
        config=_config(named),
        network=named.module,
        inputs=named.shape,
        files={name.partition(".")[0]: name for name in FILES} | {"pruned model": "pruned.pt"},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _totals(
    named: NamedModel, original: nn.Module, result: PruneResult, repeats: int, data: NamedData | None
) -> tuple[Totals, Totals]:
    from infoprune.evaluate import accuracy
    from infoprune.speed import side_by_side

    models = {"before": original, "after": named.network}
    totals = Totals(result.before.macs, result.before.params), Totals(result.after.macs, result.after.params)
    speeds = side_by_side(models, named.inputs, repeats, memory=False) if repeats else {}
    for total, (name, model) in zip(totals, models.items(), strict=True):
        if name in speeds:
            total.latency_s, total.latency_spread_s = speeds[name].median, speeds[name].spread
        if data is not None:
            total.metrics = dict(accuracy(model, data.test()))
    return totals


def _config(named: NamedModel) -> str:
    """Return what the model is made from, as ``--model`` reads it."""
    config: dict[str, Any] = {"model": named.config}
    return str(yaml.safe_dump(config, sort_keys=False))


def _write(out: Path, named: NamedModel, record: RunRecord) -> None:
    """Write all files of the folder, or none."""
    from infoprune.report import render_html

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        infoprune.save(named.network, folder / "pruned.pt")
        infoprune.plan_of(named.network).save(folder / "plan.json")
        (folder / "config.yaml").write_text(record.config, encoding="utf-8")
        record.save(folder / "record.json")
        (folder / "report.html").write_text(render_html(record), encoding="utf-8")
        os.rename(folder, out)


def _drop_facts(result: PruneResult, options: Namespace) -> dict[str, Any]:
    """Return the drop of accuracy that was measured, and how sure it is, where one was asked for."""
    if result.drop is None:
        return {}
    return {"drop": {**asdict(result.drop), "sure": result.drop.sure(options.max_drop)}}


def _print(console: Console, record: RunRecord, out: Path, result: PruneResult, options: Namespace) -> None:
    print_tables(record, console)
    if result.drop is not None:
        console.print(Text(f"On validation images: {result.drop.described(options.max_drop)}"), soft_wrap=True)
    console.print(Text(f"Report: {out / 'report.html'}"), soft_wrap=True)
