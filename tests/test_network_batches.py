"""What of a loader's batch the network receives, whatever the dataset yields."""

import logging
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import infoprune
from infoprune.allocation.sample import sample
from infoprune.calibration import TrainingBatches, batch_size, rows_of
from infoprune.criteria import LayerCriterion
from infoprune.errors import DataError
from infoprune.network_batches import NetworkBatches, split_like

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 4
AGES = torch.rand(32, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean(dim=(2, 3)))


class WithAges(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ages = nn.Linear(5, 4)

    def forward(self, image: Tensor, ages: Tensor) -> Tensor:
        return super().forward(image) + self.ages(ages)


class Rows(Dataset):
    def __init__(self, row) -> None:
        self.row = row

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int):
        return self.row(index)


ONE = {
    "tuple": lambda i: (IMAGES[i], LABELS[i]),
    "label first": lambda i: (LABELS[i], IMAGES[i]),
    "mapping": lambda i: {"name": f"row {i}", "image": IMAGES[i], "label": LABELS[i]},
    "nested": lambda i: ({"meta": i, "views": [IMAGES[i], -IMAGES[i]]}, LABELS[i]),
    "nothing else": lambda i: IMAGES[i],
}
TWO = {
    "flat": lambda i: (IMAGES[i], AGES[i], LABELS[i]),
    "pair": lambda i: ((IMAGES[i], AGES[i]), LABELS[i]),
}


@pytest.mark.parametrize("form", ONE)
@pytest.mark.parametrize("criterion", ["l1", "hrank"])
def test_widths_are_measured_whatever_the_dataset_yields(form: str, criterion: str, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        result = infoprune.prune(Net(), IMAGES[:1], criterion, macs=0.5, data=DataLoader(Rows(ONE[form]), 8))
    assert result.curves is not None
    assert result.curves.unit.startswith("KL")
    assert "by rule" not in caplog.text


@pytest.mark.parametrize("form", TWO)
def test_several_inputs_are_found_by_the_example(form: str):
    torch.manual_seed(0)
    example = (IMAGES[:1], AGES[:1])
    result = infoprune.prune(WithAges(), example, "taylor", macs=0.5, data=DataLoader(Rows(TWO[form]), 8))
    assert result.curves is not None
    assert result.curves.images == 32


def test_keyword_inputs_are_picked_from_a_larger_mapping():
    rows = [{"ages": AGES, "label": LABELS, "image": IMAGES}]
    inputs, targets = split_like(rows[0], {"image": IMAGES[:1], "ages": AGES[:1]})
    assert inputs["image"] is IMAGES
    assert inputs["ages"] is AGES
    assert targets is LABELS


def test_statistics_are_renewed_on_such_batches_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 6), nn.Flatten())
    batches = list(DataLoader(Rows(ONE["mapping"]), 16))
    infoprune.prune(net, IMAGES[:1], "l1", macs=0.5, data=batches, recalibration_batches=2)
    assert net[1].num_batches_tracked == 2


def test_a_criterion_of_ones_own_gets_the_images_that_were_passed():
    seen = []

    class Watching(LayerCriterion):
        needs_data = True

        def layer_scores(self, model, structure, data):
            seen.extend(data)
            return {layer.name: torch.ones(len(model.get_parameter(layer.weight))) for layer in structure.layers}

    images = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    infoprune.prune(net, images[:1], Watching(), filters=0.5, allocation="uniform", data=[images])
    assert seen[0] is images


def test_a_batch_in_which_nothing_is_alike_is_handed_on():
    batch = (LABELS, AGES)
    assert split_like(batch, IMAGES[:1]) is batch
    assert list(NetworkBatches([batch], IMAGES[:1])) == [batch]


class Photos(LightningDataModule):
    """Mappings of bytes, which a hook makes floats on the device; of one loader, or of two."""

    def __init__(self, two: bool) -> None:
        super().__init__()
        self.two = two

    def train_dataloader(self):
        loader = DataLoader(Rows(lambda i: {"photo": (IMAGES[i] * 40 + 128).byte(), "kind": LABELS[i]}), 16)
        return {"clear": loader, "blurred": loader} if self.two else loader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.two:
            return {name: self.floats(part) for name, part in batch.items()}
        return self.floats(batch)

    def floats(self, batch):
        return batch | {"photo": batch["photo"].float() / 255}


