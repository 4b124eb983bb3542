"""Read files of weights in no more memory than their size, and check them by a digest."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from infoprune.errors import CheckpointError, ConfigurationError
from infoprune.files import written_whole

SAFETENSORS = ".safetensors"
OLD_FORMAT = 5
"""So many pickles, one behind another, begin a file of ``torch.save`` as it was before PyTorch 1.6."""

RECORD = "infoprune"
"""The key of our metadata in a safetensors file."""


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Read what ``torch.save`` wrote: tensors and primitives only.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, truncated or something else, or would take more memory than its size.
    """
    try:
        _check_growth(os.fspath(path))
        with open(path, "rb") as file:  # by its suffix, torch.load would take some names for another format
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read {path}: there is no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"cannot read {path}: it holds more than tensors and plain values, whose code could do anything, or is "
            "truncated or not a checkpoint; save a state dict, model.state_dict()"
        ) from error
    except Exception as error:  # a damaged file makes the reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot read {path}, it is truncated or not a checkpoint: {reason:.200}") from error


def _check_growth(path: str) -> None:
    """Refuse files whose content grows when it is read: compressed records, and calls that allocate memory."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            for _ in range(OLD_FORMAT):
                _check_calls(path, file)
        return
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} is no file of torch.save: its record {record.filename!r} is compressed")
            if record.filename.endswith(".pkl"):
                _check_calls(path, io.BytesIO(archive.read(record)))


def _check_calls(path: str, pickled: BinaryIO) -> None:
    """Read a pickle's codes, and refuse one that names a class whose call allocates memory of any size."""
    strings: list[str] = []
    for code, argument, _ in pickletools.genops(pickled):
        if code.name in ("GLOBAL", "STACK_GLOBAL"):
            called = str(argument) if code.name == "GLOBAL" else " ".join(strings[-2:])
            if called.endswith(" bytearray") or (called.startswith("torch") and called.endswith("Tensor")):
                raise CheckpointError(f"{path} is no file of weights: it calls {called!r:.60}")
        elif isinstance(argument, str):
            strings.append(argument)


def write_torch(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a file with ``torch.save``, wholly or not at all.

    Args:
        path: of the file, replaced if it exists.
        content: what ``torch.load(weights_only=True)`` can read.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        with written_whole(path) as scratch:
            torch.save(content, scratch)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


# -- safetensors ------------------------------------------------------------------------------------------------------


def write_safetensors(path: str | os.PathLike[str], state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors, with a record of primitives in its metadata.

    A tensor with several names is written once, under its first; ``record`` gains ``aliases``: other name -> first.

    Args:
        path: of the file, replaced if it exists.
        state: name -> tensor.
        record: primitives, written as JSON.

    Raises:
        CheckpointError: the file cannot be written, or the state dict holds more than tensors.
        ConfigurationError: safetensors is not installed.
    """
    save_file = _safetensors("torch").save_file
    tensors, aliases = _once(path, state)
    text = json.dumps({**record, "aliases": aliases})
    try:
        with written_whole(path) as scratch:
            save_file(tensors, scratch, metadata={"format": "pt", RECORD: text})
    except (OSError, RuntimeError, ValueError, _safetensors("").SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _once(path: Any, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a state dict with a memory of their own, and the names of those that share one."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = type(tensor).__name__ if not isinstance(tensor, Tensor) else f"{tensor.layout} or quantized tensor"
            raise CheckpointError(f"{path}: safetensors cannot hold {key}, a {kind}; give the file the suffix .pt")
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (key,)
        if where in names:
            aliases[key] = names[where]
            continue
        names[where] = key
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        tensors[key] = tensor.detach() if whole else tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a safetensors file and our record in its metadata; empty if it was written by others.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, truncated or something else.
        ConfigurationError: safetensors is not installed.
    """
    opened = _safetensors("").safe_open
    try:
        with opened(os.fspath(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            record = json.loads((file.metadata() or {}).get(RECORD, "{}"))
            aliases = record.get("aliases", {})
            tensors |= {name: tensors[first] for name, first in aliases.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read {path}: there is no such file") from error
    except Exception as error:  # what the metadata holds may be anything
        raise CheckpointError(f"cannot read {path}, it is truncated or no safetensors: {error!s:.200}") from error
    return tensors, record


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is safetensors by its suffix; a zip of that name, which ``torch.save`` writes, is not.

    Args:
        path: the file.
    """
    return Path(path).suffix == SAFETENSORS and not zipfile.is_zipfile(path)


def _safetensors(part: str) -> Any:
    try:
        return importlib.import_module(f"safetensors.{part}" if part else "safetensors")
    except ImportError as error:
        raise ConfigurationError("files with the suffix .safetensors need pip install 'infoprune[hub]'") from error


# -- the digest -------------------------------------------------------------------------------------------------------


def digest_of(plan: str, state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a plan and of all dense tensors of a state dict, names, types and shapes included.

    Args:
        plan: as JSON.
        state: name -> value; of what is no dense tensor the values do not count.
    """
    digest = hashlib.sha256(plan.encode())
    for key, tensor in sorted(state.items()):
        digest.update(key.encode())
        if isinstance(tensor, Tensor):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            if tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta:
                flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
