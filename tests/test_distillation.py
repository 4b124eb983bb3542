"""The unpruned model teaches the pruned one: by exactly the loss that one would write by hand, and leaves no trace."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from infoprune.callbacks import Distillation
from infoprune.callbacks.distillation import attention, soft_targets
from infoprune.errors import CheckpointError, ConfigurationError
from tests.tiny import TinyModule, TinyNet, images, loader, pruning, same, trainer


class Gradients(pl.Callback):
    """The network at the end of each epoch, and weights and gradients at each step."""

    def __init__(self) -> None:
        self.ends: list[nn.Module] = []
        self.steps: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.ends.append(copy.deepcopy(getattr(pl_module.net, "_orig_mod", pl_module.net)))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        network = getattr(pl_module.net, "_orig_mod", pl_module.net)
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        self.steps.append((copy.deepcopy(network), gradients))


def run(
    *callbacks: Any, module: Any = None, data: Any = None, epochs: int = 2, **options: Any
) -> tuple[Any, Gradients]:
    pl.seed_everything(1, verbose=False)
    torch.manual_seed(1)
    module = TinyModule() if module is None else module
    watch = Gradients()
    trainer(*callbacks, watch, epochs=epochs, **options).fit(module, loader() if data is None else data)
    return module, watch


def by_hand(
    student: nn.Module, teacher: nn.Module, batches: list[Any], temperature: float, weight: float
) -> dict[str, Tensor]:
    """Gradients of the loss as one would write it, averaged over some batches; batch norm as in training."""
    student, teacher = copy.deepcopy(student).train(), copy.deepcopy(teacher).eval()
    student.zero_grad()
    for x, y in batches:
        ours = student(x)
        with torch.no_grad():
            theirs = teacher(x)
        p, q = F.softmax(theirs / temperature, dim=1), F.softmax(ours / temperature, dim=1)
        divergence = (p * (p.log() - q.log())).sum(dim=1).mean()
        loss = (1 - weight) * F.cross_entropy(ours, y) + weight * temperature**2 * divergence
        (loss / len(batches)).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], wanted[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("first", [True, False], ids=["before FilterPruning", "behind it"])
def test_gradients_are_those_of_the_loss_written_by_hand(first: bool) -> None:
    callbacks = [Distillation(temperature=3.0, weight=0.7), pruning(1, filters=0.5)]
    _, watch = run(*(callbacks if first else callbacks[::-1]))
    teacher = watch.ends[0]
    assert teacher.stem.out_channels == 12
    for number, batch in enumerate(loader()):
        student, gradients = watch.steps[3 + number]
        assert student.stem.out_channels == 6
        assert_close(gradients, by_hand(student, teacher, [batch], 3.0, 0.7), rtol=1e-4, atol=1e-6)


def test_accumulated_steps_that_return_a_dict() -> None:
    class Dict(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "mark": batch_idx}

    marks = []

    class Marks(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            marks.append(outputs["mark"])

    still = _Still()
    data = loader(count=16)
    options = {"module": Dict(), "data": data, "accumulate_grad_batches": 2}
    _, watch = run(pruning(1, filters=0.5), Distillation(2.0, 0.5), Marks(), still, **options)
    student, gradients = watch.steps[1]
    wanted = by_hand_still(student, watch.ends[0], list(data))
    assert_close(gradients, wanted, rtol=1e-4, atol=1e-6)
    assert marks == [0, 1, 0, 1]


class _Still(pl.Callback):
    """Batch norm with running statistics, which two batches do not change in between."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.net.norm.eval()


def by_hand_still(student: nn.Module, teacher: nn.Module, batches: list[Any]) -> dict[str, Tensor]:
    student = copy.deepcopy(student)
    student.train = lambda mode=True: student  # type: ignore[assignment, method-assign, misc]
    student.norm.eval()
    return by_hand(student, teacher, batches, 2.0, 0.5)


def test_nothing_happens_before_the_first_event_and_the_teacher_is_left_alone() -> None:
    plain, without = run(pruning(1, filters=0.5))
    distillation = Distillation()
    taught, watch = run(pruning(1, filters=0.5), distillation)
    assert same(without.ends[0], watch.ends[0])
    assert not same(without.ends[1], watch.ends[1])
    teacher = distillation.teacher
    assert teacher is not None
    assert same(teacher, watch.ends[0])
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    slots = [p for group in taught.trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in slots} == {id(p) for p in taught.parameters()}
    assert taught.state_dict().keys() == plain.state_dict().keys()
    assert "training_step" not in vars(taught)
    assert not any(module._forward_hooks for root in (taught, teacher) for module in root.modules())


