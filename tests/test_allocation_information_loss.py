"""Widths by measured information loss: what is measured, what becomes of it, and what is refused."""

import copy
import dataclasses
import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import infoprune
from infoprune.allocation import Budget, InformationLoss, LossCurves, select
from infoprune.allocation.curves import Round
from infoprune.allocation.divergence import distances_for, divergence_of_labels, divergence_of_scores, relative_error
from infoprune.allocation.measure_loss import LossMeter
from infoprune.allocation.sample import sample
from infoprune.criteria import get_criterion
from infoprune.errors import CheckpointError, ConfigurationError, DataError
from infoprune.models import CifarResNet
from infoprune.progress import Progress
from infoprune.structure import Structure, shrink
from tests.tiny import TinyModule, images, trainer

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution that the outputs depend on and one that they hardly do, beside each other."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.vital = nn.Conv2d(8, 16, 3, padding=1)
        self.vital_norm = nn.BatchNorm2d(16)
        self.spare = nn.Conv2d(8, 16, 3, padding=1)
        self.spare_norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(32, classes)
        self.head.weight.data[:, 16:] *= 1e-3
        self.head.weight.data[:, :16] *= 10

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        both = torch.cat([self.vital_norm(self.vital(x)), self.spare_norm(self.spare(x))], dim=1)
        return self.head(torch.relu(both).mean(dim=(2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def traced(net: nn.Module) -> tuple[Structure, dict[str, Tensor]]:
    structure = infoprune.trace(net, torch.zeros(1, 3, 8, 8))
    return structure, get_criterion("l1")(net, structure)


def meter(net: nn.Module, **options) -> LossMeter:
    structure, scores = traced(net)
    given = {"data": [IMAGES], "images": 48, "evaluate": None, "owner": "test"} | options
    return LossMeter(net, structure, scores, **given)


def measured(meter: LossMeter, levels: dict[str, list[int]], widths: dict[str, int] | None = None) -> Round:
    with Progress("test", 1, False) as bar:
        return meter.round(widths or {name: group.size for name, group in meter.groups.items()}, levels, bar)


def by_hand(net: nn.Module, widths: dict[str, int]) -> float:
    """The divergence of a really shrunk copy whose batch norms see the batch."""
    structure, scores = traced(net)
    smaller = copy.deepcopy(net)
    shrink(smaller, select(structure, scores, widths))
    for module in (smaller, whole := copy.deepcopy(net)):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.train()
    with torch.no_grad():
        return F.kl_div(smaller(IMAGES).log_softmax(1), whole(IMAGES).softmax(1), reduction="batchmean").item()


def test_a_loss_is_the_divergence_of_a_really_shrunk_model(net: nn.Module):
    found = measured(meter(net), {"vital": [8], "spare": [4], "stem": [6, 3]})
    assert found.loss == pytest.approx(0, abs=1e-6)
    for name, curve in found.curves.items():
        for width, loss in curve.items():
            assert loss == pytest.approx(by_hand(net, {name: width}), rel=1e-3, abs=1e-6), name


def test_later_rounds_start_from_the_model_as_it_is_cut(net: nn.Module):
    found = measured(meter(net), {"vital": [6]}, {"stem": 5, "vital": 12, "spare": 9})
    assert found.loss == pytest.approx(by_hand(net, {"stem": 5, "vital": 12, "spare": 9}), rel=1e-3)
    assert found.curves["vital"][6] == pytest.approx(by_hand(net, {"stem": 5, "vital": 6, "spare": 9}), rel=1e-3)


def test_residual_streams_too():
    torch.manual_seed(1)
    net = CifarResNet(depth=14).eval()
    wanted = {"conv1": [9], "layer1.1.conv1": [4], "layer2.0.conv2": [3], "layer3.1.conv1": [20]}
    found = measured(meter(net), wanted)
    for name, curve in found.curves.items():
        for width, loss in curve.items():
            assert loss == pytest.approx(by_hand(net, {name: width}), rel=1e-2, abs=1e-6), name


def test_the_model_is_as_it_was(net: nn.Module):
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    net.train()
    structure, scores = traced(net)
    InformationLoss(images=32, rounds=2).prepared(net, structure, [IMAGES], scores=scores)
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.4}, {"filters": 0.7}, {"macs": 0.45, "round_to": 4}])
def test_spare_filters_go_before_vital_ones(net: nn.Module, target: dict, rounds: int):
    options = {"name": "information_loss", "rounds": rounds}
    result = infoprune.prune(net, IMAGES[:1], "l1", **target, allocation=options, data=[IMAGES])
    vital, spare = (result.plan.shape_after(f"{name}.weight")[0] if f"{name}.weight" in result.plan.shapes else 16
                    for name in ("vital", "spare"))  # fmt: skip
    assert spare < vital
    if "round_to" in target:
        assert spare % 4 == vital % 4 == 0


