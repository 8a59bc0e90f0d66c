"""Networks that segment: an encoder under a decoder of segmentation-models-pytorch, or under a linear layer."""

from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geokr.evaluation.backbones import EncoderSource, Pyramid, build_network, build_pyramid
from geokr.settings import ConfigError


def build_segmenter(source: EncoderSource, decoder: str, classes: int, seed: int, size: int) -> nn.Module:
    """Build a network for fine-tuning: (n, band, size, size) normalised float -> (n, class, size, size) scores.

    decoder: unet, fpn or upernet; for a plain transformer, which has maps of one scale only, it is DPT. seed: of the
    decoder, and of an encoder with random weights. size: px. Raises ConfigError if the network has no such maps.
    """
    network = build_network(source, seed, size)
    info: Any = getattr(network, "feature_info", None)
    if not info or not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"{source.model}: timm gives no feature maps of this network; choose another model")
    is_plain = len({level["reduction"] for level in info}) == 1
    settings: dict[str, Any] = {"img_size": size} if hasattr(network, "set_input_size") else {}
    if is_plain:
        prefix = getattr(network, "num_prefix_tokens", 0)
        settings |= {"decoder_readout": "cat" if prefix else "ignore", "num_classes": 0}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        try:
            segmenter: nn.Module = smp.create_model(
                "dpt" if is_plain else decoder,
                encoder_name=f"tu-{source.model}",
                encoder_weights=None,
                in_channels=len(source.bands),
                classes=classes,
                **settings,
            )
        except ValueError as error:  # strides other than 2, 4, 8 ...
            raise ConfigError(
                f"{source.model}: its feature maps cannot be put under {decoder}; choose another model: {error}"
            ) from error
    encoder: Any = segmenter.encoder
    if is_plain:
        encoder.model = network
        return segmenter
    # The library has built timm's network again, with other weights: the source's own takes its place, with the same
    # maps, always with the channels before the rows.
    pyramid = Pyramid(network, list(encoder.model.feature_info.out_indices))
    if list(pyramid.channels) != encoder.model.feature_info.channels():
        raise ConfigError(f"{source.model}: timm names other feature maps of this network than it has; choose another")
    encoder.model, encoder._is_channel_last = pyramid, False
    return segmenter


class LinearSegmenter(nn.Module):
    """A linear classifier of each place of a frozen encoder's feature maps, at all scales.

    The maps from stride 4 on are standardised by the training images, which a batch normalisation without weights does;
    a 1 x 1 convolution gives the scores of a map, and the scores are interpolated to the image and added. It starts
    from zeros, so it is the same for every encoder.
    """

    def __init__(self, source: EncoderSource, classes: int, seed: int, size: int) -> None:
        """seed: of an encoder with random weights. size: side of the images, px."""
        super().__init__()
        self.pyramid = build_pyramid(source, seed, size).eval().requires_grad_(False)
        self.normalise = nn.ModuleList(nn.BatchNorm2d(n, affine=False, momentum=None) for n in self.pyramid.channels)
        self.classify = nn.ModuleList(nn.Conv2d(n, classes, 1) for n in self.pyramid.channels)
        for parameter in self.classify.parameters():
            nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> "LinearSegmenter":
        super().train(mode)
        self.pyramid.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(n, band, y, x) normalised float -> (n, class, y, x) scores."""
        with torch.no_grad():
            maps = self.pyramid(image)
        layers = zip(self.classify, self.normalise, maps, strict=True)
        scores = [classify(normalise(features)) for classify, normalise, features in layers]
        # Interpolation and 1 x 1 convolution commute: this is one convolution of all maps at the image's resolution.
        full = [F.interpolate(score, size=image.shape[-2:], mode="bilinear") for score in scores]
        return torch.stack(full).sum(dim=0)
