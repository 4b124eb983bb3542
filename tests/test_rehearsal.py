"""Before the first batch a fit tries its cut: what an event would refuse is refused there, and nothing is changed."""

from __future__ import annotations

import copy
import threading
from collections import deque
from enum import Enum
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

import infoprune
from infoprune import FilterPruning
from infoprune.callbacks.engine.fit_cut import FitCut
from infoprune.callbacks.engine.outside_state import OutsideState
from infoprune.errors import SurgeryError
from tests.tiny import TinyModule, TinyNet, averaging, loader, sgd, trainer, widths


class Steps(TinyModule):
    """Counts its training steps."""

    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


class Flat(Steps):
    """Compares all weights as one vector, from the fit's start on."""

    def on_train_start(self) -> None:
        self.first = self.flat().detach().clone()

    def flat(self) -> Tensor:
        return torch.cat([parameter.flatten() for parameter in self.net.parameters()])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch) + (self.flat() - self.first).pow(2).sum()


class FixedView(Steps):
    """Draws the feature maps of its stem in validation, always in a grid of three by four."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net.stem(batch[0]).unflatten(1, (3, 4))


def line(**options: Any) -> FilterPruning:
    return FilterPruning("l1", macs=0.5, schedule=[2], round_to=1, **options)


@pytest.mark.parametrize(
    ("module", "step"), [(Flat(), "training step of Flat"), (FixedView(), "validation step of FixedView")]
)
def test_a_step_that_cannot_follow_is_refused_before_the_first_batch(module: Steps, step: str) -> None:
    first = copy.deepcopy(module.state_dict())
    kept = {name: (id(p), p.data_ptr()) for name, p in module.named_parameters()}
    with pytest.raises(SurgeryError, match=rf"{step} fails once .* Nothing was changed"):
        trainer(line()).fit(module, loader(), loader())
    assert module.steps == 0
    assert infoprune.plan_of(module).is_empty
    assert {name: (id(p), p.data_ptr()) for name, p in module.named_parameters()} == kept
    assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())


def test_freezing_what_a_step_relies_on_is_the_way_out() -> None:
    module = FixedView()
    trainer(line(frozen=["stem"])).fit(module, loader(), loader())
    assert module.net.stem.out_channels == 12 > module.net.conv1.out_channels


class Average:
    """An average in a plain object, which the training step updates, with what else such objects keep."""

    def __init__(self, net: nn.Module) -> None:
        self.network = copy.deepcopy(net)
        self.shadow = {name: value.detach().clone() for name, value in net.named_parameters()}
        self.recent: deque[float] = deque(maxlen=3)
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module, loss: float) -> None:
        self.updates += 1
        self.recent.append(loss)
        for name, value in net.named_parameters():
            self.shadow[name].lerp_(value, 0.1)
        for ours, theirs in zip(self.network.parameters(), net.parameters(), strict=True):
            ours.data.mul_(0.5).add_(theirs, alpha=0.5)

    def numbers(self) -> list[Any]:
        tensors = [*self.shadow.values(), *self.network.parameters()]
        return [self.updates, list(self.recent), *(tensor.detach().clone() for tensor in tensors)]


class Busy(TinyModule):
    """Has state of every kind, and draws random numbers in both steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.average = Average(self.net)
        self.metrics = torchmetrics.MetricCollection(
            [torchmetrics.classification.MulticlassAccuracy(3), torchmetrics.classification.MulticlassF1Score(3)]
        )
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        outputs = self(nn.functional.dropout(images, 0.2))
        loss = nn.functional.cross_entropy(outputs, labels)
        self.metrics(outputs, labels)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        scheduler.step()
        self.seen.append(float(loss.detach()))
        self.average.update(self.net, self.seen[-1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.metrics.update(self(batch[0] + torch.rand_like(batch[0])), batch[1])
        self.seen.append(0.0)

    def configure_optimizers(self) -> Any:
        optimizer = sgd(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class Snapshot(pl.Callback):
    """Keeps all numbers of a fit at the end of its second epoch, before the event."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            assert isinstance(pl_module, Busy)
            optimizer = trainer.optimizers[0]
            momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in optimizer.param_groups[0]["params"]]
            average = trainer.callbacks[0]._average_model  # type: ignore[attr-defined]
            tensors = [*pl_module.state_dict().values(), *momenta, *average.state_dict().values(), torch.rand(3)]
            self.numbers = [
                *(tensor.clone() for tensor in tensors),
                *pl_module.average.numbers(),
                list(pl_module.seen),
                trainer.lr_scheduler_configs[0].scheduler.last_epoch,
                pl_module.metrics.compute(),
            ]


def test_a_rehearsal_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed, own = [], FitCut.rehearse

    def rehearse(self: FitCut, plan: infoprune.PruningPlan) -> None:
        own(self, plan)
        rehearsed.append(plan)

    monkeypatch.setattr(FitCut, "rehearse", rehearse)

    def numbers(*callbacks: pl.Callback) -> list[Any]:
        pl.seed_everything(1, verbose=False)
        snapshot = Snapshot()
        trainer(averaging(), snapshot, *callbacks).fit(Busy(), loader(), loader())
        return snapshot.numbers

    with_line, without = numbers(line(allocation="uniform")), numbers()
    assert rehearsed
    assert not rehearsed[0].is_empty
    assert len(with_line) == len(without)
    for first, second in zip(with_line, without, strict=True):
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second


class Ensemble(TinyModule):
    """Trains its members one by one, and validates them stacked."""

    def __init__(self) -> None:
        super().__init__(net=nn.ModuleList(TinyNet(16, 16) for _ in range(2)))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.net]).mean(0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        parameters, buffers = torch.func.stack_module_state(list(self.net))
        base = copy.deepcopy(self.net[0])

        def member(parameters: Any, buffers: Any) -> Tensor:
            return torch.func.functional_call(base, (parameters, buffers), (batch[0],))

        self.log("val/spread", torch.vmap(member)(parameters, buffers).std())


def test_members_of_an_ensemble_that_validation_stacks_keep_equal_widths() -> None:
    torch.manual_seed(0)
    module = Ensemble()
    trainer(line()).fit(module, loader(), loader())
    assert widths(module.net[0]) == widths(module.net[1]) != widths(TinyNet(16, 16))


def test_an_event_runs_each_step_once_on_the_cut_model() -> None:
    seen: list[tuple[str, list[int]]] = []

    class Noted(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(("training", widths(self.net)))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(("validation", widths(self.net)))
            super().validation_step(batch, batch_idx)

        def on_train_batch_start(self, *_: Any) -> None:
            if self.current_epoch == 2:
                self.trainer.should_stop = True
                seen.append(("fit", widths(self.net)))

    module = Noted()
    trainer(line(), epochs=3, limit_train_batches=1).fit(module, loader(), loader())
    after = seen[[kind for kind, _ in seen].index("fit")][1]
    behind = seen[: [kind for kind, _ in seen].index("fit")]
    assert after != widths(TinyNet())
    assert [kind for kind, now in behind if now == after] == ["training", "validation"]


def test_an_allocation_that_gives_stacked_members_other_widths_is_refused_at_the_start() -> None:
    torch.manual_seed(0)
    module = Ensemble()
    with pytest.raises(SurgeryError, match=r"step of Ensemble .*stack_module_state .* 'equal': True"):
        trainer(line(allocation="global")).fit(module, loader(), loader())
    assert infoprune.plan_of(module).is_empty


class Hinted(TinyModule):
    """Compares its inner features with those of an average outside of it, which follows after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.average = [copy.deepcopy(self.net)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hints = [net.conv1(net.stem(batch[0])) for net in (self.net, self.average[0])]
        return self.loss(batch) + (hints[0] - hints[1].detach()).pow(2).mean()

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for ours, theirs in zip(self.average[0].parameters(), self.net.parameters(), strict=True):
                ours.lerp_(theirs, 0.1)


def test_a_copy_that_training_has_yet_to_update_is_no_reason_to_refuse() -> None:
    module = Hinted()
    trainer(line(frozen=["conv1"], allocation="uniform")).fit(module, loader(), loader())
    assert widths(module.average[0]) == widths(module.net) != widths(TinyNet())


def test_the_allocation_that_the_refusal_names_works() -> None:
    module = Ensemble()
    trainer(line(allocation={"name": "uniform", "equal": True})).fit(module, loader(), loader())
    assert widths(module.net[0]) == widths(module.net[1]) != widths(TinyNet(16, 16))


class Kind(Enum):
    """One of two kinds."""

    FIRST = 1


class Worker:
    """Fills a queue while others may read it."""

    def __init__(self) -> None:
        self.lock, self.items = threading.Lock(), [1]


def test_code_and_what_threads_share_are_left_alone() -> None:
    module = nn.Module()
    module.kinds = [Kind.FIRST, Kind, threading, Worker, len]
    module.worker, module.notes, module.names = Worker(), {"a": [1]}, {1}
    with OutsideState(module).restored():
        module.worker.items.append(2)
        module.notes["a"].append(2)
        module.notes["b"] = []
        module.names.add(2)
        Worker.new = 1  # type: ignore[attr-defined]
    assert module.worker.items == [1, 2]
    assert (module.notes, module.names) == ({"a": [1]}, {1})
    assert Worker.new == 1  # type: ignore[attr-defined]


class Prototypes(TinyModule):
    """Pulls features towards prototypes of their size, whose gradients the step scales by hand."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(net=nn.Sequential(*layers))
        self.automatic_optimization = False
        self.head, self.prototypes = nn.Linear(12, 3), nn.Parameter(torch.randn(3, 12))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        features = self.net(batch[0])
        loss = nn.functional.cross_entropy(self.head(features), batch[1])
        loss = loss + (features - self.prototypes[batch[1]]).pow(2).mean()
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.prototypes.grad *= 2
        self.optimizers().step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/distance", torch.cdist(self.net(batch[0]), self.prototypes).min())


def test_a_step_that_goes_on_with_gradients_is_known() -> None:
    module = Prototypes()
    trainer(line(allocation="uniform")).fit(module, loader(), loader())
    assert module.net[0].out_channels < 12
    assert module.prototypes.shape[1] == module.net[2].out_channels