def test_a_second_event_keeps_the_first_teacher() -> None:
    distillation = Distillation()
    module, watch = run(pruning((1, 2), filters=0.4), distillation, epochs=3)
    assert distillation.teacher is not None
    assert same(distillation.teacher, watch.ends[0])
    assert module.net.stem.out_channels < watch.ends[1].stem.out_channels < 12


def test_an_event_before_any_training_and_a_quick_try() -> None:
    for schedule, options in ((0, {}), (1, {"fast_dev_run": True})):
        distillation = Distillation()
        torch.manual_seed(1)
        module = TinyModule()
        before = copy.deepcopy(module.net)
        run(pruning(schedule, filters=0.5), distillation, module=module, epochs=2, **options)
        assert distillation.teacher is not None
        assert same(distillation.teacher, before)
        assert module.net.stem.out_channels == 6


@pytest.mark.parametrize("start", [1, *(pytest.param(start, marks=pytest.mark.slow) for start in (0, 2))])
def test_a_resumed_run_ends_bit_identical(start: int, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        return [Distillation(hints=["conv1"]), pruning((1, 3), filters=0.4), saver]

    def fit(**options: Any) -> TinyModule:
        pl.seed_everything(1, verbose=False)
        module = TinyModule()
        data = DataLoader(images(), 8, shuffle=False)
        trainer(*callbacks(), epochs=4, enable_checkpointing=True).fit(module, data, **options)
        return module

    whole = fit()
    resumed = fit(ckpt_path=tmp_path / f"epoch={start}.ckpt")
    assert same(whole, resumed)


def test_a_teacher_that_was_pruned_before_and_buffers_that_no_state_dict_holds(tmp_path: Path) -> None:
    class Net(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.rand(12) + 1, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.scale.sum()

    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    first, second = Distillation(), Distillation()
    options = {"module": TinyModule(net=Net()), "enable_checkpointing": True}
    run(first, pruning(1, filters=0.5), saver, **options)
    again = trainer(second, pruning(1, filters=0.5), epochs=3)
    again.fit(TinyModule(net=Net()), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert first.teacher is not None
    assert second.teacher is not None
    assert same(first.teacher, second.teacher)
    assert torch.equal(first.teacher.scale, second.teacher.scale)


def test_a_teacher_of_another_architecture_is_refused() -> None:
    distillation = Distillation()
    distillation.load_state_dict({"teacher": {"stem.weight": torch.zeros(1)}, "plan": {}})
    with pytest.raises(CheckpointError, match="teacher in the checkpoint"):
        run(pruning(1, filters=0.5), distillation)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_of_the_run_is_the_teachers(precision: str) -> None:
    distillation = Distillation(3.0, 0.7)
    data = DataLoader(images(), 8)
    _, watch = run(pruning(1, filters=0.5), distillation, data=data, precision=precision)
    student, gradients = watch.steps[3]
    x, y = next(iter(data))
    x = x.to(next(student.parameters()).dtype)
    wanted = by_hand(student, watch.ends[0], [(x, y)], 3.0, 0.7)
    assert_close(
        gradients,
        wanted,
        rtol=0.1 if precision == "bf16-mixed" else 1e-9,
        atol=0.02 if precision == "bf16-mixed" else 1e-9,
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["net", "in place", "module"])
@pytest.mark.parametrize("hints", [(), ("conv1",)], ids=["", "hints"])
def test_compiled_networks(way: str, hints: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"backend": "aot_eager", "dynamic": False}
    torch.manual_seed(1)
    module, plain = TinyModule(), TinyModule()
    plain.load_state_dict(module.state_dict())
    given: Any = module
    if way == "module":
        given = torch.compile(module, **options)
    elif way == "net":
        module.net = torch.compile(module.net, **options)  # type: ignore[assignment]
    else:
        module.net.compile(**options)
    watches = []
    for net in (given, plain):
        watches.append(run(pruning(1, filters=0.5), Distillation(3.0, 0.7, hints=hints), module=net)[1])
    for (_, compiled), (_, eager) in zip(watches[0].steps, watches[1].steps, strict=True):
        assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def test_hints_compare_where_layers_are_active_whatever_their_widths() -> None:
    hinted = Distillation(4.0, 0.5, hints=["conv1", "stem"], hint_weight=10.0)
    _, watch = run(pruning(1, filters=0.5), hinted)
    student, gradients = watch.steps[3]
    x, y = next(iter(loader()))
    seen: list[dict[str, Tensor]] = []
    student, teacher = copy.deepcopy(student).train(), copy.deepcopy(watch.ends[0]).eval()
    student.zero_grad()
    for network in (student, teacher):
        maps: dict[str, Tensor] = {}
        for name in ("conv1", "stem"):
            layer = network.get_submodule(name)
            layer.register_forward_hook(lambda _, args, out, maps=maps, name=name: maps.__setitem__(name, out))
        seen.append(maps)
    ours, theirs = student(x), teacher(x).detach()
    loss = 0.5 * F.cross_entropy(ours, y) + 0.5 * soft_targets(ours, theirs, 4.0)
    for name in ("conv1", "stem"):
        a, b = (maps[name].square().mean(1).flatten(1) for maps in seen)
        a, b = a / a.norm(dim=1, keepdim=True), (b / b.norm(dim=1, keepdim=True)).detach()
        loss = loss + 10 / 2 * (a - b).square().sum(1).mean()
    loss.backward()
    assert_close(gradients, {name: p.grad for name, p in student.named_parameters()}, rtol=1e-3, atol=1e-5)


def test_outputs_in_tuples_and_dicts_and_regression() -> None:
    class Net(TinyNet):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "size": x.shape[0]}

    class Module(TinyModule):
        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0])["logits"], batch[1])

    with pytest.raises(ConfigurationError, match="returns a dict; say with output="):
        run(pruning(1, filters=0.5), Distillation(), module=Module(net=Net()))
    with pytest.raises(ConfigurationError, match="output='logit' is not in the dict"):
        run(pruning(1, filters=0.5), Distillation(output="logit"), module=Module(net=Net()))
    torch.manual_seed(1)
    module = Module(net=Net())
    _, watch = run(pruning(1, filters=0.5), Distillation(weight=1.0, loss="mse", output="logits"), module=module)
    student, gradients = watch.steps[3]
    student.train().zero_grad()
    x = next(iter(loader()))[0]
    F.mse_loss(student(x)["logits"], watch.ends[0].eval()(x)["logits"].detach()).backward()
    wanted = {name: p.grad for name, p in student.named_parameters()}
    assert_close(gradients, wanted, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    def refused(message: str, *callbacks: Any, module: Any = None, error: type[Exception] = ConfigurationError) -> None:
        module = TinyModule() if module is None else module
        with pytest.raises(error, match=message):
            run(*callbacks, module=module)
        assert "training_step" not in vars(module)
        assert not any(part._forward_hooks for part in module.modules())

    class Manual(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    class Elsewhere(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net.head.weight.square().sum()

    cut = pruning(1, filters=0.5)
    refused(
        "Manual optimizes by hand: add infoprune.callbacks.distillation.soft_targets",
        cut,
        Distillation(),
        module=Manual(),
    )
    refused("Distillation works with FilterPruning, and the Trainer has none", Distillation())
    refused("module='net' does not say which FilterPruning is meant; there is None", cut, Distillation(module="net"))
    refused("Elsewhere does not call the network", cut, Distillation(), module=Elsewhere())
    refused("hints name 'conf1', which TinyNet does not have, did you mean 'conv1'", cut, Distillation(hints=["conf1"]))
    refused(r"the hint 'head' has shape \(8, 3\); hints compare activations", cut, Distillation(hints="head"))
    for options, message in (
        ({"weight": 1.5}, "weight must be a number of at least 0 and at most 1"),
        ({"temperature": 0}, "temperature must be"),
        ({"loss": "kll"}, "did you mean 'kl'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Distillation(**options)


def test_losses_of_equal_outputs_are_zero_and_never_negative() -> None:
    a, b = torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3)
    assert soft_targets(a, a, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert soft_targets(a, b, 2.0) > 0
    assert attention(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
    assert attention(a, b) > 0
