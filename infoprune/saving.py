"""`save` and `load`: files of pruned models, with the plan that leads from the architecture to their shape."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from infoprune.errors import CheckpointError, InfopruneError, PlanError
from infoprune.state_dicts import difference
from infoprune.structure import PruningPlan, plan_of, shrink
from infoprune.structure.plan import check_belongs
from infoprune.structure.surgery.transaction import Transaction
from infoprune.structure.tensors import owned_tensors
from infoprune.weight_files import (
    SAFETENSORS,
    digest_of,
    is_safetensors,
    read_safetensors,
    read_torch,
    write_safetensors,
    write_torch,
)

Model = TypeVar("Model", bound=nn.Module)

FORMAT = 1


@dataclass(frozen=True)
class SavedModel:
    """The content of a file of :func:`save`.

    Attributes:
        plan: what the model has lost.
        state: its ``state_dict()``.
        digest: of both, see :func:`infoprune.weight_files.digest_of`; empty in files of older versions.
    """

    plan: PruningPlan
    state: dict[str, Any]
    digest: str


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned model: its weights, and the plan that leads to its shape. No pickled code.

    Args:
        model: the model; one that is not pruned has an empty plan.
        path: the file. With the suffix ``.safetensors`` it becomes such a file, with the plan in its metadata (needs
            ``pip install 'infoprune[hub]'``), else one of ``torch.save``.

    Raises:
        CheckpointError: the file cannot be written, or safetensors cannot hold an entry of the state dict.
        ConfigurationError: safetensors is not installed.
    """
    plan, state = plan_of(model).to_dict(), model.state_dict()
    record = {"infoprune": FORMAT, "plan": plan, "digest": _digest(plan, state)}
    if os.fspath(path).endswith(SAFETENSORS):
        write_safetensors(path, state, record)
    else:
        write_torch(path, record | {"state_dict": state})


def load(path: str | os.PathLike[str], model: Model) -> Model:
    """Read what :func:`save` wrote into ``model``, the unpruned architecture, which is shrunk in place.

    Args:
        path: of the file.
        model: the unpruned architecture; it is shrunk and gets the weights.

    Returns:
        The same model.

    Raises:
        CheckpointError: the file is missing, damaged or something else, or belongs to another architecture (names
            the first layer that differs). The model is then as it was.
        ConfigurationError: safetensors is not installed.

    Example:
        >>> import infoprune, tempfile, torch
        >>> make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> net = make()
        >>> result = infoprune.prune(net, torch.zeros(1, 3, 8, 8), criterion="l1", filters=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, f"{folder}/net.pt")
        ...     load(f"{folder}/net.pt", make())[0].out_channels
        4
    """
    saved = read(path)
    if not plan_of(model).is_empty:
        raise CheckpointError(f"{path} is to be loaded into a model that is pruned already: give one as it was built")
    owned = owned_tensors(model)
    empty = next((name for name, entry in owned.items() if entry.tensor.is_meta), None)
    if empty is not None:
        raise CheckpointError(f"{path} is to be loaded into a model on the meta device, where {empty} has no values")
    try:
        check_belongs(saved.plan, {name: tuple(entry.tensor.shape) for name, entry in owned.items()})
    except PlanError as error:
        raise CheckpointError(f"{path} belongs to another architecture: {error}") from error
    different = difference(model, saved.plan, saved.state)
    if different:
        raise CheckpointError(f"{path} belongs to another architecture: {different}")
    if saved.digest not in ("", _digest(saved.plan.to_dict(), saved.state)):
        raise CheckpointError(f"{path} is damaged: its weights and plan are not those that its digest was made of")
    _put_into(model, saved, path)
    return model


def read(path: str | os.PathLike[str]) -> SavedModel:
    """Read a file of :func:`save` without a model.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, truncated or something else.
        ConfigurationError: safetensors is not installed.
    """
    try:
        os.fspath(path)
    except TypeError as error:
        raise CheckpointError(f"cannot read a {type(path).__name__}: {error}") from error
    if is_safetensors(path):
        state, record = read_safetensors(path)
        content = {**record, "state_dict": state}
    else:
        content = read_torch(path)
    if (
        not isinstance(content, dict)
        or content.get("infoprune") != FORMAT
        or not {"plan", "state_dict"} <= set(content)
    ):
        raise CheckpointError(
            f"{path} was not written by infoprune.save (format {FORMAT}); plain weights are loaded by load_state_dict"
        )
    state, digest = content["state_dict"], content.get("digest", "")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} is damaged: its 'state_dict' is a {type(state).__name__}, not tensors by name")
    if not isinstance(digest, str):
        raise CheckpointError(f"{path} is damaged: its 'digest' is a {type(digest).__name__}, not a text")
    try:
        return SavedModel(PruningPlan.from_dict(content["plan"]), state, digest)
    except PlanError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _put_into(model: nn.Module, saved: SavedModel, path: Any) -> None:
    try:
        with Transaction([model]) as transaction:
            shrink(model, saved.plan, transaction=transaction)
            transaction.keep_values(model)
            model.load_state_dict(saved.state)
    except PlanError as error:
        raise CheckpointError(f"{path} belongs to another architecture: {error}") from error
    except InfopruneError:
        raise
    except Exception as error:  # the model's own code reads extra state and metadata
        raise CheckpointError(
            f"{path} cannot be loaded into {type(model).__name__}: {type(error).__name__}: {error!s:.300}"
        ) from error


def _digest(plan: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(plan, sort_keys=True), state)
