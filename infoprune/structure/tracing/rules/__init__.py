"""How each kind of operator carries, joins or mixes labels.

A rule is a small function ``rule(ctx, args, kwargs, outs)``: it reads the labels of the operator's tensors, says which
labels go together (:meth:`RuleContext.unite_all`) or must stay (:meth:`RuleContext.freeze`), and labels the results
(:meth:`RuleContext.label`). Rules are found by the operator's name, ``"aten.cat"``; in-place variants share the rule of
the plain operator. Operators without a rule are never guessed at: whatever they touch is frozen.

Add a rule for an operator of your own::

    @infoprune.register_rule("mylib::swap_halves")
    def swap_halves(ctx, args, kwargs, outs): ...
"""

from infoprune.structure.tracing.rules import (
    contraction,
    elementwise,
    joining,
    movement,
    quantization,
    reduction,
    scattering,
    shape,
    spectral,
    windows,
)
from infoprune.structure.tracing.rules.registry import RULES, Rule, find_rule, register_rule, rule, tensors_in, unknown

__all__ = [
    "RULES",
    "Rule",
    "contraction",
    "elementwise",
    "find_rule",
    "joining",
    "movement",
    "quantization",
    "reduction",
    "register_rule",
    "rule",
    "scattering",
    "shape",
    "spectral",
    "tensors_in",
    "unknown",
    "windows",
]
