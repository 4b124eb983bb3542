"""How every command is told which model: a class, a run folder, a checkpoint of a run, or a configuration.

- ``--model resnet18``, ``--model timm:resnet50``: a network of torchvision or timm.
- ``--model my_package.Net``, ``--model CifarResNet --model.depth 56``: a class, or a function that returns a module, by
  its path, with its arguments (``--model.help CifarResNet`` lists them); ours by their short names.
- ``--model runs/quickstart/version_0``: the folder of a run, with the pruned weights.
- ``--model runs/quickstart/version_0/checkpoints/last.ckpt``: one checkpoint of a run.
- ``--model my.yaml``: the ``model`` of a configuration.

``--weights`` adds weights to a class or a configuration; a file of a pruned model shrinks it first.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from infoprune.commands.parser import instantiate, make_parser
from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.report.record import RunRecord

if TYPE_CHECKING:
    from torch import nn

    from infoprune.inputs import Inputs

FILES = (".ckpt", ".pt", ".pth", ".yaml", ".yml")

Config = dict[str, Any]


@dataclass
class NamedModel:
    """The model that a command works on.

    Attributes:
        network: the model, in eval mode.
        inputs: example inputs of its forward, random numbers.
        shape: their shape or shapes, as ``--input_shape`` takes them.
        config: ``class_path`` and ``init_args`` of what the network is, or is inside of.
        module: path of the network within that.
        record: the record of the run that it comes from.
    """

    network: nn.Module
    inputs: Inputs
    shape: Any
    config: Config
    module: str = ""
    record: RunRecord | None = None

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self.network).__name__

    @property
    def describes(self) -> dict[str, Any]:
        """Return what ``--json`` says about it."""
        return {"class": self.name, "class_path": self.config["class_path"], "input_shape": self.shape}

    def architecture(self) -> nn.Module:
        """Build the same network again: unpruned, with the initial weights of its class."""
        return _build(self.config).get_submodule(self.module).eval()


def add_model_arguments(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Add ``--model``, ``--weights``, ``--input_shape`` and ``--module``.

    Args:
        parser: of the command.
        words: the command line, which says what kind of model it names.
    """
    named = value_of(words, "--model") or value_of(words, "--model.help")
    is_class = named is not None and not _is_path(named)
    kind: type = str
    if is_class:
        from torch.nn import Module as kind
    if named == "ImageClassifier":
        import infoprune.models.classifier
    elif is_class and named and "." not in named:
        import infoprune.models  # noqa: F401  # short names are those of imported classes
    parser.add_argument(
        "--model",
        type=kind,
        required=True,
        help="a network of torchvision or timm by name (resnet18, timm:resnet50), a class or function by its path "
        "(its arguments as --model.num_classes 10), the folder of a run, a checkpoint in one, or a configuration with "
        "a model",
    )
    parser.add_argument(
        "--weights",
        type=str | None,
        help="weights for the model: a state dict, a Lightning checkpoint, or a file of infoprune.save",
    )
    parser.add_argument(
        "--input_shape",
        "--input-shape",
        type=str | list | dict | None,
        help="shape of the input with the batch, 1,3,224,224; several inputs as [[1,3,32,32],[1,10]] or by name; not "
        "needed for run folders",
    )
    parser.add_argument(
        "--module", type=str | None, help="path of the network inside the model (a LightningModule's attribute)"
    )


def open_model(parser: ArgumentParser, options: Namespace) -> NamedModel:
    """Build the model that the options name, with its weights.

    Args:
        parser: of the command.
        options: the parsed options.

    Raises:
        ConfigurationError: no such class, file or submodule; no input shape is known.
        CheckpointError: weights or a run folder that cannot be read, or that another version wrote.
    """
    from infoprune.shapes import random_inputs

    if not isinstance(options.model, str):
        made = instantiate(parser, options).model
        named = NamedModel(made, {}, None, options.model.as_dict(), options.module or "")
        weights = options.weights
    else:
        named, weights = _from_path(Path(options.model), options.module)
        weights = options.weights or weights
    named.config = _primitives(named.config)
    whole = named.network
    named.network = _submodule(whole, named.module)
    if weights is not None:
        if not Path(weights).is_file():
            raise ConfigurationError(f"--weights {weights}: there is no such file")
        from infoprune.models.weights import load_weights

        load_weights(named.network, weights)
    named.shape = _shape(options.input_shape) or named.shape or _own_shape(whole, named.network)
    if named.shape is None:
        raise ConfigurationError(
            f"which input {named.name} takes is not known: give its shape, as in --input_shape 1,3,224,224"
        )
    named.inputs = random_inputs(named.shape)
    named.network.eval()
    return named


