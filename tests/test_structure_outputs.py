"""Whatever leaves a model keeps its channels: outputs of any kind, and what its code or a hook keeps of a forward."""

from __future__ import annotations

import copy
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.errors import TraceError
from infoprune.structure.tracing.outputs import output_tensors

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass
class Answer:
    scores: Any
    maps: Any


class Slotted:
    __slots__ = ("maps", "scores")

    def __init__(self, scores: Tensor, maps: Tensor) -> None:
        self.scores, self.maps = scores, maps


class Rows:
    """Yields what it does not hold as an attribute."""

    def __init__(self, *rows: Tensor) -> None:
        self._rows = lambda: iter(rows)

    def __iter__(self) -> Iterator[Tensor]:
        return self._rows()


class TwoHeads(nn.Module):
    """Two heads on shared features; how their results are returned is up to a function."""

    def __init__(self, wrap: Callable[[TwoHeads, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)
        self.score, self.maps = nn.Linear(8, 5), nn.Conv2d(8, 3, 1)
        self.wrap = wrap
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self, self.body(self.stem(x).relu()).relu())

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(features.mean((2, 3))), self.maps(features)

    def one(self, features: Tensor) -> Iterator[Tensor]:
        yield self.score(features.mean((2, 3)))
        yield self.maps(features)


WRAPS: dict[str, Callable[[TwoHeads, Tensor], Any]] = {
    "dataclass": lambda net, x: Answer(*net.both(x)),
    "nested objects": lambda net, x: Answer([Slotted(*net.both(x))], None),
    "slots": lambda net, x: Slotted(*net.both(x)),
    "generator": lambda net, x: net.one(x),
    "map": lambda net, x: map(torch.neg, net.both(x)),
    "set": lambda net, x: set(net.both(x)),
    "UserDict": lambda net, x: UserDict(zip("ab", net.both(x), strict=True)),
    "deque": lambda net, x: deque(net.both(x)),
    "iterable": lambda net, x: Rows(*net.both(x)),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_outputs_of_any_kind_keep_their_channels(wrap: str) -> None:
    net = TwoHeads(WRAPS[wrap]).eval()
    infoprune.prune(net, X, "l1", filters=0.5)
    shapes = sorted(tuple(tensor.shape) for tensor in output_tensors(net(X)))
    assert shapes == [(2, 3, 4, 4), (2, 5)]
    assert net.stem.out_channels == 6
    assert net.body.out_channels == 4


@pytest.mark.parametrize("wrap", [lambda net, x: None, lambda net, x: lambda: x, lambda net, x: {"loss": 0.5}])
def test_a_model_that_returns_no_tensor_is_refused_by_name(wrap: Callable[[TwoHeads, Tensor], Any]) -> None:
    net = TwoHeads(wrap).eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TraceError, match=r"TwoHeads returns a .*no tensor"):
        infoprune.prune(net, X, "l1", filters=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def reasons(net: nn.Module) -> dict[str, str | None]:
    return {group.name: group.reason for group in infoprune.trace(net, X).groups}


def test_features_kept_on_the_module_are_an_output() -> None:
    def wrap(net: TwoHeads, x: Tensor) -> tuple[Tensor, Tensor]:
        net.last = x
        return net.both(x)

    found = reasons(TwoHeads(wrap).eval())
    assert found["stem"] is None
    assert found["body"] == "is kept after the forward pass, in last"


BY_A_HOOK = "is kept after the forward pass, by a hook or other code around the model"
READ = "its numbers are read by code that is not traced (numpy in the model's forward)"


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (lambda y: y, BY_A_HOOK),
        (lambda y: y.detach().mean((2, 3)), BY_A_HOOK),
        (lambda y: y.detach().cpu().numpy(), READ),
    ],
)
def test_what_a_hook_keeps_is_an_output(keep: Callable[[Tensor], Any], reason: str) -> None:
    net, kept = TwoHeads(TwoHeads.both).eval(), []
    net.body.register_forward_hook(lambda module, inputs, output: kept.append(keep(output)))
    found = reasons(net)
    assert found["stem"] is None
    assert found["body"] == reason


def test_what_a_returned_function_would_compute_with_is_an_output() -> None:
    found = reasons(TwoHeads(lambda net, x: (net.score(x.mean((2, 3))), lambda: net.maps(x))).eval())
    assert found["stem"] is None
    assert "is kept after the forward pass" in str(found["body"])


def test_a_returned_parameter_is_an_output() -> None:
    found = reasons(TwoHeads(lambda net, x: (*net.both(x), net.stem.weight)).eval())
    assert found["stem"] == "reaches the model's output"
    assert found["body"] is None


def test_what_nobody_holds_any_more_is_no_output() -> None:
    class Passing(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            self.last = self.stem(x).relu()
            self.last.append = self.last.__dict__  # a cycle, which only the garbage collector takes apart
            x, self.last = self.body(self.last).relu(), None
            return self.both(x)

    found = reasons(Passing(TwoHeads.both).eval())
    assert found["stem"] is None
    assert found["body"] is None


def test_results_on_real_tensors_are_told_too() -> None:
    class Deciding(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            if x.sum().item() == 0.123:
                return None
            self.last = self.stem(x).relu()
            return self.both(self.body(self.last).relu())

    found = reasons(Deciding(TwoHeads.both).eval())
    assert found["stem"] == "is kept after the forward pass, in last"
    assert found["body"] is None


def test_a_view_that_is_returned_is_not_taken_for_something_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)[:, None]

    monkeypatch.setattr("infoprune.structure.tracing.leaving.gc.collect", lambda: pytest.fail("nothing is kept"))
    assert not infoprune.trace(Stacked(), X).prunable


def test_what_modules_keep_is_found_without_collecting_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anchored(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            x = self.stem(x).relu()
            self.anchors = [torch.arange(3.0, device=x.device), torch.ones(2, device=x.device)]
            self.features = {"body": (x := self.body(x).relu())}
            return self.both(x)

    monkeypatch.setattr("infoprune.structure.tracing.leaving.gc.collect", lambda: pytest.fail("modules hold it all"))
    found = reasons(Anchored(TwoHeads.both).eval())
    assert found["body"] == "is kept after the forward pass, in features"
    assert found["stem"] is None


@pytest.mark.parametrize("read", [lambda x: x.mean((0, 2, 3)).tolist(), lambda x: np.array(x.cpu()), Tensor.numpy])
def test_numbers_that_code_reads_and_keeps_hold_their_channels(read: Callable[[Tensor], Any]) -> None:
    class Logging(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            x = self.stem(x).relu()
            log.append(read(x))
            return self.both(self.body(x).relu())

    log: list[Any] = []
    found = reasons(Logging(TwoHeads.both).eval())
    assert str(found["stem"]).startswith("its numbers are read by code that is not traced")
    assert found["body"] is None


def test_a_single_number_that_is_read_holds_no_channels() -> None:
    class Scaled(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            x = self.stem(x).relu()
            return self.both(self.body(x).relu() * float(x.sum().cpu().numpy()))

    assert reasons(Scaled(TwoHeads.both).eval())["stem"] is None
