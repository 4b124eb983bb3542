"""The table of rules: what each operator does to labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from infoprune.errors import ConfigurationError
from infoprune.structure.labels.tensor_labels import labels_of
from infoprune.structure.tracing.rule_context import RuleContext

Rule: TypeAlias = Callable[[RuleContext, Sequence[Any], dict[str, Any], Sequence[Tensor]], None]

RULES: dict[str, Rule] = {}

POINTWISE = "every operator that PyTorch tags as element-wise"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named ``"aten.add"`` or ``"namespace::name"``.

    Args:
        names: ATen operators without overload, or other libraries' operators.

    Returns:
        A decorator for the rule.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name.replace("::", ".")] = function
        return function

    return register


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of your own, or replace the rule of one of PyTorch's.

    Args:
        names: operators as ``"namespace::name"``, without overload.

    Raises:
        ConfigurationError: no names are given, or something else; the dispatcher knows no operator of that name, so the
            rule would never be applied; what is decorated is no function.

    Example:
        >>> @register_rule("aten::frobnicate")
        ... def frobnicate(ctx, args, kwargs, outs): ...
        Traceback (most recent call last):
        infoprune.errors.ConfigurationError: no operator is called 'aten::frobnicate'; ...
    """
    if not names or not all(isinstance(name, str) for name in names):
        given = ", ".join(f"{name!r:.60}" for name in names) or "nothing"
        raise ConfigurationError(
            f"register_rule takes names of operators, as in @register_rule('namespace::name'), got {given}"
        )
    for name in names:
        if not _is_operator(name):
            raise ConfigurationError(
                f"no operator is called {name!r}; define it before its rule, and name it as torch.library does, "
                "'namespace::name'"
            )
    return lambda function: rule(*names)(_checked(function))


def _checked(function: Rule) -> Rule:
    """Return a rule that fails where it labels a result with axes that do not fit."""
    if not callable(function):
        raise ConfigurationError(f"a rule is a function (ctx, args, kwargs, outs), got {function!r:.60}")

    @functools.wraps(function)
    def checked(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
        ctx.is_strict = True
        function(ctx, args, kwargs, outs)
        for out in outs:
            lengths = [None if axis is None else len(axis) for axis in labels_of(out).axes]
            if any(length not in (None, size) for length, size in zip(lengths, out.shape, strict=True)):
                raise ValueError(
                    f"it labels a result of shape {[*out.shape]} with axes of lengths {lengths}; give for each "
                    "dimension None, or as many labels as it is long"
                )

    return checked


def _is_operator(name: str) -> bool:
    namespace, _, operator = name.replace("::", ".").partition(".")
    return hasattr(getattr(torch.ops, namespace), operator)


def find_rule(func: torch._ops.OpOverload) -> Rule:
    """Return the rule of an ATen operator: its own, its out-of-place variant's, the element-wise one, or `unknown`.

    Args:
        func: an operator's overload.
    """
    name = str(func.overloadpacket)
    plain = name[:-1] if name.endswith("_") else name
    found = RULES.get(name) or RULES.get(plain)
    if found is None and torch.Tag.pointwise in func.tags:
        found = RULES[POINTWISE]
    return found or unknown


def unknown(ctx: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Freeze the labels of every operand of an operator that has no rule.

    Args:
        ctx: the context of the call.
        args: positional arguments of the operator.
        kwargs: keyword arguments of the operator.
        outs: its results; they get no labels.
    """
    for tensor in tensors_in(args, kwargs):
        for axis in labels_of(tensor).axes:
            ctx.freeze(axis, f"{ctx.name} has no rule")
    for out in outs:
        ctx.label(out, [None] * out.dim())


def tensors_in(args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
    """Return all tensors among an operator's arguments, one level of lists deep.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        The tensors, in order.
    """
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found
