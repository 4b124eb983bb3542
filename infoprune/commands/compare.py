"""``infoprune compare``: criteria by budgets on one model, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.table import Table

from infoprune.commands.cutting import add_selection_arguments
from infoprune.commands.named_data import add_data_arguments, open_data
from infoprune.commands.named_model import add_model_arguments, open_model
from infoprune.commands.parser import add_json_argument, make_parser, parse, show
from infoprune.errors import ConfigurationError
from infoprune.files import written_whole
from infoprune.report.text import metric_value, percent, seconds

if TYPE_CHECKING:
    from infoprune.compare import Compared

WHAT = """\
Prune copies of a model by several criteria to several budgets and measure each: its accuracy on the test data of
--data, else the change of its outputs on random inputs. With a uniform allocation all criteria get the same widths, so
that differences are due to the criteria. Nothing is trained: --recalibrate measures batch norm's statistics again,
which recovers much of the accuracy and comes closer to the result of fine-tuning."""

EXAMPLES = """\
  infoprune compare --model CifarResNet --model.depth 56 --weights resnet56.pt --input_shape 1,3,32,32 \\
      --data CIFAR10DataModule --data.root data --recalibrate --criteria random l1 capacity_independence \\
      --budgets 0.7 0.5 0.3 --plot pareto.png
  infoprune compare --model torchvision.models.resnet18 --input_shape 1,3,64,64 --criteria l1 geometric_median --json"""


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("compare", WHAT, EXAMPLES)
    add_model_arguments(parser, words)
    parser.add_argument(
        "--criteria",
        nargs="+",
        type=str | dict,
        default=["random", "l1", "capacity_independence"],
        help="which criteria, each a name, or a name and options: '{name: capacity_independence, balance: 0.3}'",
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.5, 0.3], help="shares to keep, in (0, 1]")
    parser.add_argument("--kind", type=str, default="macs", help="unit of the budgets: macs or params")
    add_selection_arguments(parser)
    add_data_arguments(parser, words)
    parser.add_argument("--test_images", type=int | None, help="how many test images to use; all if not given")
    parser.add_argument(
        "--recalibrate", action="store_true", help="measure batch norm's statistics again after each cut"
    )
    parser.add_argument("--plot", type=str | None, help="picture file to write: .png, .svg or .pdf")
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parser = make(words)
    options = parse(parser, words)
    from infoprune.compare import compare
    from infoprune.criteria import get_criterion
    from infoprune.decide import Target
    from infoprune.evaluate import accuracy, output_change

    for criterion in options.criteria:
        get_criterion(criterion)
    for keep in options.budgets:
        Target(macs=keep)
    if options.plot is not None:
        from infoprune.commands.plot import check_picture

        check_picture(Path(options.plot))
    if options.recalibrate and options.data is None:
        raise ConfigurationError("--recalibrate needs training images: choose them with --data")
    named = open_model(parser, options)
    data = open_data(parser, options)
    rows = compare(
        named.network,
        named.inputs,
        options.criteria,
        options.budgets,
        (lambda model: accuracy(model, data.test(), options.test_images))
        if data
        else output_change(named.network, named.inputs),
        kind=options.kind,
        allocation=options.allocation,
        round_to=options.round_to,
        min_width=options.min_width,
        frozen=options.frozen,
        data=data.training() if data else None,
        recalibration=data.training(augment=True) if data and options.recalibrate else None,
    )
    if options.plot is not None:
        from infoprune.report.figures import pareto

        with written_whole(options.plot) as scratch:
            pareto(rows, options.kind).savefig(scratch, dpi=160, format=Path(options.plot).suffix[1:])
    facts = {"model": named.describes, "kind": options.kind, "rows": [asdict(row) for row in rows]}
    show("compare", facts, options.json, lambda console: console.print(_table(rows, named.name)))


def _table(rows: list[Compared], name: str) -> Table:
    figures = list(rows[0].figures)
    table = Table(
        title=f"{name}: criteria by budgets", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("criterion", overflow="fold")
    for column in ("budget", "MACs left", "parameters left", *figures, "scoring"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        values = (metric_value(figure, row.figures[figure]) for figure in figures)
        shares = (percent(row.keep, 0), percent(row.macs), percent(row.params))
        table.add_row(row.criterion, *shares, *values, seconds(row.scoring_s) if row.scoring_s else "")
    return table
