"""Set the ratios of stages in the list syntax of HRankPlus and CHIP.

Source: github.com/Eclipsess/CHIP_NeurIPS2021 (``--sparsity``). The published results of method A on ResNet-50 fit its
``[0.]+[0.5]*3+[0.6]*16`` to the digit.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infoprune.allocation.allocation import ALLOCATIONS
from infoprune.allocation.ratios import RatioAllocation, check_ratio
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, Structure


@ALLOCATIONS.register("per_stage")
@dataclass(kw_only=True)
class PerStage(RatioAllocation):
    """Apply a list of ratios to the convolutions' channel groups in forward order.

    - A plain net (no coupled layers): one ratio per convolution; if the list has one entry less, the last convolution
      stays whole. VGG-16: ``[0.3]*7+[0.75]*5``.
    - A residual net: ``[stem] + [output of each stage but the last] + [inside of each block]``. ResNet-50:
      ``[0.]+[0.5]*3+[0.6]*16``; ResNet-56: ``[0.]+[0.4]*2+[0.5]*9+[0.65]*18``. The last stage's outputs stay whole.

    In the code of HRankPlus and CHIP every layer of a stage keeps its own indices; here the layers whose outputs are
    added keep the same indices, so the widths are equal to theirs, but the kept filters differ. If the stem is added to
    the first stage (CIFAR ResNets), it is part of that stage and its own entry must be 0. In these networks, shortcuts
    without weights pass a stage's channels to the next stages, which lose them too: ratios for stage outputs cut more
    than in that code.

    Args:
        ratios: Shares of filters to remove, in [0, 1), or the expression as a string.

    Raises:
        ConfigurationError: a ratio outside [0, 1), a list of the wrong length for the net (the message says what it
            needs), or a ratio for a frozen group.
    """

    ratios: Sequence[float] | str = ()

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigurationError("allocation 'per_stage' needs ratios, a list such as '[0.]+[0.5]*3+[0.6]*16'")

    @property
    def values(self) -> list[float]:
        """The ratios as numbers."""
        values = parse_ratios(self.ratios) if isinstance(self.ratios, str) else self.ratios
        return [check_ratio(f"allocation 'per_stage', entry {i}", ratio) for i, ratio in enumerate(values)]

    def ratios_of(self, structure: Structure) -> dict[str, float]:
        """Return the ratio of each group: that of its entry in the list.

        Args:
            structure: the channel groups.

        Returns:
            Group name -> share to remove.
        """
        values = self.values
        entries, tail = _entries(structure)
        if len(values) not in {len(entries), len(entries) - tail}:
            needs = f"{len(entries) - tail}" + (f" or {len(entries)}" if tail else "")
            raise ConfigurationError(
                f"allocation 'per_stage' has {len(values)} ratios, but this net takes {needs}: "
                + ", ".join("+".join(group.name for group in entry) or "stem (part of stage 1)" for entry in entries)
            )
        ratios: dict[str, float] = {}
        for ratio, entry in zip(values, entries, strict=False):
            if not entry and ratio:
                raise ConfigurationError(
                    f"allocation 'per_stage': the stem is added to the first stage and shares its ratio; its own is "
                    f"0, not {ratio}"
                )
            for group in entry:
                if group.frozen and ratio:
                    raise ConfigurationError(
                        f"allocation 'per_stage': ratio {ratio} for {group.name}, which is frozen ({group.reason}); "
                        f"set it to 0"
                    )
                ratios[group.name] = ratio
        return {name: ratio for name, ratio in ratios.items() if not structure.group(name).frozen}


def _entries(structure: Structure) -> tuple[list[list[ChannelGroup]], int]:
    """Return the groups that each place of the list stands for, and how many places at its end may be left out."""
    makers = {group.name: [layer for layer, _ in structure.producers(group)] for group in structure.groups}
    conv = [group for group in structure.groups if any(layer.kind == "conv" for layer in makers[group.name])]
    coupled = [group for group in conv if len(makers[group.name]) > 1]
    if not coupled:
        return [[group] for group in conv], 1
    single = [group for group in conv if group not in coupled]
    stem = [group for group in single if group is conv[0]]
    stages: dict[str, list[ChannelGroup]] = {}
    for group in coupled:
        stages.setdefault(makers[group.name][0].name, []).append(group)
    blocks: dict[str, list[ChannelGroup]] = {}
    for group in single[len(stem) :]:
        blocks.setdefault(group.name.rpartition(".")[0], []).append(group)
    return [stem, *list(stages.values())[:-1], *blocks.values()], 0


def parse_ratios(text: str) -> list[float]:
    """Read ``"[0.]+[0.5]*3+[0.6]*16"``: lists of numbers, joined by ``+`` and repeated by ``*``.

    Args:
        text: The expression.

    >>> parse_ratios("[0.]+[0.5]*2+[0.6, 0.7]")
    [0.0, 0.5, 0.5, 0.6, 0.7]
    """
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError) as error:
        raise ConfigurationError(
            f"cannot read {text!r} as ratios; write lists joined by + and repeated by *, such as "
            f"'[0.]+[0.5]*3+[0.6]*16'"
        ) from error


def _evaluate(node: ast.expr) -> list[float]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _evaluate(node.left) + _evaluate(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _evaluate(node.left) * int(_number(node.right))
    if isinstance(node, ast.List):
        return [_number(item) for item in node.elts]
    raise TypeError(node)


def _number(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    raise TypeError(node)
