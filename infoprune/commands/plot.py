"""``infoprune plot``: draw the figures of a run, for slides and papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from infoprune.commands.parser import add_json_argument, check_folder, make_parser, parse, show
from infoprune.commands.report import record_of
from infoprune.errors import ConfigurationError, nearest
from infoprune.files import written_whole
from infoprune.report.record import RunRecord

WHAT = """\
Draw the record of a run: the remaining filters of each layer (widths), the remaining share after each
event (heat_map), the scores of each event with the cut (scores_1, ...),
the loss of cutting each group alone (curves_1, ...), the metric and the MACs along the run (along).
Needs pip install 'infoprune[plot]'."""

EXAMPLES = """\
  infoprune plot --run runs/quickstart/version_0
  infoprune plot --run pruned --out pictures --format pdf --only widths heat_map"""

FORMATS = ("png", "svg", "pdf")


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("plot", WHAT, EXAMPLES)
    parser.add_argument("--run", type=str, required=True, help="the folder of a run, or its record.json")
    parser.add_argument("--out", type=str | None, help="the folder to write into; by default plots in the run's folder")
    parser.add_argument("--format", type=str, default="png", help="png, svg or pdf")
    parser.add_argument("--only", nargs="+", default=[], help="the pictures to draw; all if not given")
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    options = parse(make(words), words)
    if options.format not in FORMATS:
        raise ConfigurationError(f"--format {options.format}: give one of {', '.join(FORMATS)}")
    if options.out:
        check_folder("--out", Path(options.out))
    path = record_of(options.run)
    record = RunRecord.load(path)
    from infoprune.report.figures import of_run

    made = of_run(record)
    for name in options.only:
        if name not in made:
            raise ConfigurationError(f"--only {name}: this run has {', '.join(made)}{nearest(name, made)}")
    out = Path(options.out) if options.out else path.parent / "plots"
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in options.only or made:
        file = out / f"{name}.{options.format}"
        with written_whole(file) as scratch:
            made[name].savefig(scratch, dpi=160, format=options.format)
        written.append(str(file))
    show("plot", {"run": str(path.parent), "files": written}, options.json, lambda console: _print(console, written))


def check_picture(path: Path) -> None:
    """Raise a ConfigurationError where a picture of that name cannot be drawn, before anything is computed.

    Args:
        path: the file to be written.
    """
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ConfigurationError(f"--plot {path}: pictures are {', '.join(f'.{name}' for name in FORMATS)}")
    from infoprune.report.figures import figure

    figure()


def _print(console: Console, written: list[str]) -> None:
    for file in written:
        console.print(Text(file), soft_wrap=True)
