"""ResNet-18 with group norms, as image policies use it."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from policy.encoders.encoder import Encoder, SpatialSoftmax, crop

STAGES = (64, 128, 256, 512)


class ResNet18(Encoder):
    """The 18-layer residual network, batch norms replaced by group norms of 16 channels, then a spatial softmax.

    A batch norm's running statistics do not go with averaged weights. Names of the weights are torchvision's.

    Args:
        keypoints: of the spatial softmax.
        crop: side of the random crop in pixels; 0: none.
        weights: a torchvision checkpoint (.pth) of ResNet-18 to start from: its convolutions are taken, its norms not.
        frozen: leave the trunk as it starts, and learn the pooling alone.
        channels: of the images.

    Source: He et al. 2016 (arXiv 1512.03385); Chi et al. 2023, section 3.2 (arXiv 2303.04137).
    """

    def __init__(
        self, keypoints: int = 32, crop: int = 0, weights: str = "", frozen: bool = False, channels: int = 3
    ) -> None:
        super().__init__()
        self.crop, self.frozen = crop, frozen
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = _norm(64)
        inlets = (64, *STAGES[:-1])
        for i, (inlet, width) in enumerate(zip(inlets, STAGES, strict=True)):
            stage = nn.Sequential(_Block(inlet, width, 2 if i else 1), _Block(width, width, 1))
            self.add_module(f"layer{i + 1}", stage)
        self.pool = SpatialSoftmax(STAGES[-1], keypoints)
        self.features = self.pool.features
        if weights:
            self._fill(Path(weights))
        if frozen:
            for name, weight in self.named_parameters():
                weight.requires_grad_(name.startswith("pool."))

    def forward(
        self, images: Float[Tensor, "batch channels height width"], draws: Draws | None = None
    ) -> Float[Tensor, "batch features"]:
        h = torch.relu(self.bn1(self.conv1(crop(images, self.crop, draws))))
        h = nn.functional.max_pool2d(h, 3, 2, 1)
        for i in range(len(STAGES)):
            h = self.get_submodule(f"layer{i + 1}")(h)
        return self.pool(h)

    def _fill(self, path: Path) -> None:
        if not path.is_file():
            raise WorkbenchError(f"encoder.weights: got no file at {path}; expected torchvision's resnet18 (.pth).")
        there = torch.load(path, map_location="cpu", weights_only=True)
        own = {k: v for k, v in self.state_dict().items() if v.dim() == 4 and not k.startswith("pool.")}
        if wrong := [k for k, v in own.items() if k not in there or there[k].shape != v.shape]:
            raise WorkbenchError(f"encoder.weights: {path} has no {wrong[0]} of the right shape; expected ResNet-18's.")
        self.load_state_dict({k: there[k] for k in own}, strict=False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


class _Block(nn.Module):
    def __init__(self, inlet: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inlet, width, 3, stride, 1, bias=False)
        self.bn1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = _norm(width)
        self.downsample: nn.Module | None = None
        if stride > 1 or inlet != width:
            self.downsample = nn.Sequential(nn.Conv2d(inlet, width, 1, stride, bias=False), _norm(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + (x if self.downsample is None else self.downsample(x)))
