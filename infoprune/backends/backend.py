"""`Backend`: load a model into a runtime and time its runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from infoprune.errors import ConfigurationError
from infoprune.part import Part
from infoprune.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from infoprune.inputs import Inputs

Run: TypeAlias = Callable[[], float]
"""Runs a model once and returns the seconds that it took."""


@dataclass(kw_only=True)
class Backend(Part):
    """A runtime that models are deployed in.

    A subclass is one file here, with a class that is registered under its name. Packages that it needs are imported
    when a model is loaded, not before.
    """

    kind: ClassVar[str] = "backend"
    packages: ClassVar[tuple[str, ...]] = ()
    """What has to be installed, in the extra of the backend's name."""
    quick_to_load: ClassVar[bool] = False
    """Whether layers are loaded in milliseconds each, so that each can be timed."""
    repeats: ClassVar[int] = 15
    """Fewest pairs of runs that tell how long one model takes against another."""

    warmup: ClassVar[int] = 3
    """Runs that are not counted."""

    @abstractmethod
    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Make a model ready to run on these inputs, in eval mode. The model is not changed.

        Args:
            model: the model.
            example_inputs: inputs of the shapes that it will run on.

        Raises:
            ConfigurationError: the backend is not installed; the message says how to get it.
            ExportError: the backend cannot take the model; the message says where.
        """

    def warmed_up(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Load a model, and run it a few times.

        Args:
            model: the model.
            example_inputs: inputs of the shapes that it will run on.
        """
        run = self.load(model, example_inputs)
        for _ in range(self.warmup):
            run()
        return run

    def seconds_of(self, networks: Sequence[tuple[nn.Module, Inputs]], runs: int) -> list[float]:
        """Return the seconds that each of some small networks takes, the fewest of some runs.

        What else the machine does only adds to a run. The networks take turns, so that a while of load meets all.

        Args:
            networks: The networks, each with its example inputs.
            runs: Measured runs of each.
        """
        loaded = [self.warmed_up(network, inputs) for network, inputs in networks]
        rounds = [[run() for run in loaded] for _ in range(runs)]
        return [min(times) for times in zip(*rounds, strict=True)]

    def check(self) -> None:
        """Raise a ConfigurationError that says how to install what is missing, if anything is."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ConfigurationError(
                f"{self.label} needs {' and '.join(missing)}, not installed here: pip install 'infoprune[{self.name}]'"
            )

    @property
    def versions(self) -> str:
        """The versions of the software that runs the model; measured times are valid for these."""
        return " ".join(f"{package}-{_version(package)}" for package in ("torch", *self.packages))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


BACKENDS: Registry[Backend] = Registry(Backend)  # type: ignore[type-abstract]

BackendSpec: TypeAlias = "str | Mapping[str, Any] | Backend | Callable[[nn.Module, Inputs], float]"
"""A name, ``{"name": ..., options}``, a `Backend`, or a function from a model and its inputs to seconds."""


def get_backend(spec: BackendSpec) -> Backend:
    """Return the backend that ``spec`` describes, and make sure that it is installed.

    Args:
        spec: a name, ``{"name": ..., options}``, a `Backend`, or a function of model and inputs that returns seconds.

    Raises:
        ConfigurationError: unknown name or option, or a package is missing.

    Example:
        >>> get_backend("eager").name, get_backend(lambda model, inputs: 0.01).name
        ('eager', 'function')
    """
    from infoprune.backends.function import Function

    given: object = spec
    if isinstance(given, type) and issubclass(given, Backend):
        raise ConfigurationError(f"the backend {given.__name__} is a class: give an object, {given.__name__}()")
    backend = Function(spec) if callable(spec) and not isinstance(spec, Backend) else BACKENDS.build(spec)
    backend.check()
    return backend
