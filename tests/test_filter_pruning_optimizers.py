"""What an optimizer knows follows the channels: parameters, state, groups, learning rates."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, lr_scheduler

from infoprune.errors import SurgeryError
from tests.tiers import thinned
from tests.tiny import Sound, TinyModule, TinyNet, loader, pruning, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class Watch(pl.Callback):
    """Notes what surrounds an event; one stands before FilterPruning and one behind."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.weights: dict[str, torch.Tensor] = {}
        self.state: dict[str, dict[str, Any]] = {}
        self.objects: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch != self.epoch:
            return
        names = {p: name for name, p in pl_module.named_parameters()}
        self.weights = {name: p.detach().clone() for p, name in names.items()}
        for optimizer in trainer.optimizers:
            self.objects += [id(optimizer), id(optimizer.param_groups), *map(id, optimizer.param_groups)]
            for parameter, state in optimizer.state.items():
                self.state[names[parameter]] = {
                    key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()
                }


OPTIMIZERS = [
    partial(make, lr=0.01, **how, **options)
    for make, options in [
        (SGD, {"momentum": 0.9}),
        (SGD, {"momentum": 0.9, "nesterov": True}),
        (Adam, {}),
        (AdamW, {"amsgrad": True}),
        (RMSprop, {"momentum": 0.9, "centered": True}),
        (Adagrad, {}),
    ]
    for how in ({"foreach": False}, {"foreach": True}, {"fused": True})
    if make is not RMSprop or "fused" not in how
]


def label(make: Any) -> str:
    return "-".join([make.func.__name__, *(f"{k}={v}" for k, v in make.keywords.items() if k != "lr")])


@pytest.mark.parametrize("make", thinned(OPTIMIZERS), ids=label)
def test_state_follows_its_channels(make: Any) -> None:
    """Traps 1 and 2: fused optimizers accept state of a wrong shape and read wrong memory; stale parameters stay
    silently frozen. So: every optimizer parameter is a model parameter, the state *values* are those of the kept
    channels, optimizer and groups are the same objects, and cut weights move in the next step."""
    before, after, sound = Watch(), Watch(), Sound()
    module = TinyModule(make)
    callback = pruning((1, 2), filters=0.5)
    run = trainer(before, callback, after, sound)
    run.fit(module, loader())

    assert sound.events == 2
    assert before.objects == after.objects
    event = callback.history[0]
    assert 0 < len(event.kept["stem"]) < 12
    assert 0 < len(event.kept["conv1"]) < 12
    stream, inner = torch.tensor(event.kept["stem"]), torch.tensor(event.kept["conv1"])
    cuts = {
        "net.stem.weight": [stream],
        "net.norm.bias": [stream],
        "net.conv1.weight": [inner, stream],
        "net.conv2.weight": [stream, inner],
        "net.conv2.bias": [stream],
    }
    for name, indices in cuts.items():
        assert torch.equal(after.weights[name], cut(before.weights[name], indices))
        assert after.state[name].keys() == before.state[name].keys()
        for key, value in before.state[name].items():
            if torch.is_tensor(value) and value.dim():
                assert torch.equal(after.state[name][key], cut(value, indices)), (name, key)
            else:
                assert after.state[name][key] == value, (name, key)
    for name, parameter in module.named_parameters():
        assert parameter.shape != after.weights[name].shape or not torch.equal(parameter, after.weights[name]), name


def cut(tensor: torch.Tensor, indices: list[torch.Tensor]) -> torch.Tensor:
    for dim, index in enumerate(indices):
        tensor = tensor.index_select(dim, index)
    return tensor


SCHEDULERS = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=1, gamma=0.5),
    "Cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=3),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "OneCycle": lambda o: {
        "scheduler": lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9),
        "interval": "step",
    },
    "Plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9),
        "monitor": "val/loss",
    },
}


