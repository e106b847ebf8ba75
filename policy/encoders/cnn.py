"""A small convolutional network, for a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.loss import Draws
from policy.encoders.encoder import Encoder, SpatialSoftmax, crop


class Cnn(Encoder):
    """Convolutions of stride 2 with group norms, then a spatial softmax.

    Args:
        widths: channels of each convolution; every one halves the image.
        keypoints: of the spatial softmax.
        crop: side of the random crop in pixels; 0: none.
        channels: of the images.
    """

    def __init__(
        self, widths: Sequence[int] = (16, 32, 64), keypoints: int = 16, crop: int = 0, channels: int = 3
    ) -> None:
        super().__init__()
        self.crop = crop
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            inlet = widths[i - 1] if i else channels
            kernel = 3 if i else 5
            layers += [nn.Conv2d(inlet, width, kernel, 2, kernel // 2), nn.GroupNorm(max(width // 16, 1), width)]
            layers.append(nn.ReLU(inplace=True))
        self.trunk = nn.Sequential(*layers)
        self.pool = SpatialSoftmax(widths[-1], keypoints)
        self.features = self.pool.features

    def forward(
        self, images: Float[Tensor, "batch channels height width"], draws: Draws | None = None
    ) -> Float[Tensor, "batch features"]:
        return self.pool(self.trunk(crop(images, self.crop, draws)))
