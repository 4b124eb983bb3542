"""``infoprune dashboard``: the same W&B dashboard for the whole team, with one command."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from infoprune.commands.parser import add_json_argument, make_parser, parse, show
from infoprune.errors import InfopruneError
from infoprune.report.wandb_workspace import definition, workspace

WHAT = """\
Write a saved view of the metrics of pruning runs into a W&B project: comparison of runs (quality and measured speed
over the remaining MACs, sweeps), quality and cost along a run, the remaining share of each layer at each event, the
scores of kept and removed filters. Needs pip install 'infoprune[dashboard]', the network and a W&B login; --json only
prints the definition and needs neither."""

EXAMPLES = """\
  infoprune dashboard --entity my-team --project pruning
  infoprune dashboard --entity my-team --project pruning --metric val/f1 --json"""


def make(words: Sequence[str] = ()) -> ArgumentParser:
    """Return the command's parser."""
    parser = make_parser("dashboard", WHAT, EXAMPLES)
    parser.add_argument("--entity", type=str, required=True, help="team or user")
    parser.add_argument("--project", type=str, required=True, help="the project")
    parser.add_argument("--metric", type=str, default="val/acc", help="metric of quality during a run")
    parser.add_argument("--name", type=str, default="Pruning", help="of the saved view")
    add_json_argument(parser)
    return parser


def run(words: Sequence[str]) -> None:
    """Run the command."""
    options = parse(make(words), words)
    made = workspace(options.entity, options.project, options.metric, options.name)
    if not options.json:
        try:
            made.save()
        except Exception as error:  # whatever W&B's client raises: no login, no network, no such team
            raise InfopruneError(
                f"the dashboard could not be written to W&B ({type(error).__name__}: {' '.join(str(error).split())}); "
                "it needs the network and a login (wandb login). --json prints the definition without them"
            ) from error
    facts = {"definition": definition(made)} if options.json else {}
    show("dashboard", facts, options.json, lambda console: _print(console, made.url))


def _print(console: Console, url: str) -> None:
    console.print(Text(f"Dashboard: {url}"), soft_wrap=True)
