"""Store the plan in checkpoints, and bring models to the shape of the weights that they load."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from infoprune import loading
from infoprune.errors import CheckpointError, PlanError
from infoprune.state_dicts import cut_already, renamed, shapes_after, without, without_late
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.surgery.held import held_optimizers, replace_held, with_wrapped
from infoprune.structure.surgery.history import first_shapes, note, plan_of, regrow
from infoprune.structure.surgery.shrink import shrink
from infoprune.structure.surgery.transaction import Transaction

RECORD = loading.RECORD
"""Where the plan lies: a key of the Trainer's checkpoints, and of the metadata of a state dict."""

_ATTACHED = "_infoprune_attached"

Module = TypeVar("Module", bound=nn.Module)


def attach(model: nn.Module) -> None:
    """Let a model's ``state_dict()`` carry its plan, and ``load_state_dict()`` shrink or grow it to what comes in.

    :class:`infoprune.FilterPruning` does this by itself, in the process where it trains. Call it where a model loads
    weights before any callback can act: before ``trainer.fit`` with ``strategy="ddp_spawn"``.

    Example:
        >>> from infoprune import prune
        >>> import torch
        >>> make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> pruned, fresh = make(), make()
        >>> attach(pruned), attach(fresh)
        (None, None)
        >>> result = prune(pruned, torch.zeros(1, 3, 8, 8), criterion="l1", filters=0.5)
        >>> fresh.load_state_dict(pruned.state_dict())
        <All keys matched successfully>
        >>> fresh[0]
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    if not is_attached(model):
        model.__dict__[_ATTACHED] = True
        model.register_state_dict_post_hook(_write_plan)
        model.register_load_state_dict_pre_hook(_follow_plan)


def is_attached(model: nn.Module) -> bool:
    """Return whether :func:`attach` was called for a model (or for the one that it is a copy of).

    Args:
        model: the model.
    """
    return _ATTACHED in model.__dict__


def take_shape(models: Iterable[nn.Module], checkpoint: Mapping[str, Any]) -> None:
    """Bring models to the shape that a Trainer's checkpoint was written in, before its weights are loaded.

    Args:
        models: the module of a fit, and the copies of it that are averaged.
        checkpoint: what the Trainer has read.

    Raises:
        CheckpointError: the checkpoint belongs to another architecture; the models are as they were.
    """
    metadata = getattr(checkpoint.get("state_dict"), "_metadata", {})
    record = checkpoint.get(RECORD, metadata.get("", {}).get(RECORD))
    if isinstance(record, Mapping):
        shapes = _shapes(checkpoint.get("state_dict", {}))
        for model in models:
            adapt(model, without_late(model, _plan(record), shapes))


def take_shape_around(models: Iterable[nn.Module], checkpoint: Mapping[str, Any], hook: Callable[[], object]) -> None:
    """Call `take_shape` before a module's own hook, which may need the shape, or behind it if it renames the weights.

    Args:
        models: the module, and the copies of it that are averaged.
        checkpoint: what was read.
        hook: calls the module's ``on_load_checkpoint``, which may change the checkpoint.

    Raises:
        CheckpointError: the checkpoint belongs to another architecture; the models are as they were.
    """
    models, before = list(models), dict(checkpoint.get("state_dict", {}))
    try:
        take_shape(models, checkpoint)
    except CheckpointError:
        hook()
        if not _rename_plan(checkpoint, before):
            raise
        take_shape(models, checkpoint)
    else:
        hook()


def _rename_plan(checkpoint: Any, before: Mapping[str, Any]) -> bool:
    """Give the plan of a checkpoint the names that its weights have been given; return whether they have new ones."""
    state = checkpoint.get("state_dict", {})
    old = {id(value): name for name, value in before.items()}
    names = {old[id(value)]: name for name, value in state.items() if old.get(id(value), name) != name}
    metadata = getattr(state, "_metadata", {}).get("", {})
    for place in (place for place in (checkpoint, metadata) if names and RECORD in place):
        place[RECORD] = {"plan": renamed(_plan(place[RECORD]), names).to_dict()}
    return bool(names)


def plan_in(content: Any, prefix: str = "") -> PruningPlan:
    """Return the plan that a file's weights were pruned by; empty where it tells of none.

    Args:
        content: what `torch.load` read: of :func:`infoprune.save`, a Trainer's checkpoint, or a state dict.
        prefix: the part of the model that is asked for: the start of its tensors' names, with the dot.

    Raises:
        CheckpointError: the plan cannot be read.
    """
    if not isinstance(content, Mapping):
        return PruningPlan()
    metadata = getattr(content.get("state_dict", content), "_metadata", {})
    record = content.get(RECORD, metadata.get("", {}).get(RECORD))
    record = record if isinstance(record, Mapping) or RECORD not in content else content  # infoprune.save's own form
    if not isinstance(record, Mapping) or "plan" not in record:
        return PruningPlan()
    return _within(_plan(record), prefix)


def _within(plan: PruningPlan, prefix: str) -> PruningPlan:
    """Return the part of a plan that concerns a submodule, by the submodule's own names."""
    start = len(prefix)
    # torch.compile(net) inserts this name; it says nothing about the architecture
    names = {name: name.replace("_orig_mod.", "")[start:] for name in [*plan.shapes, *plan.attributes, *plan.caches]}
    inside = [name for name in names if name.replace("_orig_mod.", "").startswith(prefix)]
    return PruningPlan(
        {names[name]: plan.removed[name] for name in inside if name in plan.removed},
        {names[name]: plan.shapes[name] for name in inside if name in plan.shapes},
        {names[name]: plan.attributes[name] for name in inside if name in plan.attributes},
        tuple(names[name] for name in inside if name in plan.caches),
    )