def value_of(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option on a command line.

    Args:
        words: the command line.
        option: the option with its dashes.

    Example:
        >>> value_of(["--json", "--model", "a.B"], "--model"), value_of(["--model=x"], "--model")
        ('a.B', 'x')
        >>> value_of([], "--model")
    """
    for position, word in enumerate(words):
        if word == option:
            return words[position + 1] if position + 1 < len(words) else None
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


# -- where a model comes from -----------------------------------------------------------------------------------------


def _is_path(text: str) -> bool:
    if Path(text).exists():
        return True
    if "/" in text or text.endswith(FILES):
        raise ConfigurationError(f"--model {text}: there is no such file or folder")
    return False


def _from_path(path: Path, module: str | None) -> tuple[NamedModel, str | None]:
    """Return the model of a run folder, of a checkpoint in one, or of a configuration; and the file of its weights."""
    if path.suffix in (".yaml", ".yml"):
        config = _read_config(path)
        return NamedModel(_build(config), {}, None, config, module or ""), None
    folder = path if path.is_dir() else _folder_of(path)
    config = _read_config(folder / "config.yaml")
    record = RunRecord.load(folder / "record.json") if (folder / "record.json").is_file() else None
    weights = folder / "pruned.pt" if path.is_dir() else path
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no pruned.pt: the run did not end; name one of its checkpoints")
    inside = module if module is not None else record.network if record else ""
    shape = record.inputs if record else None
    return NamedModel(_build(config), {}, shape, config, inside, record), str(weights)


def _folder_of(checkpoint: Path) -> Path:
    """Return the run folder that a checkpoint lies in."""
    if checkpoint.suffix not in FILES:
        raise ConfigurationError(
            f"--model {checkpoint} is neither the folder of a run nor a checkpoint ({', '.join(FILES[:3])}) nor a "
            "configuration (.yaml)"
        )
    for folder in list(checkpoint.resolve().parents)[:3]:
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigurationError(
        f"{checkpoint} holds weights, not the class of the model, and lies in no run folder: give the class as --model "
        f"and the file as --weights {checkpoint}"
    )


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise ConfigurationError(
            f"{path.parent} has no {path.name} that says what its model is: give the class as --model and the weights "
            f"as --weights {path.parent / 'pruned.pt'}"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "class_path" not in model:
        raise ConfigurationError(f"{path} has no model with a class_path")
    return dict(model)


def _build(config: Config) -> nn.Module:
    """Make what a ``class_path`` and its ``init_args`` describe."""
    from torch import nn

    parser = make_parser("", "", "")
    parser.add_argument("--model", type=nn.Module)
    try:
        checked = parser.parse_object({"model": config})
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{config['class_path']} cannot be made: {' '.join(str(error).split())}") from error
    module = instantiate(parser, checked).model
    assert isinstance(module, nn.Module)
    return module


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise ConfigurationError(f"--module {path}: {type(module).__name__} has no such submodule") from error


def _shape(given: Any) -> Any:
    """Read ``--input_shape``: ``1,3,224,224`` is a list as well.

    >>> _shape("1,3,32,32"), _shape([[1, 3], [1, 5]]), _shape(None)
    ([1, 3, 32, 32], [[1, 3], [1, 5]], None)
    """
    if isinstance(given, str):
        try:
            given = [int(size) for size in given.replace("x", ",").split(",")]
        except ValueError:
            raise ConfigurationError(f"--input_shape {given}: give whole numbers, as in 1,3,224,224") from None
    sizes = given.values() if isinstance(given, Mapping) else given or []
    for size in [n for entry in sizes for n in (entry if isinstance(entry, list) else [entry])]:
        if not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"--input_shape: {size!r} is no size; give whole numbers, as in 1,3,224,224")
    return given


def _own_shape(whole: nn.Module, network: nn.Module) -> Any:
    """Return the shape of a LightningModule's ``example_input_array``, where the network is all of it."""
    example = getattr(whole, "example_input_array", None)
    if example is None:
        return None
    import torch

    from infoprune.inputs import call_model
    from infoprune.shapes import shapes_of

    received: list[Any] = []
    handle = network.register_forward_pre_hook(lambda _, args: received.append(args))
    try:
        with torch.no_grad():
            call_model(whole.eval(), example)
    finally:
        handle.remove()
    args: Any = received[0] if received else ()
    return shapes_of(args[0] if len(args) == 1 else args)


def _primitives(value: Any) -> Any:
    """Turn a parsed ``class_path`` entry into what YAML can hold."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): _primitives(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_primitives(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
