"""Penalties on the change of weights: what the training step compares with weights follows a cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune import FilterPruning
from infoprune.callbacks.engine.met_weights import WeightMeetings
from infoprune.callbacks.engine.written_storages import storage_of
from tests.tiny import TinyModule, loader, trainer


class Penalty(TinyModule):
    """Keeps the weights of its first step, each with an importance, and penalises every change of them."""

    def keep(self, name: str, old: Tensor, importance: Tensor) -> None:
        raise NotImplementedError

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def on_train_start(self) -> None:
        for number, (name, parameter) in enumerate(self.net.named_parameters()):
            self.keep(name, parameter.detach().clone(), torch.full_like(parameter, 1.0 + number))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        penalty = torch.zeros(())
        for name, parameter in self.net.named_parameters():
            old, importance = self.kept(name)
            penalty = penalty + (importance * (parameter - old) ** 2).sum()
        return self.loss(batch) + 0.01 * penalty


class InDicts(Penalty):
    def __init__(self) -> None:
        super().__init__()
        self.old: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def keep(self, name: str, old: Tensor, importance: Tensor) -> None:
        self.old[name.replace(".", "/")], self.importance[name] = old, importance

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        return self.old[name.replace(".", "/")], self.importance[name]


class InBuffers(Penalty):
    def keep(self, name: str, old: Tensor, importance: Tensor) -> None:
        self.register_buffer(f"{name.replace('.', '_')}_old", old)
        self.register_buffer(f"{name.replace('.', '_')}_importance", importance)

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        stem = name.replace(".", "_")
        return getattr(self, f"{stem}_old"), getattr(self, f"{stem}_importance")


class InAttributes(Penalty):
    def keep(self, name: str, old: Tensor, importance: Tensor) -> None:
        vars(self)[f"{name} was"], vars(self)[f"{name} counts"] = old, importance

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        return vars(self)[f"{name} was"], vars(self)[f"{name} counts"]


class InACopy(Penalty):
    """L2-SP: the distance to a frozen copy of the first network."""

    def __init__(self) -> None:
        super().__init__()
        self.start = copy.deepcopy(self.net).requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), 0.05)

    def keep(self, name: str, old: Tensor, importance: Tensor) -> None:
        pass

    def kept(self, name: str) -> tuple[Tensor, Tensor]:
        return self.start.get_parameter(name), torch.ones(())


@pytest.mark.parametrize(
    "kind", [InDicts, InACopy, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (InBuffers, InAttributes))]
)
def test_what_a_penalty_compares_with_weights_is_cut_alike(kind: type[Penalty]) -> None:
    torch.manual_seed(0)
    module = kind()
    first = copy.deepcopy(module.net.state_dict())
    trainer(FilterPruning("l1", macs=0.5, schedule=[1, 2]), epochs=4).fit(module, loader())
    plan = infoprune.plan_of(module)
    assert module.net.conv1.out_channels < 12
    for number, (name, parameter) in enumerate(module.net.named_parameters()):
        old, importance = module.kept(name)
        assert old.shape == parameter.shape
        expected = first[name]
        for dim, gone in plan.removed.get(f"net.{name}", {}).items():
            stays = [i for i in range(expected.shape[dim]) if i not in set(gone)]
            expected = expected.index_select(dim, torch.tensor(stays))
        assert torch.equal(old, expected)
        assert importance.dim() == 0 or (importance == 1.0 + number).all()


def test_a_copy_that_is_compared_stays_a_network() -> None:
    module = InACopy()
    trainer(FilterPruning("l1", macs=0.5, schedule=[1]), epochs=2).fit(module, loader())
    images = torch.rand(2, 3, 8, 8)
    assert module.start.conv1.out_channels == module.net.conv1.out_channels < 12
    assert module.start.eval()(images).shape == (2, 3)


def test_a_step_that_cannot_follow_a_cut_is_refused_and_nothing_changes() -> None:
    class Flat(TinyModule):
        def on_train_start(self) -> None:
            self.first = self.flat().detach().clone()

        def flat(self) -> Tensor:
            return torch.cat([parameter.flatten() for parameter in self.net.parameters()])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch) + (self.flat() - self.first).pow(2).sum()

    module = Flat()
    with pytest.raises(infoprune.errors.SurgeryError, match=r"step of Flat fails once .* one for each parameter"):
        trainer(FilterPruning("l1", macs=0.5, schedule=[1]), epochs=2).fit(module, loader())
    assert infoprune.plan_of(module).is_empty
    assert module.net.conv1.weight.shape[0] == 12


def test_memory_that_is_used_again_is_not_taken_for_a_tensor_that_met_a_weight() -> None:
    weight = nn.Parameter(torch.ones(3000))
    with WeightMeetings([("weight", weight)]) as meetings:
        met = torch.zeros(3000)
        address = storage_of(met)
        with torch.no_grad():
            (met + weight).sum()
        met.data = torch.zeros(0)  # as code does that moves an average on
        others = [torch.zeros(3000) for _ in range(20)]
    assert meetings.found[address] == "weight"
    assert all(storage_of(tensor) not in meetings.found for tensor in others)
