"""Define a W&B workspace for a team that shows the metrics of pruning runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from infoprune.errors import ConfigurationError

CONFIG_COLUMNS = ("pruning.criterion", "pruning.macs", "pruning.params", "pruning.filters", "pruning.allocation")


def workspace(entity: str, project: str, metric: str = "val/acc", name: str = "Pruning") -> Any:
    """Return the workspace; its ``save()`` writes it to W&B, where the whole team finds it as a saved view.

    Args:
        entity: team or user.
        project: the project, which need not exist yet.
        metric: what stands for quality; ``prune/after/<metric>`` of the test where ``fit`` measured one.
        name: of the view.

    Raises:
        ConfigurationError: wandb-workspaces is not installed; says how to get it.
    """
    try:
        panels: Any = import_module("wandb_workspaces.reports.v2")
        workspaces: Any = import_module("wandb_workspaces.workspaces")
    except ImportError as error:
        raise ConfigurationError("a dashboard needs wandb-workspaces: pip install 'infoprune[dashboard]'") from error
    test = metric.replace("val", "test", 1)
    sections = {
        "Runs compared": [
            panels.ScatterPlot(title="Quality over MACs", x="prune/macs_kept", y=f"prune/after/{test}"),
            panels.ScatterPlot(title="Measured speed-up over MACs", x="prune/macs_kept", y="prune/speedup"),
            panels.ParallelCoordinatesPlot(
                title="Sweep",
                columns=[
                    *(panels.ParallelCoordinatesPlotColumn(metric=f"c::{column}") for column in CONFIG_COLUMNS[:2]),
                    panels.ParallelCoordinatesPlotColumn(metric="prune/macs_kept"),
                    panels.ParallelCoordinatesPlotColumn(metric=f"prune/after/{test}"),
                ],
            ),
            panels.ParameterImportancePlot(with_respect_to=f"prune/after/{test}"),
        ],
        "Along the run": [
            panels.LinePlot(title="Quality", x="trainer/global_step", y=[metric]),
            panels.LinePlot(title="Left of the cost", x="prune/event", y=["prune/macs_ratio", "prune/params_ratio"]),
            panels.LinePlot(title="MACs", x="prune/event", y=["prune/macs"]),
            panels.LinePlot(title="Quality before each event", x="prune/event", y=[f"prune/before_cut/{metric}"]),
        ],
        "Layers": [
            panels.MediaBrowser(title="Left of each layer, event by event", media_keys=["prune/heat_map"]),
            panels.WeavePanelSummaryTable(table_name="prune/widths_table"),
            panels.WeavePanelSummaryTable(table_name="prune/layers"),
        ],
        "Scores": [
            panels.MediaBrowser(
                title="What stayed and what went", media_keys=["prune/scores/kept", "prune/scores/removed"]
            ),
            panels.WeavePanelSummaryTable(table_name="prune/units"),
            panels.WeavePanelSummaryTable(table_name="prune/events"),
        ],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[workspaces.Section(name=title, panels=made, is_open=True) for title, made in sections.items()],
    )


def definition(made: Any) -> dict[str, Any]:
    """Return a workspace as it is sent to W&B: primitives only."""
    data: dict[str, Any] = made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    return data
