"""Buffers and dicts of tensors that a fit adds late (EWC): their checkpoints load wherever plain ones would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import infoprune
from tests.tiny import TinyModule, TinyNet, loader, pruning, same, trainer, widths

pytestmark = pytest.mark.usefixtures("one_thread")


class Remembers(TinyModule):
    """Adds buffers at the end of an epoch: what each weight was, and how much it counts. A penalty keeps them near."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.after = after

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == self.after:
            for name, parameter in self.net.named_parameters():
                self.register_buffer(f"old_{name.replace('.', '_')}", parameter.detach().clone())
                self.register_buffer(f"fisher_{name.replace('.', '_')}", parameter.detach() ** 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        for name, parameter in self.net.named_parameters():
            stem = name.replace(".", "_")
            if hasattr(self, f"old_{stem}"):
                loss = loss + (getattr(self, f"fisher_{stem}") * (parameter - getattr(self, f"old_{stem}")) ** 2).sum()
        return loss


class Restores(Remembers):
    """Makes the buffers of a checkpoint before its weights are loaded."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint["state_dict"].items():
            if name.startswith(("old_", "fisher_")):
                self.register_buffer(name, torch.zeros_like(value))


class RestoresByShape(Remembers):
    """Makes them anew in the shapes of the weights as they are."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, parameter in self.net.named_parameters():
            for kind in ("old", "fisher"):
                key = f"{kind}_{name.replace('.', '_')}"
                if key in checkpoint["state_dict"]:
                    self.register_buffer(key, torch.zeros_like(parameter))


class Passes(Remembers):
    """Does without the buffers of a checkpoint."""

    strict_loading = False  # type: ignore[assignment]


def fitted(folder: Path, kind: type[Remembers], after: int, *callbacks: Any) -> Remembers:
    torch.manual_seed(1)
    module, keep = kind(after), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer(*callbacks, keep, epochs=4, enable_checkpointing=True).fit(module, loader())
    return module


# A checkpoint of before the event and of after it; where both go the same way, one of them is among the slow tests.
MORE = [pytest.param(*case, marks=pytest.mark.slow) for case in ((Restores, 1), (RestoresByShape, 0))]
BEFORE_AND_AFTER = pytest.mark.parametrize("after", [0, pytest.param(1, marks=pytest.mark.slow)])


@pytest.mark.parametrize(("kind", "after"), [(Restores, 0), (RestoresByShape, 1), *MORE])
def test_a_project_that_makes_its_buffers_when_it_loads_resumes(
    kind: type[Remembers], after: int, tmp_path: Path
) -> None:
    whole = fitted(tmp_path, kind, after, pruning((1, 3)))
    assert whole.old_stem_weight.shape == whole.net.stem.weight.shape
    module = kind(after)
    trainer(pruning((1, 3)), epochs=4).fit(module, loader(), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert same(module, whole)
    assert widths(module) != widths(TinyNet())
    last = tmp_path / "epoch=3.ckpt"
    assert same(infoprune.load_from_checkpoint(kind, last), whole)
    if kind is Restores or after == 0:  # else the buffers are made before anything tells what the weights have lost
        assert same(kind.load_from_checkpoint(last), whole)
    tested = kind()
    trainer(pruning((1, 3))).test(tested, loader(), ckpt_path=last, verbose=False)
    assert same(tested, whole)
    tested.load_state_dict(Remembers().state_dict(), strict=False)
    assert widths(tested) == widths(TinyNet())


@BEFORE_AND_AFTER
def test_a_project_that_passes_over_unknown_keys_loads(after: int, tmp_path: Path) -> None:
    whole = fitted(tmp_path, Passes, after, pruning((1,)))
    path = tmp_path / "epoch=2.ckpt"
    weights = whole.net.state_dict().keys()
    for module in (Passes.load_from_checkpoint(path), infoprune.load_from_checkpoint(Passes, path)):
        assert widths(module) == widths(whole)
        assert module.net.state_dict().keys() == weights
    module = Passes(after=9)
    trainer(pruning((1,)), epochs=4).fit(module, loader(), ckpt_path=path)
    assert widths(module) == widths(whole)


@BEFORE_AND_AFTER
def test_a_strict_project_gets_the_error_of_pytorch(after: int, tmp_path: Path) -> None:
    fitted(tmp_path / "plain", Remembers, after)
    fitted(tmp_path / "pruned", Remembers, after, pruning((1,)))

    def told(name: str, *callbacks: pl.Callback) -> str:
        with pytest.raises(RuntimeError, match="Unexpected key") as error:
            trainer(*callbacks, epochs=4).fit(Remembers(), loader(), ckpt_path=tmp_path / name / "epoch=2.ckpt")
        return str(error.value)

    assert told("plain") == told("pruned", pruning((1,)))
    for load in (Remembers.load_from_checkpoint, lambda path: infoprune.load_from_checkpoint(Remembers, path)):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            load(tmp_path / "pruned" / "epoch=2.ckpt")


class InAnEntry(TinyModule):
    """Keeps what each weight was in a dict, which it writes into an entry of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.old: dict[str, Tensor] = {}

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 0:
            self.old = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pairs = [(parameter, self.old.get(name)) for name, parameter in self.net.named_parameters()]
        return self.loss(batch) + sum((new - old).square().sum() for new, old in pairs if old is not None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["old"] = dict(self.old)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.old = dict(checkpoint["old"])


def test_tensors_in_an_entry_of_the_checkpoint_are_there_when_it_resumes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, keep = InAnEntry(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning((1, 3)), keep, epochs=4, enable_checkpointing=True).fit(whole, loader())
    for epoch in (0, 2):
        module = InAnEntry()
        trainer(pruning((1, 3)), epochs=4).fit(module, loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(module, whole)
        assert all(torch.equal(module.old[name], old) for name, old in whole.old.items())
        assert module.old["stem.weight"].shape == module.net.stem.weight.shape


class Renamed(pl.LightningModule):
    """A later version of a project, whose network has another name; its hook renames the weights of old checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyNet()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("net.")]:
            state["model." + name.removeprefix("net.")] = state.pop(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    test_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class RenamedAnew(Renamed):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("net.", "model."): value for name, value in weights.items()}


@pytest.mark.parametrize("kind", [Renamed, RenamedAnew])
def test_a_project_that_renames_the_weights_of_a_checkpoint_resumes(kind: type[Renamed], tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, keep = TinyModule(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning((1,)), keep, enable_checkpointing=True).fit(whole, loader())
    path, module = tmp_path / "epoch=1.ckpt", kind()
    trainer(pruning((1,))).fit(module, loader(), ckpt_path=path)
    assert same(module.model, whole.net)
    assert infoprune.plan_of(module).shapes.keys() == {f"model.{name}" for name in infoprune.plan_of(whole.net).shapes}
    assert widths(infoprune.load_from_checkpoint(kind, path)) == widths(whole)
