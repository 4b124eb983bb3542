"""A network of timm with arguments that a configuration can hold."""

from __future__ import annotations

from torch import nn


def timm_model(name: str, num_classes: int = 1000, in_chans: int = 3, pretrained: bool = False) -> nn.Module:
    """Build a network of timm.

    Args:
        name: as ``timm.list_models()`` has it, with a tag for certain weights: ``"resnet50.a1_in1k"``.
        num_classes: outputs of the classifier; 0 for features.
        in_chans: channels of the input.
        pretrained: load weights, from the network the first time.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    import timm

    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
    return model
