"""Bad input gets a clear error, and nothing is lost.

Every case is tried in each way that it can occur: `infoprune.prune`, `FilterPruning` in a fit, the command line. Each
time the message names the layer or option and the values that clash, and model (to the bit), optimizer and files are
as they were.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import infoprune
from infoprune import FilterPruning, PruningPlan
from infoprune.callbacks import RunReport
from infoprune.cli import main
from infoprune.criteria import CRITERIA, L1
from infoprune.errors import (
    BudgetError,
    CheckpointError,
    ConfigurationError,
    InfopruneError,
    PlanError,
    SurgeryError,
    TraceError,
)
from tests.tiny import TinyModule, TinyNet, identical, loader, pruning, sgd, trainer

X = torch.zeros(1, 3, 8, 8)


# -- what must stay as it was -----------------------------------------------------------------------------------------


class Snapshot:
    """A model and its optimizers: bits, shapes, parameter objects, train/eval flags; groups and state."""

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        self.model, self.optimizers = model, optimizers
        self.tensors = [(name, tensor, tensor.detach().clone()) for name, tensor in self._tensors()]
        self.looks = repr(model), [module.training for module in model.modules()]
        self.groups = [[list(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
        self.states = [copy.deepcopy(list(optimizer.state.values())) for optimizer in optimizers]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.model.named_parameters(), *self.model.named_buffers()]

    def check(self) -> None:
        """Assert that nothing has changed since."""
        now = self._tensors()
        assert [name for name, _ in now] == [name for name, _, _ in self.tensors]
        for (name, tensor), (_, same, value) in zip(now, self.tensors, strict=True):
            assert tensor is same, name
            assert identical(tensor.detach(), value), name
        assert (repr(self.model), [module.training for module in self.model.modules()]) == self.looks
        for optimizer, groups, states in zip(self.optimizers, self.groups, self.states, strict=True):
            for group, parameters in zip(optimizer.param_groups, groups, strict=True):
                assert [id(p) for p in group["params"]] == [id(p) for p in parameters]
            for state, before in zip(optimizer.state.values(), states, strict=True):
                assert state.keys() == before.keys()
                assert all(not torch.is_tensor(v) or identical(state[k], v) for k, v in before.items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def refused(error: type[Exception], message: str, *models: Any, folder: Path | None = None) -> Iterator[None]:
    """Expect an error of ours, and models (each alone or with its optimizers) and files as they were."""
    kept = [Snapshot(*(given if isinstance(given, tuple) else (given,))) for given in models]
    written = files(folder) if folder is not None else {}
    with pytest.raises(error, match=message) as caught:
        yield
    assert isinstance(caught.value, InfopruneError)
    for snapshot in kept:
        snapshot.check()
    assert folder is None or files(folder) == written


# -- the cases --------------------------------------------------------------------------------------------------------


class Project(TinyModule):
    """A user's module that brings its data and knows how it was after its last step, for comparison."""

    made: ClassVar[list[Project]] = []

    def __init__(self) -> None:
        super().__init__()
        self.spoil()
        self.before = Snapshot(self)
        Project.made.append(self)

    def spoil(self) -> None:
        """For modules that are broken from the start."""

    def train_dataloader(self) -> Any:
        return loader()

    def on_train_batch_end(self, *_: Any) -> None:
        self.before = Snapshot(self, *self.trainer.optimizers)


class NaNWeight(Project):
    def spoil(self) -> None:
        self.net.conv1.weight.data[0, 0, 0, 0] = float("nan")


class InfiniteBias(Project):
    """In a layer that is not scored, so that no criterion would notice."""

    def spoil(self) -> None:
        self.net.head.bias.data[1] = float("inf")


class NaNStatistics(Project):
    def spoil(self) -> None:
        self.net.norm.running_var[5] = float("nan")


class NothingToPrune(Project):
    def spoil(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())