@pytest.mark.parametrize("two", [False, True])
def test_a_datamodules_mappings_are_understood(two: bool):
    net = Net()
    infoprune.prune(net, IMAGES[:1], "hrank", macs=0.6, allocation="information_loss", data=Photos(two))
    assert net.first.out_channels + net.second.out_channels < 32


def test_recalibration_finds_the_image_of_a_mapping():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    infoprune.recalibrate(net, Photos(two=False))
    photos = [batch["photo"].float() / 255 for batch in Photos(two=False).train_dataloader()]
    assert torch.allclose(net[1].running_mean, net[0](torch.cat(photos)).mean(dim=(0, 2, 3)), atol=1e-5)


def test_a_datamodule_that_has_nothing_to_show():
    with pytest.raises(DataError, match="LightningDataModule has no training data"):
        infoprune.prune(Net(), IMAGES[:1], "hrank", macs=0.6, data=LightningDataModule())


def test_a_datamodule_whose_hooks_need_a_fit():
    class Cautious(Photos):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return self.floats(batch) if self.trainer.training else batch

    with pytest.raises(DataError, match="Cautious: its hooks around a batch's transfer fail outside a fit"):
        infoprune.recalibrate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), Cautious(two=False))


class Moving(Photos):
    """Numbers beside the image, dropped where the batch is moved to the device."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return {"photo": batch["photo"].to(device), "kind": batch["kind"].to(device)}

    def train_dataloader(self):
        return DataLoader(Rows(lambda i: {"thumb": IMAGES[i], "photo": IMAGES[i].byte(), "kind": LABELS[i]}), 16)


def test_a_datamodules_own_transfer_is_called():
    (batch, _) = TrainingBatches(Moving(two=False))
    assert list(batch) == ["photo", "kind"]
    assert batch["photo"].is_floating_point()


@dataclass
class Sample:
    name: str
    label: Tensor
    image: Tensor


def test_a_dataclass_holds_what_the_network_takes():
    inputs, targets = split_like(Sample("row", LABELS[:4], IMAGES[:4]), IMAGES[:1])
    assert inputs is not None
    assert torch.equal(inputs, IMAGES[:4])
    assert torch.equal(targets, LABELS[:4])


def failing(self):
    raise ValueError("the disk is full")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda self: None, r"Broken has no training data: its train_dataloader\(\) returns None"),
        (failing, r"Broken: its train_dataloader\(\) fails \(ValueError: the disk is full\)"),
        (lambda self: self.trainer.world_size, "where it asks its Trainer, pass batches instead"),
    ],
)
def test_a_datamodule_that_cannot_show_anything(loader, message):
    broken = type("Broken", (LightningDataModule,), {"train_dataloader": loader})
    net = Net()
    with pytest.raises(DataError, match=message):
        infoprune.prune(net, IMAGES[:1], "hrank", macs=0.6, data=broken())
    with pytest.raises(DataError, match="the data module Broken is a class: make an object of it"):
        infoprune.prune(net, IMAGES[:1], "hrank", macs=0.6, data=broken)
    assert net.first.out_channels == 16


class OfLists(Net):
    """As detectors do, takes its images as a list in one argument."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(images))


@pytest.mark.parametrize("count", [2, 3])  # three images of three channels: one number for two things
def test_a_list_of_images_is_one_argument_with_as_many_images(count: int) -> None:
    detections = [{"labels": torch.ones(1)} for _ in range(count)]
    loader = [(tuple(images), detections) for images in IMAGES.split(count) if len(images) == count]
    call, targets = next(iter(NetworkBatches(loader, list(IMAGES[:1]))))
    assert targets is detections
    assert batch_size(call, "test") == count
    ((kept,),) = rows_of(call, count, slice(1)).args
    assert torch.equal(kept, IMAGES[0])
    assert [size for *_, size in sample(iter([(call, targets)] * 3), 2 * count, "test")] == [count, count]
    result = infoprune.prune(
        OfLists().eval(), list(IMAGES[:count]), "l1", macs=0.6, data=loader, recalibration_batches=0, round_to=1
    )
    assert result.curves is not None
