"""FilterPruning on all kinds of modules and networks, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import infoprune
from infoprune import FilterPruning
from infoprune.criteria import L1
from infoprune.errors import ConfigurationError, SurgeryError
from tests.tiers import slow
from tests.tiny import Sound, TinyModule, TinyNet, images, loader, pruning, same, trainer, widths

# -- models -----------------------------------------------------------------------------------------------------------


class OddNet(nn.Module):
    """Depthwise, grouped, tied, frozen, one channel wide, with marks and hooks on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.tied = nn.Conv2d(8, 8, 1, bias=False)
        self.also_tied = nn.Conv2d(8, 8, 1, bias=False)
        self.also_tied.weight = self.tied.weight
        self.narrow = nn.Conv2d(8, 1, 1)
        self.still = nn.Conv2d(1, 6, 1).requires_grad_(False)
        self.head = nn.Linear(6, 3)
        self.tied.weight.my_mark = "kept"  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.grouped(self.depthwise(self.first(x))))
        x = self.also_tied(torch.relu(self.tied(x)))
        x = self.still(torch.relu(self.narrow(x)))
        return {"logits": self.head(torch.relu(x).mean((2, 3)))}


class OddModule(TinyModule):
    def __init__(self) -> None:
        super().__init__(net=OddNet())

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])


def test_odd_layers_ties_marks_and_hooks() -> None:
    """Trap 12: ``groups`` does not follow from shapes; a tie breaks unless every owner gets the same new parameter;
    frozen parameters stay frozen, marks and gradient hooks move to the new parameter; one channel stays one."""
    module, sound, calls = OddModule(), Sound(), []
    tied = module.net.tied.weight
    tied.register_hook(lambda grad: calls.append(tuple(grad.shape)))
    trainer(pruning((1,), filters=0.5), sound, epochs=2).fit(module, loader())
    net = module.net
    assert sound.events == 1
    assert net.tied.weight is net.also_tied.weight
    assert net.tied.weight is not tied
    assert net.tied.weight.my_mark == "kept"
    assert {tuple(tied.shape), tuple(net.tied.weight.shape)} == set(calls)
    assert net.depthwise.groups == net.depthwise.out_channels == net.first.out_channels < 8
    assert net.grouped.out_channels % net.grouped.groups == 0
    assert not net.still.weight.requires_grad
    assert net.still.out_channels < 6
    assert net.narrow.out_channels == 1


def test_synchronised_norms_follow(tmp_path: Any) -> None:
    """Trainer(sync_batchnorm=True) makes norms of another class, when a fit starts, and gives the old ones back in the
    end. They train on a GPU only, but shrink anywhere, and nobody forgets what they have lost."""
    from lightning.pytorch.plugins import TorchSyncBatchNorm

    net = TinyNet()
    infoprune.prune(net, torch.zeros(2, 3, 8, 8), "l1", filters=0.75)
    first = infoprune.plan_of(net)
    net = TorchSyncBatchNorm().apply(net)
    assert isinstance(net.norm, nn.SyncBatchNorm)
    assert infoprune.plan_of(net) == first
    infoprune.prune(net, torch.zeros(2, 3, 8, 8), "l1", filters=0.75)
    assert net.norm.num_features == net.norm.running_mean.shape[0] == 6
    assert net.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    net = TorchSyncBatchNorm().revert(net)
    assert not isinstance(net.norm, nn.SyncBatchNorm)
    infoprune.save(net, tmp_path / "net.pt")
    assert same(infoprune.load(tmp_path / "net.pt", TinyNet()), net)


def test_parametrized_layer_is_cut_where_its_weight_comes_from() -> None:
    """Trap 12: writing into a parametrized layer's weight is silently ignored."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 8), nn.Flatten())
    nn.utils.parametrizations.weight_norm(net[1])
    trainer(pruning((1,), filters=0.5), epochs=2).fit(TinyModule(net=net), loader())
    assert widths(net) == [4, 4, 4, 3]
    assert [tuple(tensor.shape) for tensor in net[1].parametrizations.weight.parameters()] == [
        (4, 1, 1, 1),
        (4, 4, 1, 1),
    ]


def test_validation_in_inference_mode_leaves_no_inference_tensor() -> None:
    """Trap 12: tensors that surgery makes must be trainable, whatever mode was on before."""
    module = TinyModule()
    callback = pruning((0,))
    run = trainer(callback, epochs=1)
    run.validate(module, loader(), verbose=False)
    run.fit(module, loader(), loader())
    run.test(module, loader(), verbose=False)
    assert not any(t.is_inference() for t in [*module.parameters(), *module.buffers()])
    trainer(pruning((0,), filters=0.75), epochs=1).fit(module, loader())


class NoForward(pl.LightningModule):
    """Many projects call self.net in their steps and write no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()
        self.metric = nn.Identity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    configure_optimizers = TinyModule.configure_optimizers
    make_scheduler = None

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters)


