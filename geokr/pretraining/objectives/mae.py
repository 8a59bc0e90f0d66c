"""Objective `mae`: the encoder sees some patches of a tile, and a decoder predicts the pixels of the others.

He et al. 2022, for timm's plain vision transformers. The decoder has the proportions that it has there for a ViT-B: two
thirds of the encoder's width and depth. It is not exported.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models._manipulate import checkpoint_seq
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.objectives.objective import FIRST_VIEW, Part
from geokr.pretraining.objectives.projected import with_probe


class Decoder(nn.Module):
    """Predicted pixels of all patches, (n, patch, value), from the tokens of the visible ones."""

    positions: torch.Tensor

    def __init__(self, encoder: VisionTransformer, values: int) -> None:
        """values: number of pixel values of a patch."""
        super().__init__()
        width = max(64, 64 * round(encoder.embed_dim / 96))
        depth = max(1, round(len(encoder.blocks) * 2 / 3))
        self.prefix: int = encoder.num_prefix_tokens
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.masked = nn.Parameter(torch.empty(width).normal_(std=0.02))
        grid = build_sincos2d_pos_embed(list(encoder.patch_embed.grid_size), width)
        self.register_buffer("positions", grid, persistent=False)
        self.blocks = nn.Sequential(*(Block(width, width // 32, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, values)

    def forward(self, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """tokens: (n, prefix + visible, feature). order: (n, patch), numbers of the patches, the visible ones first."""
        count, patches = order.shape
        x = self.embed(tokens)
        prefix, visible = x[:, : self.prefix], x[:, self.prefix :]
        hidden = self.masked.to(x.dtype).expand(count, patches - visible.shape[1], -1)
        place = order.argsort(dim=1)[:, :, None].expand(-1, -1, x.shape[2])
        in_place = torch.cat([visible, hidden], dim=1).gather(1, place) + self.positions
        x = self.norm(self.blocks(torch.cat([prefix, in_place], dim=1)))
        pixels: torch.Tensor = self.predict(x[:, self.prefix :])
        return pixels


class Masked(Classifier):
    """Class logits and features of images, and with an order of the patches, the predicted pixels: (n, patch, value).

    The head for the classes is a linear probe, as in `Projected`. In training, its features are of the visible patches
    only.
    """

    encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer, head: nn.Linear, bands: int, visible: int) -> None:
        """visible: number of patches that the encoder sees in training."""
        nn.Module.__init__(self)
        self.encoder, self.head, self.visible = encoder, head, visible
        self.decoder = Decoder(encoder, bands * math.prod(encoder.patch_embed.patch_size)).to(self.head.weight.device)

    def forward(  # type: ignore[override]
        self, image: torch.Tensor, order: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        if order is None:
            features: torch.Tensor = self.encoder(image)
            return self.head(features.detach()), features
        encoder = self.encoder
        x = encoder._pos_embed(encoder.patch_embed(image))  # (n, prefix + patch, feature)
        prefix, patches = x[:, : encoder.num_prefix_tokens], x[:, encoder.num_prefix_tokens :]
        visible = patches.gather(1, order[:, : self.visible, None].expand(-1, -1, x.shape[2]))
        x = encoder.norm_pre(torch.cat([prefix, visible], dim=1))
        x = checkpoint_seq(encoder.blocks, x) if encoder.grad_checkpointing else encoder.blocks(x)
        x = encoder.norm(x)
        features = encoder.forward_head(x)
        # Where the last normalisation comes after the mean over patches, the decoder's tokens get it, too.
        return self.head(features.detach()), features, self.decoder(encoder.fc_norm(x), order)


class MAE:
    """Mean squared error of the pixels of the masked patches."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "pixel_error")
    formula: ClassVar[str] = (
        "mean squared error of pixels where {mask:g} of the patches are masked, normalise_patches={normalise_patches}"
    )
    task: ClassVar[str] = "predict the pixels of masked patches, without labels."
    passes: ClassVar[float] = 0.75
    takes_pairs: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = True
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = True
    exported: ClassVar[str] = "student"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        encoder = student.encoder
        if not isinstance(encoder, VisionTransformer) or encoder.attn_pool is not None:
            raise ValueError("mae needs a plain vision transformer of timm, such as vit_small_patch16_224")
        self.normalise_patches: bool = config.normalise_patches
        self.patches: int = encoder.patch_embed.num_patches
        if self.patches < 2:
            raise ValueError(f"mae needs several patches: an image of {config.image_size} px is one patch")
        visible = min(max(1, round((1 - config.mask) * self.patches)), self.patches - 1)
        self.student: Masked = Masked(encoder, student.head, len(config.bands), visible)
        self.networks: Mapping[str, nn.Module] = {"student": self.student}
        self.memory: Mapping[str, torch.Tensor] = {}

    def losses(self, part: Part) -> torch.Tensor:
        image = part.view(FIRST_VIEW)
        order = part.uniform(self.patches).argsort(dim=1)
        with part.precision():
            logits, _, predicted = part.student(image, order)
        side = self.student.encoder.patch_embed.patch_size[0]
        pixels = cut_patches(image.float(), side)
        target = normalise_patches(pixels) if self.normalise_patches else pixels
        error = pixel_error(predicted.float(), target, order[:, self.student.visible :])
        return with_probe(error, logits, part.target)

    def update(self, step: int) -> None:
        """Do nothing: only the student changes."""


def cut_patches(image: torch.Tensor, side: int) -> torch.Tensor:
    """Cut images, (n, band, y, x), into the pixels of their patches row by row: (n, patch, side * side * band)."""
    count, bands, height, width = image.shape
    grid = image.reshape(count, bands, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, side * side * bands)


def normalise_patches(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of patches, (n, patch, value), with mean 0 and variance 1 in each patch."""
    return (pixels - pixels.mean(dim=2, keepdim=True)) / (pixels.var(dim=2, keepdim=True) + 1e-6).sqrt()


def pixel_error(predicted: torch.Tensor, target: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the masked patches of each tile: (n,).

    predicted, target: (n, patch, value). masked: (n, m), numbers of the masked patches.
    """
    error = (predicted - target).square().mean(dim=2)  # (n, patch)
    return error.gather(1, masked).mean(dim=1)