def test_a_budget_is_met_and_one_measurement_serves_them_all(net: nn.Module, tmp_path):
    structure, scores = traced(net)
    prepared = InformationLoss(images=48, rounds=3, floor=0.25).prepared(net, structure, [IMAGES], scores=scores)
    prepared.curves.save(tmp_path / "curves.json")
    again = InformationLoss(curves=str(tmp_path / "curves.json"), floor=0.25)
    before = dict.fromkeys(scores, math.inf)
    for keep in (0.9, 0.7, 0.5, 0.3, 0.1):
        widths = prepared.widths(structure, scores, Budget("macs", keep))
        assert again.widths(structure, scores, Budget("macs", keep)) == widths
        assert 0.8 * keep < structure.cost(widths).macs / structure.cost().macs <= keep
        assert all(widths[name] <= before[name] + 2 for name in widths)
        before = widths
    assert prepared.prepared(net, structure, None) is prepared


def test_budgets_below_the_floor_can_still_be_met(net: nn.Module):
    structure, scores = traced(net)
    prepared = InformationLoss(images=16, floor=0.5).prepared(net, structure, [IMAGES], scores=scores)
    high = prepared.widths(structure, scores, Budget("macs", 0.45))
    low = prepared.widths(structure, scores, Budget("macs", 0.03))
    assert min(width / structure.group(name).size for name, width in high.items()) > 0.35
    assert min(width / structure.group(name).size for name, width in low.items()) < 0.25


def test_depth_keeps_filters_of_a_layer_whose_cut_loses_nothing_alone(net: nn.Module):
    structure, scores = traced(net)
    shallow = InformationLoss(images=16, depth=0.01).prepared(net, structure, [IMAGES], scores=scores)
    deep = dataclasses.replace(shallow, depth=0.0)
    budget = Budget("macs", 0.7)
    assert deep.widths(structure, scores, budget)["spare"] < shallow.widths(structure, scores, budget)["spare"]


def test_a_users_own_quality_decides(net: nn.Module):
    def spared(model: nn.Module) -> float:
        return float(model.head.weight[:, 16:].abs().sum())

    structure, scores = traced(net)
    prepared = InformationLoss(evaluate=spared).prepared(net, structure, None, scores=scores)
    assert prepared.curves.unit == "drop of the given quality"
    widths = prepared.widths(structure, scores, Budget("macs", 0.6))
    assert widths["spare"] >= 15


@pytest.mark.parametrize(
    ("output", "targets", "expected"),
    [
        (torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), divergence_of_scores),
        (torch.randn(4, 3), None, divergence_of_scores),
        (torch.randn(4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long), divergence_of_scores),
        (torch.randn(4, 3, 5, 5), None, relative_error),
        (torch.randn(4, 1), torch.randn(4, 1), relative_error),
        (torch.randn(4, 6), torch.randint(0, 2, (4, 6)).float() + torch.eye(4, 6) * 0, None),
        (torch.randn(4, 3), torch.randn(4, 3), relative_error),
    ],
)
def test_outputs_tell_how_to_compare_them(output: Tensor, targets: Tensor | None, expected):
    found = distances_for([output], targets, 4)[0]
    assert found is (expected or divergence_of_labels)


