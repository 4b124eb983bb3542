"""The deepest cut within a drop of quality, and how sure that is."""

import copy

import pytest
import torch
from torch import nn

import infoprune
from infoprune.within_drop import Trial, find_macs

IMAGES = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    """A network of which the last eight filters of each layer do nearly nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    for layer in (net[3], net[8]):
        layer.weight.data[:, 8:] *= 1e-3
    for layer in (net[0], net[3]):
        layer.weight.data[8:] *= 1e-3
    infoprune.recalibrate(net, [IMAGES])
    return net.eval()


def labelled(net: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with torch.no_grad():
        return [(IMAGES[i : i + 64], net(IMAGES[i : i + 64]).argmax(1)) for i in range(0, 256, 64)]


def test_the_cut_that_is_found_stays_within_the_drop(net: nn.Module):
    data, before = labelled(net), copy.deepcopy(net.state_dict())
    found = find_macs(net, IMAGES[:1], 3.0, data=data, validation=data, criterion="l1", round_to=1)
    assert found.macs < 0.6
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    kept = next(trial for trial in found.trials if trial.macs == found.macs)
    assert kept.drop <= 3.0
    assert all(trial.drop > 3.0 for trial in found.trials if trial.macs < found.macs)
    options = {"macs": found.macs, "allocation": found.allocation, "round_to": 1}
    infoprune.prune(net, IMAGES[:1], "l1", data=data, recalibration_batches=16, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        wrong = [(net(images).argmax(1) != labels).double() for images, labels in data]
    assert 100 * torch.cat(wrong).mean().item() == pytest.approx(kept.drop, abs=1e-6)
    assert f"{found.macs:.1%} of the MACs" in str(found)


def test_a_users_measure_decides(net: nn.Module):
    def width(model: nn.Module) -> float:
        return float(model[3].out_channels)

    found = find_macs(net, IMAGES[:1], 4.0, data=[IMAGES], evaluate=width, criterion="l1", round_to=1)
    assert found.trials[0].error is None
    assert all((trial.macs >= found.macs) == (trial.drop <= 4.0) for trial in found.trials)


def test_how_sure_it_is_follows_from_the_images():
    assert Trial(0.5, 0.5, 0.2).sure(0.5) == 0.5
    assert Trial(0.5, 0.1, 0.2).sure(0.5) == pytest.approx(0.977, abs=1e-3)
    assert Trial(0.5, 0.1, None).sure(0.5) is None
    assert Trial(0.5, 0.0, 0.0).sure(0.0) == 1


def test_no_cut_within_the_drop_keeps_the_model(net: nn.Module):
    falling = iter(range(100, 0, -1))
    found = find_macs(net, IMAGES[:1], 0.0, data=[IMAGES], evaluate=lambda model: next(falling), steps=2)
    assert found.macs == 1.0
    assert str(found).startswith("no cut that was tried stays within a drop of 0: 75.0% of the MACs with a drop of ")


def test_a_few_steps_of_training_count_where_they_are_made(net: nn.Module):
    """A cut that loses everything until its last layer is trained."""
    trained: list[int] = []

    def train(model: nn.Module) -> None:
        trained.append(model[3].out_channels)

    def quality(model: nn.Module) -> float:
        return 1.0 if model is net or trained else 0.0

    found = find_macs(net, IMAGES[:1], 0.5, data=[IMAGES], evaluate=quality, recover=train, steps=2, criterion="l1")
    assert len(trained) == len(found.trials)
    assert found.macs < 1


class TestPrune:
    """`infoprune.prune(max_drop=...)`."""

    def test_the_cut_is_the_one_that_find_macs_finds(self, net: nn.Module):
        data = labelled(net)
        found = find_macs(net, IMAGES[:1], 3.0, data=data, validation=data, criterion="l1", round_to=1)
        result = infoprune.prune(net, IMAGES[:1], "l1", max_drop=3.0, data=data, validation=data, round_to=1)
        assert result.drop == found.trial
        assert result.after.macs <= found.macs * result.before.macs
        with torch.no_grad():
            wrong = torch.cat([(net(images).argmax(1) != labels).double() for images, labels in data])
        assert 100 * wrong.mean().item() == pytest.approx(result.drop.drop, abs=1e-6)

    def test_a_function_and_an_iterator_do_too(self, net: nn.Module):
        def width(model: nn.Module) -> float:
            return float(model[3].out_channels)

        result = infoprune.prune(net, IMAGES[:1], "taylor", max_drop=4.0, validation=width, data=iter(labelled(net)))
        assert net[3].out_channels >= 12
        assert result.drop.error is None

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_drop": 0.5}, "max_drop=0.5 needs data"),
            ({"max_drop": 0.5, "data": [IMAGES]}, "max_drop=0.5 needs data"),
            ({"max_drop": 0.5, "macs": 200e6}, r"max_drop=0.5 and macs=200000000.0 clash"),
            ({"max_drop": 0.5, "filters": 0.5}, "max_drop=0.5 and filters=0.5 clash"),
            ({"max_drop": -1, "data": [IMAGES], "validation": len}, "max_drop"),
            ({"macs": 0.5, "data": [IMAGES], "validation": len}, "uses validation only with max_drop"),
        ],
    )
    def test_bad_input_is_refused(self, net: nn.Module, options: dict, words: str):
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(infoprune.errors.ConfigurationError, match=words):
            infoprune.prune(net, IMAGES[:1], "l1", **options)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_where_no_cut_stays_within_the_model_stays(self, net: nn.Module):
        before, falling = copy.deepcopy(net.state_dict()), iter(range(100, 0, -1))
        with pytest.raises(infoprune.errors.BudgetError, match=r"no cut that was tried .*; allow a larger max_drop"):
            infoprune.prune(
                net, IMAGES[:1], "l1", max_drop=0, data=[IMAGES], validation=lambda model: float(next(falling))
            )
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs one of validation"),
        ({"validation": [IMAGES], "evaluate": len}, "needs one of validation"),
        ({"validation": [IMAGES]}, "validation needs a label for every image"),
        ({"evaluate": len, "max_drop": -1}, "max_drop"),
        ({"evaluate": len, "steps": 0}, "steps"),
    ],
)
def test_bad_input_is_refused(net: nn.Module, options: dict, words: str):
    with pytest.raises((infoprune.errors.ConfigurationError, infoprune.errors.DataError), match=words):
        find_macs(net, IMAGES[:1], **{"max_drop": 0.5, "data": [IMAGES], **options})
