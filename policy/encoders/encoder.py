"""What an encoder is; the crop and the pooling that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws


class Encoder(nn.Module, ABC):
    """``images -> features``; `features` is how many."""

    features: int

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "batch channels height width"], draws: Draws | None = None
    ) -> Float[Tensor, "batch features"]:
        """Features of each image.

        Args:
            images: in [-1, 1].
            draws: random numbers of a training step, for augmentation; None: not in training.
        """


def crop(images: Float[Tensor, "batch channels height width"], side: int, draws: Draws | None) -> Tensor:
    """A square of ``side`` pixels: a random one for each image in training, else the middle; 0 leaves the image.

    Raises:
        WorkbenchError: the image is smaller.

    Source: Mandlekar et al. 2021, appendix (arXiv 2108.03298); Chi et al. 2023, section 3.2 (arXiv 2303.04137).
    """
    height, width = images.shape[-2:]
    if not side:
        return images
    if side > min(height, width):
        raise WorkbenchError(f"encoder.crop: got {side} for images of {height} x {width}; expected at most their size.")
    if draws is None:
        top, left = (height - side) // 2, (width - side) // 2
        return images[..., top : top + side, left : left + side]
    room = torch.tensor([height - side + 1, width - side + 1], device=images.device)
    at = (draws.uniform((len(images), 2)).to(images.device) * room).long()
    rows, columns = (at[:, i, None] + torch.arange(side, device=images.device) for i in (0, 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None]].movedim(-1, 1)


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of feature maps: ``sum_xy softmax(h) (x, y)``, x and y in [-1, 1].

    Args:
        channels: of the maps that come in.
        keypoints: maps that are made of them; 0: the maps themselves.

    Raises:
        WorkbenchError: when called, maps of one pixel.

    Source: Levine et al. 2016, section 5.1 (arXiv 1504.00702).
    """

    def __init__(self, channels: int, keypoints: int = 32) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, 1) if keypoints else nn.Identity()
        self.features = 2 * (keypoints or channels)

    def forward(self, h: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        if h.shape[-1] * h.shape[-2] == 1:
            raise WorkbenchError(
                "spatial softmax: got a map of one pixel, which has no place to tell; expected larger images."
            )
        maps = self.maps(h)
        weights = maps.flatten(2).softmax(-1).view_as(maps)
        y, x = (torch.linspace(-1.0, 1.0, n, dtype=h.dtype, device=h.device) for n in h.shape[-2:])
        return torch.cat([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], 1)
