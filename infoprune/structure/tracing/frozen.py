"""Freeze channels whatever the operators say: layers by name, layers of some kinds, image colours."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from infoprune.errors import ConfigurationError, nearest
from infoprune.structure.tracing.examples import tensors_of
from infoprune.structure.tracing.leaving import REACHES_OUTPUT
from infoprune.structure.tracing.rule_context import MEETS_OTHERS

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession

FEWEST_AT_ENDS = 8
"""Layers right at an input or output that have as many channels inside as that has, fewer than this, keep them."""


def frozen_names(model: nn.Module, frozen: Sequence[str | nn.Module]) -> list[str]:
    """Return patterns of names as they are, and modules by the names that they have in a model.

    Args:
        model: The model.
        frozen: Patterns of names, or modules of the model.

    Raises:
        ConfigurationError: a module is not within the model, or an entry is neither a pattern nor a module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> frozen_names(net, ["0", net[1]])
        ['0', '1']
    """
    wanted = [frozen] if isinstance(frozen, (str, nn.Module)) else frozen
    names = {id(module): name for name, module in model.named_modules()} if wanted else {}
    patterns = []
    for given in wanted:
        if isinstance(given, nn.Module) and id(given) not in names:
            raise ConfigurationError(f"frozen holds a {type(given).__name__} that is not within {type(model).__name__}")
        if not isinstance(given, (str, nn.Module)):
            raise ConfigurationError(
                f"frozen holds modules, or patterns of their names such as 'layer1.*', got {given!r}"
            )
        patterns.append(given if isinstance(given, str) else glob.escape(names[id(given)]) or "*")
    return patterns


def freeze_patterns(session: TraceSession, patterns: Sequence[str]) -> None:
    """Freeze the filters (the first dimension of every tensor) of the modules that match.

    Args:
        session: the model, not yet run.
        patterns: patterns of module or parameter names; ``"!name"`` lets few channels at an input or output go.

    Raises:
        ConfigurationError: a pattern matches nothing.
    """
    for given in patterns:
        pattern = given.removeprefix("!")
        matching = [tensor for tensor in session.labels if _matches(session, tensor, pattern)]
        if not matching:
            raise ConfigurationError(
                f"frozen pattern {pattern!r} matches no module or parameter of {type(session.model).__name__}"
                f"{nearest(pattern, session.modules)}"
            )
        if given != pattern:
            session.narrow_too.update(matching)
            continue
        for axes in (session.labels[tensor] for tensor in matching):
            if axes:
                session.space.freeze(axes[0], f"matches the frozen pattern {pattern!r}")


def _matches(session: TraceSession, tensor: str, pattern: str) -> bool:
    """Return whether a pattern matches a tensor or a module that it is in."""
    parents = (tensor.rsplit(".", n)[0] for n in range(1, tensor.count(".") + 1))
    modules = (parent for parent in parents if parent in session.modules)
    return any(fnmatch.fnmatchcase(name, pattern) for name in (tensor, *modules))


def freeze_modules(session: TraceSession) -> None:
    """Freeze the positions of kernels, and layers that keep copies or views of their weights elsewhere.

    Args:
        session: the session, before its first run.
    """
    for name, entry in session.owned.items():
        for labels in session.labels[name][entry.channel_dims :]:
            session.space.freeze(labels, None)
    for prefix, module in session.modules.items():
        reason = None
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            reason = f"belongs to the recurrent layer {prefix or type(module).__name__}"
        elif isinstance(module, torch.jit.ScriptModule):
            reason = f"belongs to {prefix}, whose sizes torch.jit has compiled in; prune the model before"
        for name, _ in [*module.named_parameters(), *module.named_buffers()] if reason else ():
            for labels in session.labels.get(f"{prefix}.{name}" if prefix else name, ()):
                session.space.freeze(labels, reason)


def freeze_ends(session: TraceSession) -> None:
    """Freeze the channels of layers at an input or output that have no more channels than it has.

    Such layers work on colours: the mean shifts of super-resolution, or the way from and to luminance. A model without
    one of these channels is of no use, however exact the cut. A layer behind such a layer counts as one at the input,
    too.

    Args:
        session: the session, after its runs.
    """
    # "Frozen because it meets an input or reaches an output" marks the layers from which the search starts.
    component = session.space.components()
    ends: dict[str, set[int]] = {"input": set(), "output": set()}
    inputs = tensors_of(session.inputs)
    sizes = {size for x in inputs for size in (x.shape[:2] if x.dim() == 3 else x.shape[1:2])}  # no number of examples
    for freeze in session.space.freezes:
        end = {MEETS_OTHERS: "input", REACHES_OUTPUT: "output"}.get(freeze.reason or "")
        if end == "input" and len(freeze.labels) not in sizes:
            continue  # it meets another tensor than an input, such as a constant that is added
        if end:
            ends[end].update(component[freeze.labels].tolist())
    kernels = {c.kernel for _, tracer in session.passes.traced for c in tracer.contractions} - session.narrow_too
    waiting = {  # kernels with space, read from either side
        (name, side): (outer, inner)
        for name in sorted(kernel for kernel in kernels if len(session.labels.get(kernel, ())) > 2)
        for side, (outer, inner) in enumerate((session.labels[name][:2], session.labels[name][1::-1]))
        if 1 < len(inner) < FEWEST_AT_ENDS and len(inner) <= len(outer)
    }
    # Freezing the channels of one layer puts the next layer at the end, so search until nothing is found.
    while found := [
        (key, end)
        for key, (outer, inner) in waiting.items()
        for end, known in ends.items()
        if (end == "input" or len(inner) == len(outer)) and set(component[outer].tolist()) <= known
    ]:
        for key, end in found:
            _, inner = waiting.pop(key, (None, None))
            if inner is None:  # at both ends
                continue
            ends[end].update(component[inner].tolist())
            session.space.freeze(
                inner,
                f"is one of {len(inner)} right at the model's {end}, too few to lose any; "
                f"frozen=['!{key[0].removesuffix('.weight')}'] lets them go",
            )
