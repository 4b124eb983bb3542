"""Pruned models as folders and repositories of the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torch import nn

from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.files import write_text_whole
from infoprune.saving import load, save
from infoprune.structure import plan_of
from infoprune.structure.tensors import check_model

Model = TypeVar("Model", bound=nn.Module)

OF_THE_HUB = ("model_id", "revision", "cache_dir", "force_download", "local_files_only", "token")
"""What `PyTorchModelHubMixin` passes on beside a model's own options."""

WEIGHTS, CONFIG, PLAN = "model.safetensors", "config.json", "plan.json"


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a pruned model into a folder as the Hub lays it out.

    ``model.safetensors`` holds the weights and, in its metadata, the plan; ``plan.json`` the plan for readers;
    ``config.json`` how the unpruned architecture is built, where the model tells: models of timm, by timm's own
    convention, and those of ``huggingface_hub.PyTorchModelHubMixin``.

    Args:
        model: one that was pruned.
        folder: is made where it is missing.

    Raises:
        CheckpointError: a file cannot be written.
        ConfigurationError: safetensors is not installed.
    """
    check_model(model)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}") from error
    if hasattr(model, "pretrained_cfg"):
        from timm.models._hub import save_config_for_hf

        save_config_for_hf(model, str(folder / CONFIG))
    elif getattr(model, "_hub_mixin_config", None) is not None:
        config: Any = model._hub_mixin_config
        options = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
        write_text_whole(folder / CONFIG, json.dumps(options, indent=1))
    plan_of(model).save(folder / PLAN)
    save(model, folder / WEIGHTS)


def push_to_hub(model: nn.Module, repo_id: str, *, private: bool | None = None, **options: Any) -> str:
    """Upload a pruned model to the Hub, in one commit, and return the commit's address.

    Args:
        model: the model.
        repo_id: ``"owner/name"``; the repository is made if it does not exist.
        private: whether a new repository is private; default: as the account says.
        options: what ``huggingface_hub.HfApi`` takes (``token``, ``endpoint``), and ``commit_message``, ``revision``
            and ``create_pr`` of its ``upload_folder``.

    Raises:
        CheckpointError: a file cannot be written.
        ConfigurationError: huggingface_hub or safetensors is not installed.
    """
    api = _hub().HfApi(**{name: options.pop(name) for name in ("token", "endpoint") if name in options})
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        message = options.pop("commit_message", "Upload a pruned model")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, **options))


def from_pretrained(source: str | os.PathLike[str], model: Any = None, **options: Any) -> Any:
    """Return a pruned model from a folder or a repository that :func:`save_pretrained` or :func:`push_to_hub` made.

    Args:
        source: a folder, or ``"owner/name"`` on the Hub.
        model: the unpruned architecture, which is shrunk in place; or its class, which is called with what
            ``config.json`` says, with nothing if there is none. Default: the model of timm that ``config.json`` names.
        options: what ``huggingface_hub.snapshot_download`` takes: ``revision``, ``token``, ``cache_dir``,
            ``local_files_only``, ``endpoint``.

    Raises:
        CheckpointError: the files are missing or damaged, or belong to another architecture.
        ConfigurationError: ``model`` is needed, or a package is not installed.

    Example:
        >>> import infoprune, tempfile, torch
        >>> make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> net = make()
        >>> result = infoprune.prune(net, torch.zeros(1, 3, 8, 8), criterion="l1", filters=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(net, folder)
        ...     from_pretrained(folder, make())[0].out_channels
        4
    """
    folder = Path(source)
    if not folder.is_dir():
        hub = _hub()
        try:
            folder = Path(hub.snapshot_download(str(source), allow_patterns=[WEIGHTS, CONFIG, PLAN], **options))
        except (OSError, ValueError) as error:  # no such repository, no connection, no name of one
            raise CheckpointError(f"{source} is no folder, and cannot be read from the Hub: {error!s:.300}") from error
    return load(folder / WEIGHTS, model if isinstance(model, nn.Module) else _built(folder, model))


def _built(folder: Path, kind: type[nn.Module] | None) -> nn.Module:
    """Return the unpruned architecture that a folder's configuration describes."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).is_file() else "{}"
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {folder / CONFIG}: {error!s:.200}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} holds a {type(config).__name__}, not the options of a model")
    if kind is not None:
        return _made(kind, config, folder)
    if not isinstance(config.get("architecture"), str):
        raise ConfigurationError(f"{folder / CONFIG} names no model of timm: give the unpruned model or its class")
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(f"{folder / CONFIG} names a model of timm: pip install timm") from error

    def model_of_timm(**_: Any) -> Any:  # timm reads the file itself
        return timm.create_model(f"local-dir:{folder}", pretrained=False)

    return _made(model_of_timm, config, folder)


def _made(kind: Any, config: dict[str, Any], folder: Path) -> nn.Module:
    """Return what a class makes of a configuration; models of the Hub's mixin read it themselves."""
    name = getattr(kind, "__name__", type(kind).__name__)
    try:
        built = _read_by_mixin(kind, folder) if hasattr(kind, "_hub_mixin_config") else kind(**config)
    except Exception as error:  # of any kind: it is the user's code
        raise ConfigurationError(
            f"{name} cannot be built from {folder / CONFIG} ({type(error).__name__}: {error!s:.200}): "
            "give the unpruned model itself"
        ) from error
    if not isinstance(built, nn.Module):
        raise ConfigurationError(
            f"{name} makes a {type(built).__name__}, not a torch.nn.Module: give the unpruned model"
        )
    return built


def _read_by_mixin(kind: Any, folder: Path) -> Any:
    """Build a model as ``from_pretrained`` of `PyTorchModelHubMixin` does, without weights: theirs have other sizes."""

    class Unloaded(kind, coders=kind._hub_mixin_coders):  # type: ignore[call-arg]
        @classmethod
        def _from_pretrained(cls, **options: Any) -> Any:
            return kind(**{name: value for name, value in options.items() if name not in OF_THE_HUB})

    with suppress(NameError):  # annotations as text, which the mixin does not read
        hints = get_type_hints(kind.__init__)
        parameters = Unloaded._hub_mixin_init_parameters
        Unloaded._hub_mixin_init_parameters = {
            name: parameter.replace(annotation=hints.get(name, parameter.annotation))
            for name, parameter in parameters.items()
        }
    return Unloaded.from_pretrained(str(folder))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigurationError("the Hugging Face Hub needs pip install 'infoprune[hub]'") from error
    return huggingface_hub
