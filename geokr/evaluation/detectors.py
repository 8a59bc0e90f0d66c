"""torchvision's detectors on an encoder's feature pyramid, for square windows of an image."""

from typing import Any, Literal

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from geokr.evaluation.backbones import Pyramid

Detector = Literal["retinanet", "fasterrcnn"]
OCTAVES = 4
"""Anchors span a factor of 2 ** OCTAVES in size, three sizes an octave."""
RATIOS = (0.5, 1.0, 2.0)
"""Heights of anchors by their widths."""
MIN_SCORE = 0.01
"""Detections with a lower score are dropped. A lower bound than torchvision's keeps those of short trainings."""
MAX_OVERLAP = 0.5
"""Of two detections of a class with a larger intersection over union, the better one is kept."""


class Neck(nn.Module):
    """An encoder's pyramid with the layers that join its scales: every map gets the same number of channels."""

    def __init__(self, pyramid: Pyramid, channels: int, frozen: bool) -> None:
        """frozen: the encoder is not trained, and keeps its batch-norm statistics; otherwise all of it is trained."""
        super().__init__()
        self.pyramid = pyramid.requires_grad_(not frozen)
        self.fpn = FeaturePyramidNetwork(list(pyramid.channels), channels)
        self.out_channels = channels
        self.frozen = frozen

    def train(self, mode: bool = True) -> "Neck":
        super().train(mode)
        self.pyramid.train(mode and not self.frozen)
        return self

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(n, band, y, x) normalised float -> level -> (n, channel, y / stride, x / stride)."""
        maps: dict[str, torch.Tensor] = self.fpn({str(k): level for k, level in enumerate(self.pyramid(image))})
        return maps


class Unchanged(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Takes images as they are. Windows are normalised for the encoder already, and are not resized."""

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def resize(self, image: torch.Tensor, target: Any = None) -> tuple[torch.Tensor, Any]:
        return image, target


def build_detector(
    name: Detector,
    pyramid: Pyramid,
    *,
    classes: int,
    channels: int,
    smallest: float,
    detections: int,
    frozen: bool,
    seed: int,
) -> nn.Module:
    """Build a detector with torchvision's interface: its classes count from 0 for retinanet, from 1 for fasterrcnn.

    channels: of each map. smallest: side of the smallest anchors, px. detections: at most so many a window. frozen: see
    Neck. seed: of the new layers; the head starts alike for every encoder.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        neck = Neck(pyramid, channels, frozen)
        torch.manual_seed(seed + 1)  # the layers of the neck draw as many numbers as the encoder's channels need
        anchors = AnchorGenerator(*place_anchors(len(pyramid.channels), smallest))
        if name == "retinanet":
            model: nn.Module = RetinaNet(
                neck,
                classes,
                anchor_generator=anchors,
                score_thresh=MIN_SCORE,
                nms_thresh=MAX_OVERLAP,
                detections_per_img=detections,
            )
        else:
            levels = [str(k) for k in range(len(pyramid.channels))]
            model = FasterRCNN(
                neck,
                classes + 1,
                rpn_anchor_generator=anchors,
                box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
                box_score_thresh=MIN_SCORE,
                box_nms_thresh=MAX_OVERLAP,
                box_detections_per_img=detections,
            )
    model.transform = Unchanged(0, 0, [], [])
    return model


def place_anchors(levels: int, smallest: float) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Sides, px, and ratios of the anchors of each level: an octave a level, or all of them on a single level."""
    octaves = OCTAVES if levels == 1 else 1
    sizes = tuple(tuple(smallest * 2 ** (level + third / 3) for third in range(3 * octaves)) for level in range(levels))
    return sizes, (RATIOS,) * levels


def first_class(name: Detector) -> int:
    """Number that a detector gives to the first class: Faster R-CNN's 0 is the background."""
    return 1 if name == "fasterrcnn" else 0
