"""Names of parts and classes, so that help and errors about names need not import PyTorch."""

CRITERIA = (
    "batchnorm_scale",
    "capacity_independence",
    "chip",
    "geometric_median",
    "grouped_taylor",
    "hessian",
    "hrank",
    "l1",
    "l2",
    "lamp",
    "least_squares",
    "random",
    "shapley",
    "taylor",
)
"""Names of the criteria, as `infoprune.criteria.CRITERIA` has them."""

ALLOCATIONS = (
    "auto",
    "coupled_last",
    "global",
    "information_concentration",
    "information_loss",
    "isomorphic",
    "per_layer",
    "per_stage",
    "uniform",
)
"""Names of the allocations, as `infoprune.allocation.ALLOCATIONS` has them."""

BACKENDS = ("compile", "eager", "executorch", "onnxruntime", "openvino")
"""Names of the backends, as `infoprune.backends.BACKENDS` has them."""

MODULES = ("ImageClassifier", "LightningModule")
"""LightningModules that ``--model`` of a training command takes by their short names."""

DATA = (
    "CIFAR100DataModule",
    "CIFAR10DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryDataModule",
    "LightningDataModule",
)
"""LightningDataModules that ``--data`` takes by their short names."""
