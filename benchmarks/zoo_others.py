"""Models of libraries that people prune besides torchvision and timm: detectors, segmentation, medical volumes, hubs.

Small ones by their configurations, untrained: nothing is downloaded. The libraries are nobody's dependency; install
those whose models are to be measured::

    pip install segmentation-models-pytorch ultralytics transformers monai einops
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Other:
    """How to make a model, the shape of its input, and the keyword by which the input goes if not by place."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    keyword: str | None = None


def _segmentation(architecture: str, encoder: str = "resnet18", **options: Any) -> Other:
    def make() -> nn.Module:
        smp = importlib.import_module("segmentation_models_pytorch")
        return getattr(smp, architecture)(encoder_name=encoder, encoder_weights=None, classes=3, **options)

    return Other(make, (1, 3, 128, 128))


def _yolo(name: str, kind: str = "DetectionModel", size: int = 128) -> Other:
    def make() -> nn.Module:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        return getattr(tasks, kind)(f"{name}.yaml", verbose=False)

    return Other(make, (1, 3, size, size))


def _transformers(kind: str, size: int = 64, model: str = "ForImageClassification", **options: Any) -> Other:
    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, f"{kind}{model}")(getattr(library, f"{kind}Config")(**options))

    return Other(make, (1, 3, size, size), "pixel_values")


def _monai(name: str, *shape: int, **options: Any) -> Other:
    def make() -> nn.Module:
        return getattr(importlib.import_module("monai.networks.nets"), name)(**options)

    return Other(make, (1, *shape))


STAGES = {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
SHORT_VIT = {"num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
DETR = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
TWO_D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
THREE_D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
CONVNEXT = {"hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 2, 2]}

_SEGMENTATION = {
    "Unet": _segmentation("Unet"),
    "Unet, scSE": _segmentation("Unet", decoder_attention_type="scse"),
    "Unet, EfficientNet-B0": _segmentation("Unet", "efficientnet-b0"),
    "Unet, MobileNetV2": _segmentation("Unet", "mobilenet_v2"),
    "Unet, MiT-B0": _segmentation("Unet", "mit_b0"),
    "Unet, DPN-68": _segmentation("Unet", "dpn68"),
    "Unet, DenseNet-121": _segmentation("Unet", "densenet121"),
    "UnetPlusPlus": _segmentation("UnetPlusPlus"),
    "MAnet": _segmentation("MAnet"),
    "Linknet": _segmentation("Linknet"),
    "FPN": _segmentation("FPN"),
    "FPN, SE-ResNet-50": _segmentation("FPN", "se_resnet50"),
    "PSPNet": _segmentation("PSPNet"),
    "PAN": _segmentation("PAN"),
    "DeepLabV3": _segmentation("DeepLabV3"),
    "DeepLabV3Plus": _segmentation("DeepLabV3Plus"),
    "UPerNet": _segmentation("UPerNet"),
    "Segformer": _segmentation("Segformer"),
}
_YOLO = {
    **{
        name: _yolo(name) for name in ("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n")
    },
    "yolo12n": _yolo("yolo12n"),
    "yolov8n-seg": _yolo("yolov8n-seg", "SegmentationModel"),
    "yolov8n-pose": _yolo("yolov8n-pose", "PoseModel"),
    "yolov8n-cls": _yolo("yolov8n-cls", "ClassificationModel"),
    "yolo11n-obb": _yolo("yolo11n-obb", "OBBModel"),
    "rtdetr-resnet50": _yolo("rtdetr-resnet50", "RTDETRDetectionModel", 256),
}
_TRANSFORMERS = {
    "ResNet": _transformers("ResNet", **STAGES),
    "RegNet": _transformers("RegNet", groups_width=16, **STAGES),
    "ConvNext": _transformers("ConvNext", **CONVNEXT),
    "ConvNextV2": _transformers("ConvNextV2", **CONVNEXT),
    "MobileNetV1": _transformers("MobileNetV1"),
    "MobileNetV2": _transformers("MobileNetV2"),
    "MobileNetV2, segmentation": _transformers("MobileNetV2", model="ForSemanticSegmentation"),
    "EfficientNet": _transformers("EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
    "PoolFormer": _transformers("PoolFormer"),
    "MobileViT": _transformers("MobileViT", 256),
    "FocalNet": _transformers("FocalNet", 224),
    "PVT": _transformers("Pvt", 224),
    "LeViT": _transformers("Levit", 224),
    "Swin": _transformers("Swin", 224, embed_dim=48),
    "Hiera": _transformers("Hiera", 224),
    "ViT": _transformers("ViT", 224, **SHORT_VIT),
    "DINOv2": _transformers("Dinov2", 224, num_hidden_layers=3, hidden_size=192, num_attention_heads=3),
    "SegFormer": _transformers("Segformer", 128, model="ForSemanticSegmentation"),
    "UPerNet": _transformers("UperNet", 128, model="ForSemanticSegmentation"),
    "GLPN": _transformers("GLPN", 128, model="ForDepthEstimation"),
    "Swin2SR": _transformers(
        "Swin2SR", 64, model="ForImageSuperResolution", depths=[2, 2], num_heads=[2, 2], embed_dim=32
    ),
    "DETR": _transformers("Detr", 128, model="ForObjectDetection", use_timm_backbone=False, num_queries=10, **DETR),
}
_MONAI = {
    "UNet": _monai("UNet", 1, 32, 32, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, **TWO_D),
    "UNet, 3D": _monai("UNet", 1, 32, 32, 32, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, **THREE_D),
    "BasicUNet": _monai("BasicUNet", 1, 32, 32, spatial_dims=2, features=(8, 8, 16, 16, 32, 8)),
    "AttentionUnet": _monai("AttentionUnet", 1, 32, 32, channels=(8, 16, 32), strides=(2, 2), **TWO_D),
    "DynUNet": _monai(
        "DynUNet", 1, 32, 32, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], **TWO_D
    ),
    "SegResNet, 3D": _monai("SegResNet", 1, 32, 32, 32, spatial_dims=3, init_filters=8),
    "VNet, 3D": _monai("VNet", 1, 32, 32, 32, **THREE_D),
    "HighResNet, 3D": _monai("HighResNet", 1, 16, 16, 16, **THREE_D),
    "DenseNet121": _monai("DenseNet121", 1, 64, 64, **TWO_D),
    "ResNet-10, 3D": _monai("resnet10", 1, 32, 32, 32, spatial_dims=3, n_input_channels=1, num_classes=2),
    "SwinUNETR, 3D": _monai("SwinUNETR", 1, 64, 64, 64, in_channels=1, out_channels=2, feature_size=12),
}

OTHERS: Mapping[str, Other] = {
    f"{library}/{name}": model
    for library, models in (
        ("segmentation-models", _SEGMENTATION),
        ("ultralytics", _YOLO),
        ("transformers", _TRANSFORMERS),
        ("monai", _MONAI),
    )
    for name, model in models.items()
}
"""By library and name. Left out of transformers: RT-DETR, which needs labels in train mode (give them as inputs), and
models whose code does the same as one in the table."""
