"""Time small networks side by side in one model of OpenVINO, by the counters of its operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

EDGE = "edge"
"""In the names of inputs and outputs, and of what OpenVINO adds there to convert the memory layout."""

RESOLUTION = 1e-6
"""Seconds in which OpenVINO counts."""


class SideBySide(nn.Module):
    """Run several networks, each on its own input.

    Example:
        >>> import torch
        >>> both = SideBySide([nn.Linear(2, 3), nn.Linear(4, 5)])
        >>> [tuple(output.shape) for output in both(torch.zeros(1, 2), torch.zeros(1, 4))]
        [(1, 3), (1, 5)]
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of all networks.

        Args:
            inputs: One for each network.
        """
        return tuple(network(x) for network, x in zip(self.networks, inputs, strict=True))


def name_by_network(model: Any) -> None:
    """Name the operators of an OpenVINO model of `SideBySide` by the number of the network that they belong to.

    Args:
        model: OpenVINO's model, which is changed.
    """
    inputs = {parameter.get_name(): number for number, parameter in enumerate(model.get_parameters())}
    network: dict[str, int] = {}
    for place, op in enumerate(model.get_ordered_ops()):
        name = op.get_name()
        sources = [op.input_value(n).get_node().get_name() for n in range(op.get_input_size())]
        number = inputs.get(name, next((network[source] for source in sources if source in network), None))
        if number is not None:  # constants belong to no network and are computed when the model is compiled
            network[name] = number
            edge = op.get_type_name() in ("Parameter", "Result")
            op.set_friendly_name(f"{number}:{EDGE if edge else ''}:{place}")


def seconds_by_network(runs: Sequence[Sequence[Any]], count: int) -> list[float]:
    """Return the seconds that the operators of each network take, each in the fastest of its runs.

    Converting inputs and outputs to the layout of the first and from that of the last operator is not counted: within
    a larger model, neighbours share a layout.

    Args:
        runs: What ``get_profiling_info`` of an inference request returns after each run.
        count: Number of networks.
    """
    seconds = [0.0] * count
    for counters in zip(*runs, strict=True):  # an operator in all runs
        number, _, rest = counters[0].node_name.partition(":")
        if number.isdecimal() and EDGE not in rest:
            seconds[int(number)] += min(counter.real_time for counter in counters).total_seconds()
    return [max(each, RESOLUTION) for each in seconds]