def with_plan(model: nn.Module, state: Mapping[str, Any], plan: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a state dict whose metadata tell the plan that a checkpoint's marker holds.

    Args:
        model: where the weights are to be loaded.
        state: the weights. If their metadata tell a plan already, they are returned as they are.
        plan: the marker's plan, by the names of the model that was saved: this one, or one that contains it.
    """
    metadata = getattr(state, "_metadata", {})
    if plan is None or RECORD in metadata.get("", {}):
        return state
    own, whole = first_shapes(model), _plan({"plan": plan})
    incoming = _shapes(state)
    for prefix in _prefixes(whole.shapes):
        inside = _within(whole, prefix)
        fits = all(own.get(name) == shape for name, shape in inside.shapes.items())
        if fits and not inside.is_empty and not _clash(model, inside, incoming):
            told = OrderedDict(state)
            told._metadata = {**metadata, "": {**metadata.get("", {}), RECORD: {"plan": inside.to_dict()}}}  # type: ignore[attr-defined]
            return told
    return state


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the paths of all modules that hold some tensors, with a dot behind, the root first."""
    paths = {""}
    for name in names:
        parts = name.split(".")
        paths |= {".".join(parts[:depth]) + "." for depth in range(1, len(parts))}
    return sorted(paths, key=lambda path: (len(path), path))


def adapt(model: nn.Module, plan: PruningPlan) -> None:
    """Bring a model, whatever it has lost so far, to the shape that a plan gives its architecture.

    The values of what is cut or grown are not kept: weights are to be loaded next.

    Args:
        model: the architecture, pruned or not.
        plan: for the unpruned architecture.

    Raises:
        CheckpointError: the plan belongs to another architecture; the model is as it was.
    """
    if plan_of(model) == plan:
        return
    _check_architecture(model, plan)
    ready = cut_already(model, plan)
    try:
        optimizers = with_wrapped(held_optimizers(model))
        with Transaction([model], optimizers) as transaction:
            regrow(model)
            replaced = shrink(model, without(plan, ready), optimizers, transaction=transaction)
            replace_held(model, replaced)
            note(model, plan, ready)
    except PlanError as error:
        raise CheckpointError(f"the checkpoint belongs to another architecture: {error}") from error


def load_from_checkpoint(cls: type[Module], path: Any, **options: Any) -> Module:
    """Call ``cls.load_from_checkpoint`` for a checkpoint that was written while or after pruning.

    Args:
        cls: the LightningModule's class.
        path: the checkpoint.
        options: what ``cls.load_from_checkpoint`` takes: ``map_location``, ``strict``, the constructor's arguments.

    Returns:
        The module in the shape of the checkpoint.

    Raises:
        CheckpointError: the checkpoint belongs to another architecture; names the first tensor that differs.
    """

    def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        attach(self)
        take_shape_around([self], checkpoint, lambda: cls.on_load_checkpoint(self, checkpoint))  # type: ignore[attr-defined]

    shaped = type(cls.__name__, (cls,), {"on_load_checkpoint": on_load_checkpoint, "__module__": cls.__module__})
    module = shaped.load_from_checkpoint(path, **options)  # type: ignore[attr-defined]
    module.__class__ = cls
    assert isinstance(module, cls)
    return module


def _plan(record: Mapping[str, Any]) -> PruningPlan:
    try:
        return PruningPlan.from_dict(record.get("plan"))
    except PlanError as error:
        raise CheckpointError(f"the checkpoint's pruning record cannot be read: {error}") from error


def plan_record(model: nn.Module) -> dict[str, Any]:
    """Return what a checkpoint keeps about a model's shape: primitives only.

    Args:
        model: the model, pruned or not.
    """
    return {"plan": plan_of(model).to_dict()}


# -- hooks of a model's state dict ------------------------------------------------------------------------------------


def _write_plan(module: nn.Module, state: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
    local_metadata[RECORD] = plan_record(module)


def _follow_plan(
    module: nn.Module,
    state: Mapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Take the shape of weights that are about to be loaded, or refuse them while nothing has changed."""
    now = plan_of(module)
    record = local_metadata.get(RECORD)
    incoming = {key.removeprefix(prefix): shape for key, shape in _shapes(state).items() if key.startswith(prefix)}
    if record is not None:
        plan = without_late(module, _plan(record), incoming)
    elif _clash(module, now, incoming) and not _clash(module, PruningPlan(), incoming):
        plan = PruningPlan()  # weights from before the first cut, whose record somebody dropped
    else:
        plan = now
    if plan.is_empty and now.is_empty:
        return  # an ordinary model and ordinary weights: PyTorch has its own words for those
    _check_architecture(module, plan)
    clash = _clash(module, plan, incoming)
    if clash:
        raise CheckpointError(f"the checkpoint belongs to another architecture: {clash}")
    adapt(module, plan)


def _check_architecture(model: nn.Module, plan: PruningPlan) -> None:
    """Raise a CheckpointError that names the tensor where a plan is for another model."""
    own = first_shapes(model) | {name: plan.shapes[name] for name in cut_already(model, plan)}
    try:
        check_belongs(plan, own)
    except PlanError as error:
        unknown = plan.shapes.keys() - own.keys()
        advice = "; a part that is added in the fit has to be added to the model before this checkpoint is loaded"
        if {name.replace("_orig_mod.", "") for name in unknown} <= {name.replace("_orig_mod.", "") for name in own}:
            advice = "; in one of them the network is wrapped by torch.compile: wrap it in both, or call net.compile()"
        advice = advice if unknown else ""
        raise CheckpointError(f"the checkpoint belongs to another architecture: {error}{advice}") from error


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}


def _clash(module: nn.Module, plan: PruningPlan, incoming: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first tensor whose shape after a plan differs from the one that comes in, in words."""
    for key, wanted in shapes_after(module, plan).items():
        if key in incoming and incoming[key] != wanted:
            return f"{key} has shape {incoming[key]} in the checkpoint, the model needs {wanted}"
    return ""