@pytest.mark.parametrize("name", thinned(SCHEDULERS))
def test_learning_rate_is_that_of_an_unpruned_run(name: str) -> None:
    """Trap 2: a scheduler that is left with a replaced optimizer steps in vain."""

    def rates(*callbacks: pl.Callback) -> list[float]:
        seen: list[float] = []
        schedulers = []

        class Rates(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
                seen.append(trainer.optimizers[0].param_groups[0]["lr"])
                schedulers.append(trainer.lr_scheduler_configs[0].scheduler)
                assert schedulers[-1] is schedulers[0]
                assert schedulers[0].optimizer is trainer.optimizers[0]

        run = trainer(*callbacks, Rates())
        run.fit(TinyModule(scheduler=SCHEDULERS[name]), loader(), loader())
        return seen

    assert rates(pruning((1, 2))) == rates()


def test_parameter_groups_keep_their_options() -> None:
    """Several groups, as with weight decay on weights only, keep their members' roles and options."""

    def optimizer(parameters: Any) -> Optimizer:
        every = list(parameters)
        return AdamW(
            [
                {"params": [p for p in every if p.dim() > 1], "weight_decay": 0.1},
                {"params": [p for p in every if p.dim() == 1], "weight_decay": 0.0, "lr": 0.001},
            ],
            lr=0.01,
        )

    module, sound = TinyModule(optimizer), Sound()
    run = trainer(pruning((1, 2)), sound)
    run.fit(module, loader())
    decayed, plain = run.optimizers[0].param_groups
    assert sound.events == 2
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in plain["params"])
    assert (decayed["weight_decay"], plain["weight_decay"], plain["lr"]) == (0.1, 0.0, 0.001)


class OwnMomentum(Optimizer):
    """An optimizer that PyTorch does not have, with state of the parameter's shape."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    velocity.mul_(0.9).add_(p.grad)
                    p.sub_(velocity, alpha=group["lr"])
        return loss


class Factored(OwnMomentum):
    """Keeps one number a row, as Adafactor does."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["row"] = torch.ones(p.shape[0], *[1] * (p.dim() - 1))
        return loss


def test_unknown_optimizer_with_state_of_the_parameters_shape_works() -> None:
    sound = Sound()
    trainer(pruning((1, 2)), sound).fit(TinyModule(OwnMomentum), loader())
    assert sound.events == 2


def test_unknown_state_is_refused_by_name_and_nothing_changes() -> None:
    """State that nobody knows how to cut must not be dropped or kept with the wrong shape."""
    module = TinyModule(Factored)
    with pytest.raises(
        SurgeryError, match=r"Factored keeps .*\['row'\] in shape \(12, 1, 1, 1\), and the parameter has"
    ):
        trainer(pruning((1, 2))).fit(module, loader())
    assert widths(module) == widths(TinyModule())


def test_factored_and_flat_optimizers_are_refused_before_training() -> None:
    """Adafactor and LBFGS: told when the fit starts, not at the event."""
    for make in (torch.optim.LBFGS, torch.optim.Adafactor):
        with pytest.raises(SurgeryError, match=f"{make.__name__} .* SGD, Adam"):
            trainer(pruning(1), epochs=2).fit(TinyModule(make), loader())


class TwoNets(pl.LightningModule):
    """A GAN's shape: two networks, two optimizers, manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = TinyNet(), TinyNet(inner=8)
        self.unrelated = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maker(x)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        for optimizer, net in ((first, self.maker), (second, self.judge)):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        rest = [*self.judge.parameters(), *self.unrelated.parameters()]
        return SGD(self.maker.parameters(), lr=0.05, momentum=0.9), AdamW(rest, lr=0.01)


def test_two_callbacks_prune_two_networks_under_manual_optimization() -> None:
    """Issue of order and conflicts: two FilterPruning callbacks on different parts work, each with its own state."""
    module, sound = TwoNets(), Sound()
    maker = pruning((1, 2), module="maker")
    judge = pruning(2, module="judge", example_inputs=[2, 3, 8, 8], filters=0.75)
    trainer(maker, judge, sound).fit(module, loader())
    assert sound.events == 2
    assert (len(maker.history), len(judge.history)) == (2, 1)
    assert widths(module.judge) == [9, 6, 9, 3]
    assert maker.state_key != judge.state_key


def test_two_callbacks_on_the_same_part_are_refused() -> None:
    from infoprune.errors import ConfigurationError

    for parts in [(None, "maker"), ("maker", "maker"), ("maker", "maker.conv1")]:
        callbacks = [pruning(1, module=part) for part in parts]
        with pytest.raises((ConfigurationError, RuntimeError), match=r"two FilterPruning|same state|stateful callback"):
            trainer(*callbacks, epochs=2).fit(TwoNets(), loader())
