"""Optimizers that wrap another: the state of both is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import infoprune
from infoprune.errors import SurgeryError
from tests.tiny import TinyModule, TinyNet, loader, pruning, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware minimization: shares its parameter groups with an optimizer that it wraps."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        assert closure is not None
        loss = torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["old"] = parameter.detach().clone()
                    parameter.data.add_(parameter.grad, alpha=group["rho"])
        torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = self.state[parameter]["old"]
        self.base_optimizer.step()
        return loss


def test_the_optimizer_that_another_wraps_is_cut_too() -> None:
    module = TinyModule()
    module.make_optimizer = Sharp
    run = trainer(pruning((1,)), epochs=2)
    run.fit(module, loader())
    (optimizer,) = run.optimizers
    own = {id(parameter) for parameter in module.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} <= own
    for parameter in module.net.parameters():
        assert optimizer.base_optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


def test_a_wrapper_that_shares_the_state_of_what_it_wraps() -> None:
    """Lookahead holds the very state of its inner optimizer."""
    net = TinyNet()
    inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    outer = torch.optim.SGD(net.parameters(), lr=0.1)
    outer.optimizer, outer.state = inner, inner.state
    net(torch.randn(2, 3, 16, 16)).sum().backward()
    inner.step()
    infoprune.prune(net, torch.randn(2, 3, 16, 16), "l1", macs=0.5, optimizers=[outer])
    assert set(inner.state) == set(net.parameters())
    assert all(inner.state[p]["momentum_buffer"].shape == p.shape for p in net.parameters())


def test_what_cannot_be_cut_in_a_wrapped_optimizer_is_refused_before_training() -> None:
    class Flat(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})
            self.inner = torch.optim.Adafactor(self.param_groups)

        def step(self, closure: Any = None) -> Any:
            loss = None if closure is None else closure()
            self.inner.step()
            return loss

    module = TinyModule()
    module.make_optimizer = Flat
    run = trainer(pruning((1,)), epochs=2)
    with pytest.raises(SurgeryError, match="Adafactor"):
        run.fit(module, loader())
    assert run.global_step == 0