def test_several_outputs_add():
    class Two(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            scores = super().forward(x)
            return {"scores": scores, "map": x[:, :1] * scores.mean()}

    torch.manual_seed(0)
    found = meter(Two().eval(), data=[(IMAGES, torch.zeros(48, dtype=torch.long))])
    assert found.unit == "KL divergence of class scores, in nats + relative squared error"


@pytest.mark.parametrize("size", [1, 7, 48])
def test_small_batches_are_joined(net: nn.Module, size: int):
    whole = measured(meter(net), {"vital": [8]})
    parts = measured(meter(net, data=IMAGES.split(size)), {"vital": [8]})
    assert parts.curves["vital"][8] == pytest.approx(whole.curves["vital"][8], rel=1e-4)


def test_a_model_with_scripted_parts_is_run_whole(net: nn.Module):
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                x = x * 1.0
            return self.net(x)

    found = measured(meter(Scripted().eval()), {"net.vital": [8]})
    assert found.curves["net.vital"][8] == pytest.approx(
        measured(meter(net), {"vital": [8]}).curves["vital"][8], rel=1e-3
    )


def test_parts_that_run_without_gradients_are_resumed_too(net: nn.Module):
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(x)

    guarded = meter(Guarded().eval())
    assert all(batch.resumes for batch in guarded._batches)
    found = measured(guarded, {"net.vital": [8]})
    assert found.curves["net.vital"][8] == pytest.approx(
        measured(meter(net), {"vital": [8]}).curves["vital"][8], rel=1e-6
    )


def test_code_that_views_channels_and_pixels_as_one_dimension_is_measured():
    """Such a view fails where images are laid out pixel by pixel."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16 * 9, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.head(x.view(x.size(0), -1))

    result = infoprune.prune(Flat().eval(), IMAGES[:1], "l1", macs=0.5, data=[IMAGES])
    assert result.curves is not None
    assert set(result.curves.rounds[0].curves) == {"conv"}


def test_a_group_that_the_outputs_do_not_depend_on_costs_nothing(net: nn.Module):
    net.head.weight.data[:, 16:] = 0
    found = measured(meter(net), {"spare": [8, 1]})
    assert all(abs(loss) < 1e-9 for loss in found.curves["spare"].values())


def test_interpolation_is_quadratic_at_first_and_never_falls():
    curves = Round({"a": 8}, 0.1, {"a": {6: 0.14, 4: 0.11, 2: 0.26}})
    assert curves.added("a", 8) == 0
    assert curves.added("a", 7) == pytest.approx(0.01)
    assert curves.added("a", 6) == pytest.approx(0.04)
    assert curves.added("a", 4) == pytest.approx(0.04)
    assert curves.added("a", 0) > curves.added("a", 1) > curves.added("a", 2) == pytest.approx(0.16)


def test_bad_input_is_refused(net: nn.Module, tmp_path):
    structure, scores = traced(net)
    with pytest.raises(ConfigurationError, match="pass batches of training images"):
        InformationLoss().prepared(net, structure, None, scores=scores)
    with pytest.raises(ConfigurationError, match="pass the scores"):
        InformationLoss().prepared(net, structure, [IMAGES])
    with pytest.raises(ConfigurationError, match="nothing measured yet"):
        InformationLoss().widths(structure, scores, Budget("macs", 0.5))
    with pytest.raises(DataError, match="no image"):
        meter(net, data=[])
    (tmp_path / "torn.json").write_text('{"format": 1')
    with pytest.raises(CheckpointError, match=r"torn\.json"):
        InformationLoss(curves=str(tmp_path / "torn.json"))
    net.spare.weight.data[0] = math.inf
    with pytest.raises(DataError, match="whole model are not finite"):
        LossMeter(net, structure, scores, [IMAGES], 8, None, "test")


def test_a_quality_that_is_not_finite_names_the_group(net: nn.Module):
    def fragile(model: nn.Module) -> float:
        return math.nan if (model.head.weight[:, :16] == 0).any() else 1.0

    with pytest.raises(DataError, match="vital at 8 units"):
        measured(meter(net, evaluate=fragile), {"stem": [4], "vital": [8]})


def test_channels_that_are_divided_by_their_norm_can_be_cut(net: nn.Module):
    class Normed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            x = x / x.square().sum(dim=(2, 3), keepdim=True).sqrt()
            return self.head(torch.cat([self.vital(x), self.spare(x)], dim=1).abs().log().mean(dim=(2, 3)))

    torch.manual_seed(0)
    found = measured(meter(Normed().eval()), {"stem": [4], "vital": [8]})
    assert all(0 < loss < math.inf for curve in found.curves.values() for loss in curve.values())


def test_curves_of_another_model_are_refused(net: nn.Module):
    curves = LossCurves((Round({"stem": 4}, 0.0, {}),))
    structure, scores = traced(net)
    with pytest.raises(ConfigurationError, match="another model"):
        InformationLoss(curves=curves).widths(structure, scores, Budget("macs", 0.5))


def test_a_fit_measures_at_every_event_by_default():
    callback = infoprune.FilterPruning("l1", macs="60%", schedule=[0, 1], round_to=1)
    trainer(callback, epochs=2).fit(TinyModule(), DataLoader(images(), 8))
    assert len(callback.history) == 2
    assert all(event.curves for event in callback.history)
    assert callback.history[-1].macs <= 0.6 * callback.unpruned.macs


def test_without_images_coupled_groups_give_way_last():
    net = CifarResNet(depth=14).eval()
    result = infoprune.prune(net, torch.zeros(1, 3, 16, 16), "l1", macs="60%", round_to=1)
    assert net.conv1.out_channels == 16
    assert net.layer1[0].conv1.out_channels < 16
    assert result.curves is None


@pytest.mark.parametrize("budget", [{"macs": "60%"}, {"macs": 0.6}, {"macs": 1_000_000}, {"params": "50 %"}])
def test_budgets_as_people_state_them(budget: dict):
    net = CifarResNet(depth=8).eval()
    result = infoprune.prune(net, torch.zeros(1, 3, 16, 16), "l1", **budget, round_to=1)
    kind, value = next(iter(budget.items()))
    before, after = getattr(result.before, kind), getattr(result.after, kind)
    share = value / before if isinstance(value, int) else {"60%": 0.6, "50 %": 0.5}.get(value, value)
    assert 0.97 * share * before < after <= share * before


def test_time_decides_where_time_is_the_budget(net: nn.Module):
    """Where narrower `spare` layers save no time, none of their units go for it."""
    structure, scores = traced(net)
    prepared = InformationLoss(images=48).prepared(net, structure, [IMAGES], scores=scores)

    def share(widths: Mapping[str, int]) -> float:
        return 0.2 + 0.4 * widths["stem"] / 8 + 0.4 * widths["vital"] / 16

    slow = prepared.widths(structure, scores, Budget("latency", 0.7), measure=share)
    assert slow["spare"] == 16
    assert prepared.widths(structure, scores, Budget("macs", 0.7))["spare"] < 16


def test_flat_groups_are_measured_on_the_first_batch_and_dear_ones_on_all(net: nn.Module):
    """With the second batch of constant images, only what was measured on it differs."""
    images = torch.cat([IMAGES, IMAGES[:16]])
    other = [images, torch.zeros(64, 3, 8, 8) + IMAGES[:1]]
    levels = {"vital": [12, 8, 4], "spare": [12, 8, 4]}
    one, two = (
        measured(meter(net, data=[images], images=64), levels),
        measured(meter(net, data=other, images=128), levels),
    )
    assert list(one.curves["vital"]) == [12, 8, 4]
    assert list(one.curves["spare"]) == [8, 4]
    assert two.curves["vital"][4] == pytest.approx(one.curves["vital"][4])  # below half, on the first batch
    assert two.curves["spare"] == pytest.approx(one.curves["spare"])
    assert two.curves["vital"][8] != pytest.approx(one.curves["vital"][8], rel=0.01)


def test_later_rounds_of_flat_groups_start_from_the_loss_on_all_images(net: nn.Module):
    data = [torch.cat([IMAGES, IMAGES[:16]]), torch.zeros(64, 3, 8, 8) + IMAGES[:1]]
    widths = {"stem": 5, "vital": 12, "spare": 9}
    found = measured(meter(net, data=data, images=128), {"spare": [4]}, widths)
    first = measured(meter(net, data=data[:1], images=64), {"spare": [4]}, widths)
    assert abs(first.loss - found.loss) > 1e-3
    assert found.curves["spare"][4] == pytest.approx(found.loss, abs=1e-4)


@pytest.mark.parametrize(("size", "shown"), [(32, [64] * 4), (224, [16] * 4)])
def test_large_images_are_fewer(size: int, shown: list[int]) -> None:
    batch = torch.zeros(1, 3, size, size).expand(8, -1, -1, -1)
    assert [count for _, _, count in sample([batch] * 40, None, "test")] == shown
    assert [count for _, _, count in sample([batch] * 5, None, "test")] == ([40] if size == 32 else [16, 16, 8])
