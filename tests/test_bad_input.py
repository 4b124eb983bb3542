"""Bad input gets a clear error, and nothing is lost.

Every case is tried in each way that it can occur: `infoprune.prune`, `FilterPruning` in a fit, the command line. Each
time the message names the layer or option and the values that clash, and model (to the bit), optimizer and files are
as they were.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import infoprune
from infoprune import FilterPruning
from infoprune.errors import BudgetError, ConfigurationError, TraceError
from tests.bad_input import (
    HALF,
    InfiniteBias,
    NaNStatistics,
    NaNWeight,
    NoLayers,
    NothingToPrune,
    Project,
    X,
    command,
    files,
    refused,
    told,
)
from tests.bad_input import surroundings as surroundings
from tests.tiers import thinned
from tests.tiny import sgd, trainer

pytestmark = pytest.mark.usefixtures("surroundings")


@dataclass
class Case:
    error: type[Exception]
    message: str
    options: dict[str, Any] = field(default_factory=dict)
    project: type[Project] = Project
    ways: tuple[str, ...] = ("prune", "fit", "command")


CASES = {
    "unknown criterion": Case(
        ConfigurationError,
        "unknown criterion 'capacity_independance', did you mean 'capacity_independence'",
        {"criterion": "capacity_independance", **HALF},
    ),
    "unknown option of a criterion": Case(
        ConfigurationError,
        "'capacity_independence' has no option 'balanse', did you mean 'balance'",
        {"criterion": {"name": "capacity_independence", "balanse": 0.5}, **HALF},
    ),
    "value of an option": Case(
        ConfigurationError,
        "balance must be a number of at least 0 and at most 1, got 1.5",
        {"criterion": {"name": "capacity_independence", "balance": 1.5}, **HALF},
    ),
    "unknown allocation": Case(
        ConfigurationError, "unknown allocation 'unifrm', did you mean 'uniform'", {"allocation": "unifrm", **HALF}
    ),
    "no filters": Case(ConfigurationError, r"filters must be in \(0, 1\], got 0", {"filters": 0}),
    "more filters than there are": Case(ConfigurationError, r"filters must be in \(0, 1\], got 1.1", {"filters": 1.1}),
    "filters in words": Case(
        ConfigurationError, r"filters must be in \(0, 1\], got 'half'", {"filters": "half"}, ways=("prune", "fit")
    ),
    "budget of zero": Case(ConfigurationError, r"macs to keep must be in \(0, 1\], got 0.0", {"macs": 0.0}),
    "budget of more than all": Case(
        ConfigurationError, r"params to keep must be in \(0, 1\], got 1.5", {"params": 1.5}
    ),
    "two targets": Case(ConfigurationError, "macs=0.5 and filters=0.5 clash: give one", {"macs": 0.5, **HALF}),
    "no target": Case(ConfigurationError, "allocation 'uniform' needs a budget: .* or filters"),
    "round_to of zero": Case(
        ConfigurationError, "round_to must be a whole number of at least 1, or 'auto', got 0", {"round_to": 0, **HALF}
    ),
    "budget below the floor": Case(
        BudgetError,
        r"macs budget of 0.02 is below the floor of 0\.\d+ .*frozen: .*conv1.*; ask for at least 0\.\d+",
        {"macs": 0.02, "frozen": ["conv1"]},
    ),
    "pattern without match": Case(
        ConfigurationError,
        "frozen pattern 'con1' matches no module or parameter of TinyNet, did you mean 'conv1'",
        {"frozen": ["con1"], **HALF},
    ),
    "pattern that is no text": Case(
        ConfigurationError, r"patterns of their names .*, got 3", {"frozen": [3], **HALF}, ways=("prune", "fit")
    ),
    "example inputs with other channels": Case(
        TraceError,
        r"failed on the example inputs.*expected input\[1, 4, 8, 8\] to have 3 channels, but got 4",
        {"example_inputs": [1, 4, 8, 8], **HALF},
    ),
    "example inputs without example": Case(
        TraceError, r"of shape \(0, 3, 8, 8\) hold no example", {"example_inputs": [0, 3, 8, 8], **HALF}
    ),
    "everything frozen": Case(
        ConfigurationError,
        r"nothing to prune: all \d+ channel groups are frozen \(stem: matches the frozen pattern '\*'",
        {"frozen": ["*"], **HALF},
    ),
    "model with nothing to prune": Case(
        ConfigurationError, "nothing to prune: .*reaches the model's output", HALF, NothingToPrune
    ),
    "model without layers": Case(ConfigurationError, "nothing to prune", HALF, NoLayers),
    "NaN in a weight": Case(
        ConfigurationError, "conv1: its weights hold 1 NaN or infinite .* of 1296", HALF, NaNWeight
    ),
    "infinity in a layer that is not scored": Case(
        ConfigurationError, "head: the values of its bias hold 1 NaN or infinite values of 3", HALF, InfiniteBias
    ),
    "NaN in the statistics of a norm": Case(
        ConfigurationError, "norm: the values of its running_var hold 1 NaN or infinite values", HALF, NaNStatistics
    ),
    "NaN scores": Case(
        ConfigurationError,
        "gives 12 NaN or infinite scores of 12 for the 12 filters of layer .stem.",
        {"criterion": "no_other_than_zero", **HALF},
    ),
    "schedule beyond the last epoch": Case(
        ConfigurationError,
        "an event at epoch 5, but max_epochs is 3 and the last epoch is 2; prune earlier or train longer",
        {"schedule": [1, 5], **HALF},
        ways=("fit", "command"),
    ),
    "unknown option of a schedule": Case(
        ConfigurationError,
        "the schedule has no option 'evry', did you mean 'every'",
        {"schedule": {"start": 1, "end": 2, "evry": 1}, **HALF},
        ways=("fit", "command"),
    ),
    "no calibration images": Case(
        ConfigurationError,
        "calibration_images must be a whole number of at least 1, got 0",
        {"calibration_images": 0, **HALF},
        ways=("fit", "command"),
    ),
    "module that is not there": Case(
        ConfigurationError,
        "module='nett': Project has no such submodule, did you mean 'net'",
        {"module": "nett", **HALF},
        ways=("fit", "command"),
    ),
}


def of_way(way: str) -> list[Any]:
    return [pytest.param(case, id=name) for name, case in CASES.items() if way in case.ways]


@pytest.mark.parametrize("case", of_way("prune"))
def test_prune(case: Case, tmp_path: Path) -> None:
    net = case.project().net
    optimizer = sgd(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    values = copy.deepcopy(net.state_dict())
    optimizer.step()  # momentum to be kept, but the net as the case wants it
    net.load_state_dict(values)
    options = {"criterion": "l1", **case.options}
    inputs = torch.zeros(options.pop("example_inputs")) if "example_inputs" in options else X
    with refused(case.error, case.message, (net, optimizer), folder=tmp_path):
        infoprune.prune(net, inputs, optimizers=[optimizer], **options)


@pytest.mark.parametrize("case", of_way("fit"))
def test_fit(case: Case, tmp_path: Path) -> None:
    """What can be known is told before training; scores are known at the event, and until then training counts."""
    module = case.project()
    options = {"criterion": "l1", "schedule": 1, **case.options}
    with pytest.raises(case.error, match=case.message):
        trainer(FilterPruning(**options), default_root_dir=str(tmp_path)).fit(module)
    module.before.check()
    assert not module.before.optimizers  # refused before training
    assert not files(tmp_path)


@pytest.mark.parametrize("case", thinned(of_way("command")))
def test_command(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, and no plan or report of a run that did not happen."""
    options = {"criterion": "l1", "schedule": 1, **case.options}
    assert command("--trainer.logger=false", project=case.project, **options) == 2
    assert re.search(case.message, told(capsys))
    assert set(files(tmp_path)) <= {"pruning_run/config.yaml"}
    for module in Project.made:
        module.before.check()
