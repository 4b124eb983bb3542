from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from infoprune.data.augment import draw_views, take_views
from infoprune.data.loader import EpochBatches, ImageSet, TensorLoader
from infoprune.data.split import stratified_split
from infoprune.errors import ConfigurationError, DataError


def loader(count: int = 103, batch_size: int = 16, augment: bool = True, **batches: int) -> TensorLoader:
    data = ImageSet(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.arange(count))
    return TensorLoader(data, EpochBatches(count, batch_size, shuffle=True, **batches), 1, flip=True, augment=augment)


def labels(loader: TensorLoader) -> list[int]:
    return [int(label) for batch in loader for label in batch[1]]


class TestAugment:
    def test_every_image_has_its_own_draw(self) -> None:
        picture = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
        same = picture.expand(200, -1, -1, -1)
        views = take_views(same, draw_views(200, 4, flip=True), 4)
        assert len(views.flatten(1).unique(dim=0)) > 100  # of 162 possible ones
        # why we do not use torchvision's: one draw for the whole batch
        assert len(v2.RandomCrop(32, padding=4)(same).flatten(1).unique(dim=0)) == 1

    def test_against_torchvision_image_by_image(self) -> None:
        images = torch.randint(256, (50, 3, 12, 10), dtype=torch.uint8)
        draws = draw_views(50, 4, flip=True)
        out = take_views(images, draws, 4)
        for image, (top, left, mirrored), view in zip(images, draws.tolist(), out, strict=True):
            expected = v2.functional.crop(v2.functional.pad(image, [4]), top, left, 12, 10)
            assert torch.equal(view, v2.functional.horizontal_flip(expected) if mirrored else expected)

    def test_draws_cover_their_range(self) -> None:
        draws = draw_views(5000, 4, flip=True)
        assert [draws[:, i].unique().tolist() for i in range(3)] == [list(range(9)), list(range(9)), [0, 1]]
        assert 0.45 < draws[:, 2].float().mean() < 0.55
        assert draw_views(100, 4, flip=False)[:, 2].sum() == 0


class TestEpochBatches:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 8])
    @pytest.mark.parametrize("count", [8, 64, 103, 1000])
    def test_processes_share_an_epoch(self, count: int, world_size: int) -> None:
        parts = [list(EpochBatches(count, 16, True, 7, rank, world_size)) for rank in range(world_size)]
        assert {len(part) for part in parts} == {len(EpochBatches(count, 16, True, 7, 0, world_size))}
        seen = torch.cat([torch.cat(part) for part in parts])
        assert seen.sort().values.tolist() == list(range(count))  # nothing twice, nothing left out
        sizes = [len(batch) for part in parts for batch in part]
        assert min(sizes) >= 1
        assert max(sizes) <= 16
        assert world_size > 1 or max(sizes) - min(sizes) <= 1

    def test_two_processes_see_the_global_batches_of_one(self) -> None:
        one = list(EpochBatches(1000, 64, True, seed=3))
        two = [list(EpochBatches(1000, 32, True, 3, rank, 2)) for rank in range(2)]
        for whole, *halves in zip(one, *two, strict=True):
            assert torch.cat(halves).sort().values.tolist() == whole.sort().values.tolist()

    def test_order_follows_seed_and_epoch(self) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            batches = EpochBatches(50, 50, True, seed)
            batches.set_epoch(epoch)
            return next(iter(batches)).tolist()

        assert order(0, 0) == order(0, 0)
        assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9

    def test_batches_of_one(self) -> None:
        parts = [list(EpochBatches(5, 1, False, 0, rank, 2)) for rank in range(2)]
        assert [len(part) for part in parts] == [2, 2]
        assert sorted(torch.cat([torch.cat(part) for part in parts]).tolist()) == [0, 1, 2, 3, 4]

    def test_errors(self) -> None:
        with pytest.raises(ConfigurationError, match="batch_size=0"):
            EpochBatches(5, 0, True)
        with pytest.raises(DataError, match="3 images cannot be shared by 4 processes"):
            EpochBatches(3, 1, True, world_size=4)


class TestTensorLoader:
    def test_images_labels_and_draws_belong_together(self) -> None:
        for images, labels, draws in loader():
            assert images[:, 0, 0, 0].tolist() == labels.tolist()
            assert draws.shape == (len(labels), 3)

    def test_passes_differ_unless_the_epoch_is_set(self) -> None:
        plain = loader()
        first, second = labels(plain), labels(plain)
        assert first != second
        assert sorted(first) == sorted(second)
        driven = loader()
        driven.batch_sampler.set_epoch(1)
        assert labels(driven) == labels(driven) == second

    def test_draws_do_not_depend_on_the_number_of_processes(self) -> None:
        whole = {int(y): d.tolist() for _, ys, ds in loader() for y, d in zip(ys, ds, strict=True)}
        parts = [batch for rank in range(2) for batch in loader(batch_size=8, rank=rank, world_size=2)]
        assert {int(y): d.tolist() for _, ys, ds in parts for y, d in zip(ys, ds, strict=True)} == whole

    @pytest.mark.parametrize("given", [0, 3, 7])
    def test_goes_on_where_it_stopped(self, given: int) -> None:
        interrupted, whole = loader(), loader()
        interrupted.batch_sampler.set_epoch(2)
        whole.batch_sampler.set_epoch(2)
        batches = iter(interrupted)
        begun = [next(batches) for _ in range(given)]
        state = interrupted.state_dict()
        resumed = loader()
        resumed.load_state_dict(state)
        resumed.batch_sampler.set_epoch(2)
        rest = list(resumed)
        assert len(begun) + len(rest) == len(whole)
        for (x, y, d), (x2, y2, d2) in zip([*begun, *rest], whole, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
            assert torch.equal(d, d2)

    def test_a_state_of_an_older_epoch_does_not_shorten_the_next(self) -> None:
        resumed = loader()
        resumed.load_state_dict({"epoch": 2, "batch": 7})
        resumed.batch_sampler.set_epoch(3)
        assert len(list(resumed)) == len(resumed)


def test_stratified_split() -> None:
    labels = torch.arange(10).repeat_interleave(50)[torch.randperm(500)]
    kept, held_out = stratified_split(labels, 0.1, seed=1)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(500))
    assert labels[held_out].bincount().tolist() == [5] * 10
    assert torch.equal(held_out, stratified_split(labels, 0.1, seed=1)[1])
    assert not torch.equal(held_out, stratified_split(labels, 0.1, seed=2)[1])