class NoLayers(Project):
    """Only a scale and a pooling: nothing that has filters."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.mean((2, 3))

    def spoil(self) -> None:
        self.net = self.Net()


class NoOtherThanZero(L1):
    """A criterion of the user's that divides by zero."""

    def filter_scores(self, filters: Tensor) -> Tensor:
        return filters.sum((1, 2)) / 0 * 0


@dataclass
class Case:
    error: type[Exception]
    message: str
    options: dict[str, Any] = field(default_factory=dict)
    project: type[Project] = Project
    ways: tuple[str, ...] = ("prune", "fit", "command")


HALF = {"filters": 0.5}
L1_AT_1 = {"criterion": "l1", "schedule": 1, **HALF}
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
        "gives 12 NaN or infinite scores of 12 for 12 filters of layer .stem.",
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


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, one thread, and a criterion of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["infoprune"])
    monkeypatch.setattr(Project, "made", [])
    monkeypatch.setitem(CRITERIA._classes, "no_other_than_zero", NoOtherThanZero)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


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


QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def command(*options: str, project: type[Project] = Project, **pruning: Any) -> int:
    """`infoprune fit` of a project with FilterPruning."""
    words = ["fit", f"--model=tests.test_bad_input.{project.__name__}", *QUIET, "--trainer.max_epochs=3", *options]
    if pruning:
        words.append("--trainer.callbacks+=FilterPruning")
    for name, value in pruning.items():
        words.append(f"--trainer.callbacks.{name}={value if isinstance(value, str) else json.dumps(value)}")
    return main(words)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that says what is wrong."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("infoprune: error: ")]
    return line


