"""Projects in the manner of public ones run with the callback line alone, and with their own scripts afterwards."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import infoprune
from infoprune import FilterPruning
from infoprune.marker import is_marker
from tests.projects import strangers
from tests.tiers import slow, thinned
from tests.tiny import TinyNet, loader, sgd, trainer, widths


def hydra() -> strangers.HydraProject:
    return strangers.HydraProject(TinyNet(16, 16), functools.partial(torch.optim.SGD, lr=0.1))


PROJECTS: dict[str, Any] = {
    "detection": strangers.DetectionProject,
    "segmentation": strangers.PetProject,
    "volumes": strangers.VolumeProject,
    "byol": strangers.ByolProject,
    "gan": strangers.GanProject,
    "average": strangers.AverageProject,
    "separation": strangers.SeparationProject,
    "hydra": hydra,
}


def line() -> FilterPruning:
    return FilterPruning("l1", macs=0.5, schedule=[1], round_to=1)


LONG = ("detection", "volumes")


@pytest.mark.parametrize("name", [*thinned(name for name in PROJECTS if name not in LONG), *map(slow, LONG)])
def test_a_project_is_pruned_with_the_line_alone(name: str) -> None:
    torch.manual_seed(0)
    module, callback = PROJECTS[name](), line()
    before = sum(parameter.numel() for parameter in module.parameters())
    fit = trainer(callback, epochs=3)
    fit.fit(module)
    assert callback.unpruned is not None
    assert 0.3 < callback.history[-1].macs / callback.unpruned.macs <= 0.5
    assert sum(parameter.numel() for parameter in module.parameters()) < before
    held = {id(p) for optimizer in fit.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert held <= {id(parameter) for parameter in module.parameters()}


def test_momentum_copies_lose_what_their_originals_lose() -> None:
    module = strangers.ByolProject()
    trainer(line(), epochs=3).fit(module)
    gone = infoprune.plan_of(module).removed
    for name in ("backbone.0.0.weight", "backbone.1.0.weight", "projection_head.0.weight"):
        part, _, rest = name.partition(".")
        assert gone.get(name) == gone.get(f"{part}_momentum.{rest}")
    assert gone["backbone.1.0.weight"]
    assert widths(module.projection_head)[-1] == 12  # the loss compares it with the prediction


def by_name(average: nn.Module, online: nn.Module) -> None:
    state = {name: value * 0.9 + online.state_dict()[name] * 0.1 for name, value in average.state_dict().items()}
    average.load_state_dict(state)


def on_lists(average: nn.Module, online: nn.Module) -> None:
    copies = list(average.parameters())
    torch._foreach_mul_(copies, 0.9)
    torch._foreach_add_(copies, list(online.parameters()), alpha=0.1)


def interpolated(average: nn.Module, online: nn.Module) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(online.parameters()), 0.1)


def through_data(average: nn.Module, online: nn.Module) -> None:
    for ours, theirs in zip(average.parameters(), online.parameters(), strict=True):
        ours.data.mul_(0.9).add_(theirs.detach().data, alpha=0.1)


@pytest.mark.parametrize(
    "update", [by_name, *(pytest.param(way, marks=pytest.mark.slow) for way in (on_lists, interpolated, through_data))]
)
def test_copies_follow_however_they_are_updated(update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def update_momentum(_: Any, online: nn.Module, average: nn.Module) -> None:
        with torch.no_grad():
            update(average, online)

    monkeypatch.setattr(strangers.ByolProject, "update_momentum", update_momentum)
    module = strangers.ByolProject()
    trainer(line(), epochs=3).fit(module)
    assert widths(module.backbone) == widths(module.backbone_momentum) != widths(strangers.ByolProject().backbone)


def test_an_average_for_evaluation_stays_the_same_network() -> None:
    module = strangers.AverageProject()
    trainer(line(), epochs=3).fit(module)
    gone = infoprune.plan_of(module).removed
    assert gone["online.0.0.weight"] == gone["average.0.0.weight"]
    assert widths(module.online) == widths(module.average) != widths(strangers.AverageProject().online)


def test_only_the_generator_of_a_gan_loses_filters() -> None:
    module = strangers.GanProject()
    trainer(line(), epochs=2).fit(module)
    assert widths(module.discriminator) == widths(strangers.GanProject().discriminator)


def test_an_optimizer_of_the_constructor_trains_the_resumed_model(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(line(), keep, epochs=2, enable_checkpointing=True).fit(strangers.SeparationProject())
    module = strangers.SeparationProject()
    fit = trainer(line(), epochs=4)
    fit.fit(module, ckpt_path=tmp_path / "epoch=1.ckpt")
    stored = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    assert all(not torch.equal(parameter, stored[name]) for name, parameter in module.named_parameters())


def test_an_optimizer_of_another_model_is_refused_when_the_fit_starts() -> None:
    module = hydra()
    stranger = sgd(TinyNet().parameters())
    module.configure_optimizers = lambda: stranger  # type: ignore[method-assign]
    with pytest.raises(infoprune.errors.ConfigurationError, match=r"parameters that are not .* configure_optimizers"):
        trainer(line(), epochs=2).fit(module)


class TestTheProjectsOwnScripts:
    """A Trainer without the callback, load_from_checkpoint, torch.load and load_state_dict."""

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("run")
        keep = ModelCheckpoint(folder, filename="last")
        trainer(line(), keep, epochs=2, enable_checkpointing=True).fit(hydra())
        return folder / "last.ckpt"

    def test_a_trainer_without_the_callback_tests_the_pruned_model(self, checkpoint: Path) -> None:
        module = hydra()
        trainer().test(module, ckpt_path=checkpoint, verbose=False, weights_only=False)
        assert widths(module) != widths(hydra())

    def test_load_from_checkpoint_of_the_class(self, checkpoint: Path) -> None:
        module = strangers.HydraProject.load_from_checkpoint(checkpoint, net=TinyNet(16, 16), weights_only=False)
        assert widths(module) != widths(hydra())

    def test_load_state_dict(self, checkpoint: Path) -> None:
        module = hydra()
        module.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
        assert widths(module) != widths(hydra())

    def test_a_state_dict_with_other_names(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, weights_only=False)["state_dict"]
        net = TinyNet(16, 16)
        net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
        assert widths(net) != widths(TinyNet(16, 16))

    def test_a_state_dict_that_has_lost_the_plan_is_refused_with_the_way_out(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, weights_only=False)["state_dict"]
        inner = {name.removeprefix("net."): tensor for name, tensor in state.items() if not is_marker(name)}
        with pytest.raises(RuntimeError, match=r"infoprune\.load_from_checkpoint, or call infoprune\.attach"):
            TinyNet(16, 16).load_state_dict(inner)


def test_best_and_last_are_of_the_final_shape(tmp_path: Path) -> None:
    class Falling(pl.Callback):
        def on_validation_epoch_end(self, fit: Any, module: Any) -> None:
            module.log("score", 1.0 - 0.1 * fit.current_epoch)

    module = hydra()
    module.validation_step = lambda *_: None  # type: ignore[assignment]
    keep = ModelCheckpoint(tmp_path, monitor="score", mode="max", save_last=True)
    trainer(Falling(), keep, line(), epochs=3, enable_checkpointing=True).fit(module, val_dataloaders=loader())
    for path in (keep.best_model_path, keep.last_model_path):
        state = torch.load(path, weights_only=False)["state_dict"]
        assert state["net.conv1.weight"].shape == module.net.conv1.weight.shape


def test_a_list_of_weights_for_a_penalty_follows() -> None:
    module = hydra()
    module.penalised = [p for p in module.net.parameters() if p.dim() == 4]
    trainer(line(), epochs=2).fit(module)
    own = {id(parameter) for parameter in module.parameters()}
    assert all(id(parameter) in own for parameter in module.penalised)


def test_watching_a_step_leaves_nothing_behind() -> None:
    """Weights, running statistics, lists of the module and random numbers are as without the callback."""

    class Twin(strangers.PetProject):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 0:
                self.first = {name: tensor.clone() for name, tensor in self.state_dict().items()}
                self.seen = len(self.outputs), torch.random.get_rng_state()

    torch.manual_seed(3)
    plain, watched = Twin(), Twin()
    watched.load_state_dict(plain.state_dict())
    for module, callbacks in ((plain, []), (watched, [line()])):
        torch.manual_seed(4)
        trainer(*callbacks, epochs=2).fit(module)
    assert all(torch.equal(plain.first[name], watched.first[name]) for name in plain.first)
    assert plain.seen[0] == watched.seen[0] == 0
    assert torch.equal(plain.seen[1], watched.seen[1])


def test_a_frozen_norm_is_no_copy() -> None:
    module = hydra()
    module.spare = nn.BatchNorm2d(16).requires_grad_(False)
    callback = line()
    trainer(callback, epochs=2).fit(module)
    assert len(callback.history) == 1
