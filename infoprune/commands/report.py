"""``infoprune report``: write a run's report again from its record, or compare two runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.text import Text

from infoprune.commands.parser import add_json_argument, check_folder, make_parser, parse, show
from infoprune.errors import ConfigurationError
from infoprune.files import write_text_whole
from infoprune.report.record import RunRecord

WHAT = """\
Write the HTML report of a run from its record.json, as the fit or the cut wrote it; with two runs, a page that shows
them side by side: cost, metrics, options, and every layer's width."""

EXAMPLES = """\
  infoprune report runs/quickstart/version_0
  infoprune report runs/quickstart/version_0 runs/quickstart/version_1 --out l1_or_entropy.html"""


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("report", WHAT, EXAMPLES)
    parser.add_argument("runs", type=str, nargs="+", help="one or two folders of runs, or their record.json")
    parser.add_argument(
        "--out",
        type=str | None,
        help="the page; by default report.html in the run's folder, for two runs comparison.html",
    )
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command.

    Raises:
        ConfigurationError: more than two runs.
        CheckpointError: a record is missing or damaged.
    """
    options = parse(make(words), words)
    if len(options.runs) > 2:
        raise ConfigurationError(f"a page shows one run or two side by side, and {len(options.runs)} are given")
    paths = [record_of(given) for given in options.runs]
    records = [RunRecord.load(path) for path in paths]
    if len(records) == 1:
        from infoprune.report import render_html

        page, out = render_html(records[0]), paths[0].parent / "report.html"
    else:
        from infoprune.report.side_by_side import render_pair

        names = [str(path.parent) for path in paths]
        page, out = render_pair(records[0], records[1], names[0], names[1]), Path("comparison.html")
    out = Path(options.out) if options.out else out
    check_folder("--out", out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(out, page)
    facts = {"runs": [str(path.parent) for path in paths], "out": str(out)}
    show("report", facts, options.json, lambda console: console.print(Text(str(out)), soft_wrap=True))


def record_of(run: str) -> Path:
    """Return the record of a run: the file itself, or the one in its folder.

    Args:
        run: the folder of a run, or its ``record.json``.
    """
    path = Path(run)
    return path if path.suffix == ".json" else path / "record.json"