def test_module_without_forward() -> None:
    module, sound = NoForward(), Sound()
    trainer(pruning((1,)), sound, epochs=2).fit(module, loader())
    assert sound.events == 1
    two = NoForward()
    two.other = TinyNet()
    trainer(pruning((1,)), epochs=2).fit(two, loader())  # the training step tells what is run
    assert two.net.stem.out_channels < two.other.stem.out_channels == 12
    two = NoForward()
    two.other = TinyNet()
    with pytest.raises(ConfigurationError, match="no such submodule, did you mean 'net'"):
        trainer(pruning((1,), module="nett"), epochs=2).fit(two, loader())
    trainer(pruning((1,), module="other"), epochs=2).fit(two, loader())
    assert two.other.stem.out_channels < two.net.stem.out_channels == 12


class Preprocessing(TinyModule):
    """Several inputs, and parameters beside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.net(image * mask * self.scale)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0], torch.ones_like(batch[0])), batch[1])


def test_example_input_array_as_tuple_and_dict() -> None:
    """Lightning's own meanings: a tuple is positional arguments, a dict keyword arguments."""
    image = torch.zeros(2, 3, 8, 8)
    for example in [(image, image), {"image": image, "mask": image}]:
        module, sound = Preprocessing(), Sound()
        module.example_input_array = example
        trainer(pruning((1,)), sound, epochs=2).fit(module, loader())
        assert sound.events == 1
    module = Preprocessing()
    trainer(pruning((1,)), epochs=2).fit(module, loader())  # the training step tells the arguments
    assert module.net.stem.out_channels < 12
    module = Preprocessing()
    trainer(pruning((1,), example_inputs=[[1, 3, 8, 8], [1, 3, 8, 8]]), epochs=2).fit(module, loader())
    assert module.net.stem.out_channels < 12


class DictBatches(TinyModule):
    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])


def test_dict_batches_need_no_example_inputs() -> None:
    data = [{"image": image, "label": label} for image, label in images(8)]
    batches: Any = DataLoader(data, 4)  # type: ignore[arg-type]
    for options in ({}, {"example_inputs": torch.zeros(1, 3, 8, 8)}):
        module = DictBatches()
        trainer(pruning((1,), **options), epochs=2).fit(module, batches)
        assert module.net.stem.out_channels < 12


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Fresh data whenever it is asked for; asking too often would be noticed."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        for pair in images(8):
            self.given += 1
            yield pair


def test_streamed_data_is_left_alone() -> None:
    """Looking into a stream would take examples from it: the first batch that goes by must do."""
    stream, module = Stream(), TinyModule()
    callback = pruning((1,))
    trainer(callback, epochs=2).fit(module, DataLoader(stream, 4))
    assert stream.given == 16
    assert len(callback.history) == 1
    assert module.net.stem.out_channels < 12
    module = TinyModule()
    trainer(pruning((0,)), epochs=1).fit(module, DataLoader(Stream(), 4))
    assert module.net.stem.out_channels < 12


def test_a_criterion_that_looks_at_data_needs_data_that_can_be_looked_into() -> None:
    module = TinyModule()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigurationError, match="give the datamodule a method calibration_batches"):
        trainer(pruning((1,), criterion="hrank"), epochs=2).fit(module, DataLoader(Stream(), 4))


# -- compiled modules and configure_model -----------------------------------------------------------------------------


class Late(TinyModule):
    """Builds its network in configure_model, with or without the guard that Lightning asks for."""

    guarded = True

    def __init__(self) -> None:
        super().__init__()
        self.net = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.net is None or not self.guarded:
            self.net = TinyNet()


class Unguarded(Late):
    guarded = False