@pytest.mark.parametrize("case", of_way("command"))
def test_command(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, and no plan or report of a run that did not happen."""
    options = {"criterion": "l1", "schedule": 1, **case.options}
    assert command("--trainer.logger=false", project=case.project, **options) == 2
    assert re.search(case.message, told(capsys))
    assert set(files(tmp_path)) <= {"pruning_run/config.yaml"}
    for module in Project.made:
        module.before.check()


# -- wrong things in the wrong places ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        ("resnet18", X, ConfigurationError, r"must be a torch\.nn\.Module in Python, got a str"),
        (
            torch.jit.trace(TinyNet(), X),
            X,
            ConfigurationError,
            r"must be a torch\.nn\.Module in Python, got a TopLevelTracedModule",
        ),
        (TinyNet(), None, TraceError, "example inputs of type NoneType in module 'stem'"),
        (TinyNet(), X.double(), TraceError, r"inputs are float64 and the model is float32: cast the inputs with \.to"),
        (TinyNet(), X.numpy(), TraceError, r"give tensors as inputs, as torch\.from_numpy\(array\), not ndarray"),
        (TinyNet(), (1, 3, 8, 8), TraceError, r"for an input of that shape give torch\.zeros\(1, 3, 8, 8\)"),
        (TinyNet(), {"y": X}, TraceError, "unexpected keyword argument 'y'"),
        (TinyNet(), (X, X), TraceError, "takes 2 positional arguments but 3 were given"),
        (TinyNet(), X.long(), TraceError, r"of shape \(1, 3, 8, 8\) in module 'stem'"),
    ],
)
def test_things_that_are_no_model_and_no_input(model: Any, inputs: Any, error: Any, message: str) -> None:
    with refused(error, message, *([model] if type(model) is TinyNet else [])):
        infoprune.prune(model, inputs, "l1", filters=0.5)


def test_lazy_layers_that_have_not_seen_an_input() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 3, 1))
    with pytest.raises(TraceError, match=r"0\.weight is a lazy parameter without a shape yet; run the model once"):
        infoprune.prune(net, X, "l1", filters=0.5)
    assert isinstance(net[0], nn.LazyConv2d)


def test_calibration_batches_that_do_not_fit() -> None:
    net = TinyNet()
    with refused(infoprune.errors.DataError, r"failed on a batch of shape \(4, 1, 8, 8\) \(RuntimeError: .*", net):
        infoprune.prune(net, X, "hrank", filters=0.5, data=[torch.zeros(4, 1, 8, 8)])


def test_widths_that_allow_no_cut_are_warned_about() -> None:
    net = TinyNet()
    with pytest.warns(UserWarning, match="removes nothing with round_to=auto and min_width=99; lower"):
        assert infoprune.prune(net, X, "l1", filters=0.5, min_width=99).plan.is_empty


@pytest.mark.parametrize("given", ["alone", "twice", "empty"])
def test_optimizers_as_people_pass_them(given: str) -> None:
    """A single one, the same one twice, one without parameters: all of them may be."""
    net = TinyNet()
    optimizer = sgd(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    empty = torch.optim.SGD([{"params": []}], lr=0.1)
    infoprune.prune(
        net,
        X,
        "l1",
        filters=0.5,
        optimizers={"alone": optimizer, "twice": [optimizer, optimizer], "empty": [empty, optimizer]}[given],
    )
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.parameters()}
    assert all(state["momentum_buffer"].shape == p.shape for p, state in optimizer.state.items())
    assert len(optimizer.state) == len(list(net.parameters()))


def test_optimizers_that_are_none_or_cannot_follow() -> None:
    net = TinyNet()
    schedule = torch.optim.lr_scheduler.StepLR(sgd(net.parameters()), 1)
    lbfgs = torch.optim.LBFGS(net.parameters())
    with refused(SurgeryError, "optimizers are to hold optimizers, got a StepLR", net):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=[schedule])  # type: ignore[list-item]
    with refused(SurgeryError, "LBFGS keeps flattened.*use SGD", (net, lbfgs)):
        infoprune.prune(net, X, "l1", filters=0.5, optimizers=lbfgs)


# -- files that cannot be read ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a pruned model leaves: ``net.pt`` of `infoprune.save`, ``plan.json``, ``fit.ckpt`` of a fit."""
    folder = tmp_path_factory.mktemp("saved")
    module = TinyModule()
    run = trainer(pruning((1,)), epochs=2)
    run.fit(module, loader())
    run.save_checkpoint(folder / "fit.ckpt")
    infoprune.save(module.net, folder / "net.pt")
    infoprune.plan_of(module.net).save(folder / "plan.json")
    return files(folder)


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"hello, this is no checkpoint",
        "first byte": whole[:1],
        "first half": whole[: len(whole) // 2],
        "all but one byte": whole[:-1],
    }


@pytest.mark.parametrize("how", damaged(b""))
def test_load_of_a_damaged_file(how: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    path, net = tmp_path / "net.pt", TinyNet()
    path.write_bytes(damaged(saved["net.pt"])[how])
    with refused(CheckpointError, r"cannot read .*net\.pt, it is truncated or not a checkpoint", net):
        infoprune.load(path, net)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_load_of_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    net = TinyNet()
    with refused(CheckpointError, f"cannot read .*{name}: there is no such file", net):
        infoprune.load(tmp_path / name, net)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with refused(CheckpointError, r"cannot write .*net\.pt: there is no folder .*absent", folder=tmp_path):
        infoprune.save(TinyNet(), tmp_path / "absent" / "net.pt")


def test_costs_of_more_units_than_there_are() -> None:
    structure = infoprune.trace(TinyNet(), X)
    name, size = structure.prunable[0].name, structure.prunable[0].size
    with refused(ConfigurationError, f"group '{name}' has {size} units; its width cannot be {size + 1}"):
        structure.cost({name: size + 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"infoprune": 9}, r"was not written by infoprune\.save \(format 1\)"),
        ({"plan": None}, "is damaged: this is not a pruning plan"),
        ({"plan": {"format": 1, "tensors": {"stem.weight": {"shape": [8.5]}}}}, "is damaged: .*whole number, got 8.5"),
        ({"state_dict": None}, "is damaged: its 'state_dict' is a NoneType"),
        ({"state_dict": {"stem.weight": 3}}, "stem.weight is a int, not a tensor"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_load_of_altered_contents(change: dict, message: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    path, net = tmp_path / "net.pt", TinyNet()
    path.write_bytes(saved["net.pt"])
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with refused(CheckpointError, message, net, folder=tmp_path):
        infoprune.load(path, net)


def test_load_of_what_is_no_such_file(saved: dict[str, bytes], tmp_path: Path) -> None:
    net = TinyNet()
    torch.save(TinyNet().state_dict(), tmp_path / "weights.pt")
    torch.save(TinyNet(), tmp_path / "module.pt")
    for path, message in [
        (tmp_path / "absent.pt", "there is no such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "module.pt", "cannot read .*more than tensors"),
        (tmp_path / "weights.pt", r"was not written by infoprune\.save"),
        (TinyNet(), "expected str, bytes or os.PathLike object, not TinyNet"),
    ]:
        with refused(CheckpointError, message, net, folder=tmp_path):
            infoprune.load(path, net)  # type: ignore[arg-type]


def test_load_into_another_architecture_names_the_first_layer(saved: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(saved["net.pt"])
    wide_head = TinyNet()
    wide_head.head = nn.Linear(12, 7)
    for net, message in [
        (TinyNet(inner=10), r"conv1\.weight has shape \(10, 12, 3, 3\), the plan expects \(12, 12, 3, 3\)"),
        (wide_head, r"head\.weight has shape \(7, 12\), the plan expects \(3, 12\)"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "the plan cuts 'stem.weight', which this model does not have"),
    ]:
        with refused(CheckpointError, f"belongs to another architecture: .*{message}", net, folder=tmp_path):
            infoprune.load(path, net)
    pruned = infoprune.load(path, TinyNet())
    with refused(CheckpointError, "a model that is pruned already: give one as it was built", pruned):
        infoprune.load(path, pruned)


def with_plan(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        plan = json.loads(text)
        change(plan["tensors"]["conv1.weight"])
        return json.dumps(plan)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "truncated or not JSON"),
        (lambda text: text[: len(text) // 2], "truncated or not JSON"),
        (lambda text: text[:-3], "truncated or not JSON"),
        (lambda text: "null", "no 'tensors'"),
        (lambda text: "[]", "no 'tensors'"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 9, this version of infoprune reads 1"),
        (lambda text: '{"format": 1, "tensors": []}', "malformed"),
        (with_plan(lambda entry: entry.update(shape="12")), "malformed: .*whole number, got '1'"),
        (with_plan(lambda entry: entry.update(shape=[12.0, 12, 3, 3])), "malformed: .*whole number, got 12.0"),
        (with_plan(lambda entry: entry.update(removed={"0": 3})), "malformed"),
        (with_plan(lambda entry: entry.update(removed={"0": "a"})), "malformed"),
        (with_plan(lambda entry: entry.update(removed={"0": "3-1"})), "malformed: .*range '3-1' is empty"),
        (with_plan(lambda entry: entry.update(removed={"0": "3,0"})), "repeated or not in order"),
        (with_plan(lambda entry: entry.update(removed={"0": "0,99"})), "index 99 of dimension 0 of conv1.weight"),
        (with_plan(lambda entry: entry.update(removed={"0": "0-11"})), "removes all 12 of dimension 0 of conv1.weight"),
        (with_plan(lambda entry: entry.update(removed={"9": "0"})), r"dimension 9 of conv1.weight, which has shape"),
    ],
)
def test_plan_files(change: Callable[[str], str], message: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    path, net = tmp_path / "plan.json", TinyNet()
    path.write_text(change(saved["plan.json"].decode()))
    with refused(PlanError, rf"plan\.json: .*{message}", net, folder=tmp_path):
        infoprune.shrink(net, PruningPlan.load(path))


def test_plans_that_are_no_plan_file(tmp_path: Path) -> None:
    net = TinyNet()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", ".", "binary.json"):
        with refused(PlanError, "cannot read the pruning plan", net, folder=tmp_path):
            infoprune.shrink(net, PruningPlan.load(tmp_path / name))
    with refused(PlanError, r"needs a PruningPlan, got a str; PruningPlan\.load reads", net):
        infoprune.shrink(net, "plan.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", damaged(b""))
def test_checkpoints_of_a_fit_that_are_damaged(
    how: str, saved: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python the file is read by Lightning, whose error it is; the command looks first."""
    path, module = tmp_path / "fit.ckpt", TinyModule()
    path.write_bytes(damaged(saved["fit.ckpt"])[how])
    before, written = Snapshot(module), files(tmp_path)
    with pytest.raises((OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError)):
        trainer(pruning((1,))).fit(module, loader(), ckpt_path=path)
    before.check()
    assert command("--trainer.logger=false", f"--ckpt_path={path}", **L1_AT_1) == 2
    assert re.search(r"fit\.ckpt (is no checkpoint, or was cut short|is damaged)", told(capsys))
    assert files(tmp_path) == written


def test_the_command_names_what_does_not_fit(
    saved: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt").write_bytes(saved["net.pt"])
    (tmp_path / "fit.ckpt").write_bytes(saved["fit.ckpt"])
    dense = trainer(epochs=1)
    dense.fit(TinyModule(), loader())
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    (tmp_path / "logs").mkdir()
    written = files(tmp_path)
    for path, message in [
        ("absent.ckpt", "absent.ckpt"),
        ("logs", "Is a directory: .*logs"),
        ("net.pt", "was not written by a Trainer"),
        ("fit.ckpt", "another architecture: the plan cuts 'net.stem.weight', which this model does not have"),
        ("dense.ckpt", r'another architecture: Missing key\(s\) in state_dict: "net.0.weight"'),
    ]:
        options = ["--trainer.logger=false", f"--ckpt_path={tmp_path / path}"]
        assert command(*options, project=NothingToPrune, **L1_AT_1) == 2
        assert re.search(message, told(capsys))
        (tmp_path / "pruning_run/config.yaml").unlink(missing_ok=True)  # what the command was told, written at setup
        assert files(tmp_path) == written


# -- files that cannot be written -------------------------------------------------------------------------------------

UNWRITABLE = ["file/model.pt", "folder", "absent/model.pt", "/proc/model.pt"]
"""Below a file, a folder itself, in no folder, in a file system that takes none: refused to root, too."""


@pytest.fixture
def places(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("a file where a folder should be")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", UNWRITABLE)
def test_models_and_plans_that_cannot_be_written(path: str, places: Path) -> None:
    net = TinyNet()
    infoprune.prune(net, X, "l1", filters=0.5)
    with refused(CheckpointError, f"cannot write .*{path}", net, folder=places):
        infoprune.save(net, places / path)
    with refused(PlanError, f"cannot write the pruning plan .*{path}", net, folder=places):
        infoprune.plan_of(net).save(places / path)


def test_a_disk_that_runs_full_leaves_the_file_that_was_there(saved: dict[str, bytes], tmp_path: Path) -> None:
    """Not a byte of the old model or plan is lost before the new one is complete."""
    net = TinyNet()
    infoprune.prune(net, X, "l1", filters=0.75)
    for name in ("net.pt", "plan.json"):
        (tmp_path / name).write_bytes(saved[name])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with refused(CheckpointError, r"cannot write .*net\.pt", net, folder=tmp_path):
            infoprune.save(net, tmp_path / "net.pt")
        with refused(PlanError, r"cannot write .*plan\.json.*File too large", net, folder=tmp_path):
            infoprune.plan_of(net).save(tmp_path / "plan.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("folder", ["file/here", "/proc/here"])
def test_a_run_folder_that_cannot_be_written(folder: str, places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before training, with the option that chooses another."""
    module = Project()
    message = f"run folder .*{folder}.* cannot be written .*save_dir, or trainer.default_root_dir"
    with refused(ConfigurationError, message, module, folder=places):
        trainer(RunReport(folder=str(places / folder)), pruning((1,))).fit(module)
    for options in (
        ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={places / folder}"],
        ["--trainer.logger=false", f"--trainer.default_root_dir={places / folder}"],
    ):
        written = files(places)
        assert command(*options, **L1_AT_1) == 2
        assert re.search(message, told(capsys))
        assert files(places) == written
        Project.made[-1].before.check()
