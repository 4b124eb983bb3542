"""The options of a cut, shared by all commands that make one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

import infoprune
from infoprune.commands.known_names import ALLOCATIONS, BACKENDS, CRITERIA
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.api import PruneResult
    from infoprune.commands.named_data import NamedData
    from infoprune.commands.named_model import NamedModel


HOW_FAR = ("macs", "params", "filters", "amount", "latency")
"""The options that say how far to cut."""


def add_cut_arguments(parser: ArgumentParser) -> None:
    """Add the options that say how far to cut, and those of `add_selection_arguments`.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--macs", type=float | str | None, help="multiply-accumulates to keep, a share or their number: 0.6, 200e6"
    )
    parser.add_argument("--params", type=float | str | None, help="parameters to keep, likewise: 0.6, 5e6")
    parser.add_argument("--filters", type=float | str | None, help="share of the filters to keep in every group: 0.6")
    parser.add_argument("--amount", type=float | None, help="deprecated: share of the filters to remove; --filters")
    parser.add_argument("--latency", type=float | None, help="share of the time of a forward pass to keep, in (0, 1]")
    add_selection_arguments(parser)
    parser.add_argument(
        "--verify",
        action=ActionYesNo(no_prefix="no-"),
        nargs="?",  # so that --verify=false goes on working
        default=True,
        help="cut only if the example inputs prove that nothing but the removed filters changes; --no-verify skips it",
    )


def add_backend_argument(parser: ArgumentParser) -> None:
    """Add ``--backend``, where a cut model will run.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--backend",
        type=str | dict | None,
        help=f"where it will run, for --latency and --round_to auto: {', '.join(BACKENDS)}",
    )


def add_selection_arguments(parser: ArgumentParser) -> None:
    """Add the options that say how the groups share a cut.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--allocation",
        type=str | dict,
        default="auto",
        help=f"how the cut is divided among the groups: {', '.join(ALLOCATIONS)}, or your own by its import path; "
        "auto: by the loss of cutting each, measured on the images of --data, else residual streams are cut last",
    )
    parser.add_argument(
        "--round_to",
        type=int | Literal["auto"],
        default="auto",
        help="widths are multiples of this; auto: of 4, 8 or 16 in layers of at least 16, 64 or 128 filters",
    )
    parser.add_argument(
        "--min_width", type=int | dict, default=1, help="the fewest units a group keeps, or a mapping by layer patterns"
    )
    parser.add_argument("--frozen", nargs="+", default=[], help="patterns of layers whose filters all stay")


def add_criterion_argument(parser: ArgumentParser) -> None:
    """Add ``--criterion``.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--criterion",
        type=str | dict,
        default="l1",
        help=f"how much each filter matters: {', '.join(CRITERIA)}, or your own by its import path; with options "
        "as in {name: capacity_independence, balance: 0.3}",
    )


def asks_for_a_cut(options: Namespace) -> bool:
    """Return whether any of the options that say how far to cut is given.

    Args:
        options: the parsed options.
    """
    return any(options.get(name) is not None for name in (*HOW_FAR, "max_drop"))


def cut(named: NamedModel, options: Namespace, data: NamedData | None, backend: str | None = None) -> PruneResult:
    """Cut the named model in place, as the options say.

    Args:
        named: The model and its example inputs; the model is cut in place.
        options: The parsed options of the command.
        data: The images of ``--data``, None if it is not given.
        backend: Where the model will run, instead of ``--backend``.

    Raises:
        ConfigurationError: options that clash or are missing.
        BudgetError: the budget cannot be met.
    """
    if not asks_for_a_cut(options) and isinstance(options.allocation, str) and "per_" not in options.allocation:
        raise ConfigurationError("no target is given: give --macs, --params, --filters or --latency")
    return infoprune.prune(
        named.network,
        named.inputs,
        options.criterion,
        macs=options.macs,
        params=options.params,
        filters=options.filters,
        amount=options.amount,
        latency=options.latency,
        backend=options.get("backend") if backend is None else backend,
        allocation=options.allocation,
        round_to=options.round_to,
        min_width=options.min_width,
        frozen=options.frozen,
        data=data.training() if data else None,
        max_drop=options.get("max_drop"),
        validation=data.validation() if data and options.get("max_drop") is not None else None,
        verify=options.verify,
    )


def cut_options(options: Namespace) -> dict[str, Any]:
    """Return the options of a cut that differ from their defaults, as a record keeps them.

    Args:
        options: the parsed options.
    """
    names = ("criterion", *HOW_FAR, "max_drop", "backend", "allocation", "round_to", "min_width", "frozen")
    return {name: options[name] for name in names if options.get(name) not in (None, [])}
