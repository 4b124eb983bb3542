"""A group's channels as the players of a game; the payoff is the network's quality without the absent channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infoprune.calibration import run
from infoprune.criteria.activations.suffix_replay import Recording, Replay, ReplayError
from infoprune.criteria.activations.tap import ActivationTap
from infoprune.criteria.payoffs import PAYOFFS, check_payoffs, evaluate, fidelity, get_objective
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from infoprune.structure import ChannelGroup, GroupSlot, Structure


class ChannelGame:
    """The game of one group.

    Args:
        model: In eval mode, without gradients.
        structure: Its structure.
        group: The group whose units are the players.
        payoff: Name or function, see :mod:`infoprune.criteria.payoffs`.
        caller: Who asks, for messages.

    Attributes:
        means: Layer name -> (channels,) what stands for absent channels at every position; zero for layers without.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        group: ChannelGroup,
        payoff: str | Callable[[Any, Any], Tensor],
        caller: str,
    ) -> None:
        self.model = model
        self.group = group
        self.caller = caller
        self.means: Mapping[str, Tensor] = {}
        self.payoff = get_objective(payoff, PAYOFFS, caller, "payoff")
        makers = structure.producers(group)
        self.weights = {model.get_parameter(layer.weight): layer.name for layer, _ in makers}
        self.slots = {layer.name: slot for layer, slot in makers}
        self.linear = {layer.name: layer.kind == "linear" for layer, _ in makers}
        self.filters = {layer.name: structure.shapes[layer.weight][layer.dim] for layer, _ in makers}
        self.can_replay: bool | None = None

    def on(self, inputs: Any, targets: Any, images: int) -> BatchGame:
        """Return the game on a batch.

        Args:
            inputs: Inputs of the model, with a dimension of images.
            targets: Their targets, None if there are none.
            images: Number of images in the batch.

        Raises:
            ConfigurationError: the group's activations cannot be observed, or the payoff is not one finite value an
                image.
        """
        game = BatchGame(self, inputs, targets, images)
        if self.can_replay is None:
            self.can_replay = game.replays_truly()
        return game

    def mask(self, name: str, activation: Tensor, present: Tensor) -> None:
        """Set the channels of absent units to their mean, or to zero, in place.

        Args:
            name: Of the layer.
            activation: Its output, (images, channels, ...).
            present: (images, units) bool: the coalition of each image.
        """
        filters = torch.ones(len(present), self.filters[name], dtype=torch.bool)
        slot: GroupSlot = self.slots[name]
        filters[:, torch.as_tensor(slot.index)] = present[:, torch.as_tensor(slot.unit)]
        channels = activation.shape[-1 if self.linear[name] else 1]
        if activation.shape[0] != len(present) or channels % self.filters[name]:
            raise ConfigurationError(
                f"{self.caller}: {name} puts out {tuple(activation.shape)} for {len(present)} images; channels cannot "
                "be taken away image by image where a model folds other dimensions into the batch"
            )
        inner = (1,) * (activation.dim() - 2)

        def placed(per_channel: Tensor) -> Tensor:
            return per_channel.view(len(present), *((*inner, -1) if self.linear[name] else (-1, *inner)))

        keep = filters.repeat(1, channels // self.filters[name])
        activation.mul_(placed(keep.to(activation.device, activation.dtype)))
        if name in self.means:
            activation.add_(placed((~keep * self.means[name]).to(activation.device, activation.dtype)))


class BatchGame:
    """The game on one batch, with everything before the group's first layer done once.

    Attributes:
        players: Number of units.
        images: Number of images.
        full: (images,) payoffs of the whole network.
    """

    def __init__(self, game: ChannelGame, inputs: Any, targets: Any, images: int) -> None:
        self.game = game
        self.inputs = inputs
        self.players = game.group.size
        self.images = images
        self.recording = Recording(game.weights)
        with self.recording:
            outputs = run(game.model, inputs)
        if not self.recording.complete:
            raise ConfigurationError(
                f"{game.caller}: the activations of {game.group.name} cannot be observed: no convolution or linear "
                "call of the forward pass uses its weight, or nothing uses its output; freeze it, or choose another "
                "criterion"
            )
        self.targets = outputs if game.payoff is fidelity else targets
        self.full = self._payoffs(outputs)

    def value(self, present: Tensor) -> Tensor:
        """Return the payoffs (images,) of coalitions (images, players)."""

        def change(name: str, activation: Tensor) -> None:
            self.game.mask(name, activation, present)

        whole = self.game.can_replay is False
        tap = ActivationTap(self.game.weights, change) if whole else Replay(self.recording, change)
        with tap:
            outputs = run(self.game.model, self.inputs)
        return self._payoffs(outputs)

    def replays_truly(self) -> bool:
        """Return whether a replay that changes nothing gives what the run gave.

        It does not where the model computes outside of torch's sight (scripted functions, NumPy); then the whole
        network is run for every coalition.
        """
        try:
            again = self.value(torch.ones(self.images, self.players, dtype=torch.bool))
        except (ReplayError, ConfigurationError):  # what was never computed holds anything, NaN too
            return False
        return torch.allclose(again, self.full, rtol=1e-3, atol=1e-5)

    def _payoffs(self, outputs: Any) -> Tensor:
        paid = evaluate(self.game.payoff, outputs, self.targets, self.game.caller)
        return check_payoffs(paid, self.images, self.game.caller)
