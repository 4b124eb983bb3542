"""``--data``: any LightningDataModule by ``class_path``, as the images of a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from infoprune.commands.named_model import value_of
from infoprune.commands.parser import instantiate

IMAGES = 640


def add_data_arguments(parser: ArgumentParser, words: Sequence[str], images: int = IMAGES) -> None:
    """Add ``--data`` and ``--images``.

    Args:
        parser: The parser of the command.
        words: The command line, which says whether there are options of a data module to add.
        images: Default of ``--images``.
    """
    kind: Any = str | None
    if value_of(words, "--data") is not None:
        from lightning import LightningDataModule as kind

        import infoprune.data  # noqa: F401  # short names are those of imported classes
    parser.add_argument(
        "--data",
        type=kind,
        help="images to look at: a LightningDataModule by its path, its arguments as --data.root data",
    )
    parser.add_argument("--images", type=int, default=images, help="how many training images to look at")


class NamedData:
    """The images that the options name.

    Args:
        parser: the parser that the options come from.
        options: with ``data`` and ``images``.
    """

    def __init__(self, parser: ArgumentParser, options: Namespace) -> None:
        self.module = instantiate(parser, options).data
        self.images: int = options.images
        self.module.prepare_data()
        self.module.setup("fit")

    def training(self, augment: bool = False) -> Any:
        """Return batches of training images, normalised; the same each time."""
        sample = getattr(self.module, "calibration_batches", None)
        if sample is not None:
            return sample(self.images, augment=augment) if augment else sample(self.images)
        loader = self.module.train_dataloader()
        batches = -(-self.images // (getattr(loader, "batch_size", None) or 1))
        return list(islice(self._transferred(loader), batches))

    def test(self) -> Iterator[Any]:
        """Return batches of the test data, or of the validation data where there is none."""
        self.module.setup("test")
        return self._transferred(self.module.test_dataloader())

    def validation(self) -> list[Any]:
        """Return batches of the validation data."""
        return list(self._transferred(self.module.val_dataloader()))

    def _transferred(self, loader: Any) -> Iterator[Any]:
        for batch in loader:
            yield self.module.on_after_batch_transfer(batch, 0)


def open_data(parser: ArgumentParser, options: Namespace) -> NamedData | None:
    """Return the images that the options name, None if they name none.

    Args:
        parser: of the command.
        options: the parsed options.
    """
    return None if options.data is None else NamedData(parser, options)
