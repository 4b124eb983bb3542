"""Give every layer its ratio by name or pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infoprune.allocation.allocation import ALLOCATIONS
from infoprune.allocation.patterns import matching
from infoprune.allocation.ratios import RatioAllocation, check_ratio
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.structure import Structure


@ALLOCATIONS.register("per_layer")
@dataclass(kw_only=True)
class PerLayer(RatioAllocation):
    """Apply ratios by layer name or shell pattern; layers that no pattern matches lose the default share.

    A pattern matches a group by its own name and by the names of all layers whose filters it contains. If several
    patterns match, the last one counts, so write exceptions after general patterns.

    Args:
        ratios: Pattern -> share of units to remove, in [0, 1): ``{"layer1.*": 0.3, "layer1.0.conv1": 0.5}``.
        default: The same for layers that no pattern matches.

    Raises:
        ConfigurationError: a ratio outside [0, 1), a pattern that matches no layer, or only frozen ones.
    """

    ratios: Mapping[str, float] = field(default_factory=dict)
    default: float = 0.0

    def __post_init__(self) -> None:
        check_ratio("allocation 'per_layer', default", self.default)
        if not isinstance(self.ratios, Mapping) or not self.ratios:
            raise ConfigurationError(
                f"allocation 'per_layer' needs ratios, a mapping of layer patterns to ratios; got {self.ratios!r}"
            )
        for pattern, ratio in self.ratios.items():
            check_ratio(f"allocation 'per_layer', pattern {pattern!r}", ratio)

    def ratios_of(self, structure: Structure) -> dict[str, float]:
        """Return the ratio of each group: that of the last pattern that matches it.

        Args:
            structure: the channel groups.

        Returns:
            Group name -> share to remove.
        """
        ratios = {group.name: float(self.default) for group in structure.prunable}
        for pattern, ratio in self.ratios.items():
            matched = matching(structure, pattern)
            if ratio > 0 and all(group.frozen for group in matched):
                raise ConfigurationError(
                    f"the pattern {pattern!r} with ratio {ratio:g} matches only frozen layers ({matched[0].name}: "
                    f"{matched[0].reason})"
                )
            ratios.update((group.name, float(ratio)) for group in matched if not group.frozen)
        return ratios