def test_configure_model_that_builds_anew_is_noticed() -> None:
    """Trap 10: without the guard, trainer.test rebuilds the unpruned network with random weights and says nothing."""
    run, module = trainer(pruning((1,)), epochs=2), Late()
    run.fit(module, loader())
    run.test(module, loader(), verbose=False)
    assert module.net.stem.out_channels < 12
    run, module = trainer(pruning((1,)), epochs=2), Unguarded()
    run.fit(module, loader())
    with pytest.raises(ConfigurationError, match=r"Unguarded no longer has the shape.*configure_model"):
        run.test(module, loader(), verbose=False)


TEN = [pytest.param(way, 8, 10, marks=pytest.mark.slow) for way in ("net", "module", "in place")]


@pytest.mark.parametrize(("way", "limit", "events"), [slow(("net", 2, 2)), *TEN])
def test_compiled_module_through_many_events(way: str, limit: int, events: int) -> None:
    """Trap 10: after 8 recompilations (or as many as are allowed) PyTorch silently goes back to eager; with fullgraph
    it raises. And ``torch.compile(net)`` hides the net behind ``_orig_mod``."""
    options: dict[str, Any] = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}
    module = TinyModule()
    given: Any = module
    if way == "module":
        given = torch.compile(module, **options)
    elif way == "net":
        module.net = torch.compile(module.net, **options)  # type: ignore[assignment]
    else:
        module.net.compile(**options)
    callback = FilterPruning("l1", filters=0.2, schedule=list(range(1, events + 1)))
    with torch._dynamo.config.patch(recompile_limit=limit):
        trainer(callback, epochs=events + 1, limit_train_batches=1).fit(given, loader(4))
    assert len(callback.history) == events
    assert [row.name for row in callback.history[0].layers] == ["stem", "conv1", "conv2", "head"]
    assert widths(module)[0] < 12


# -- what is refused --------------------------------------------------------------------------------------------------


def test_pruning_that_cannot_follow_is_refused() -> None:
    """Trap 9: ModelPruning parametrizes layers."""
    from lightning.pytorch.callbacks import ModelPruning

    with pytest.raises(ConfigurationError, match="ModelPruning"):
        trainer(pruning((1,)), ModelPruning("l1_unstructured", amount=0.5)).fit(TinyModule(), loader())


def test_sharded_strategies_are_refused_with_the_recipe() -> None:
    """Trap 9: FSDP, ModelParallel and DeepSpeed shard parameters; prune before wrapping."""
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    from infoprune.callbacks.trainer_checks import check_strategy

    for kind in (ModelParallelStrategy, FSDPStrategy, DeepSpeedStrategy):
        strategy = object.__new__(kind)  # making one asks for several GPUs, or for a package
        with pytest.raises(ConfigurationError, match=rf"{kind.__name__} .*configure_model.*infoprune\.load"):
            check_strategy(SimpleNamespace(strategy=strategy), TinyModule())  # type: ignore[arg-type]


def test_stateful_communication_hooks_are_refused() -> None:
    """PowerSGD keeps error feedback in buffers of the old shapes."""
    from lightning.pytorch.strategies import DDPStrategy
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    from infoprune.callbacks.trainer_checks import check_strategy

    strategy = DDPStrategy(ddp_comm_state=PowerSGDState(process_group=None))
    with pytest.raises(ConfigurationError, match="keeps a PowerSGDState with buffers of the old shapes"):
        check_strategy(trainer(strategy=strategy, devices=2), TinyModule())


class Faulty(L1):
    """Scores once and then fails."""

    def layer_scores(self, *args: Any) -> Any:
        raise RuntimeError("the disk is full")


def test_an_error_while_scoring_leaves_everything_as_it_was() -> None:
    module = TinyModule()
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer(pruning((1,), criterion=Faulty()), epochs=2).fit(module, loader())
    assert widths(module) == widths(TinyModule())


def test_a_tensor_shared_with_the_outside_is_not_cut_behind_its_back() -> None:
    module = TinyModule()
    module.mirror = nn.Conv2d(3, 12, 3, bias=False)
    module.mirror.weight = module.net.stem.weight
    with pytest.raises(SurgeryError, match=r"net\.stem\.weight is shared with a part of the model outside of 'net'"):
        trainer(pruning((1,), module="net"), epochs=2).fit(module, loader())
    assert widths(module.net) == widths(TinyNet())
