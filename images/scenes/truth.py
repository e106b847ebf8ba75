"""Ground truth of rendered scenes: masks, maps, edges, depth, correspondences and boxes, exact by construction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from images.scenes.render import Rendered
from images.scenes.scene import COLOURS, UNSTATED, Scenes


@dataclass(frozen=True, eq=False)
class Truth:
    """What every pixel of a picture is.

    Args:
        masks: the pixels in which each object is seen most: more than the background and every other object.
        whole: the pixels that each object would have alone: at least half covered.
        instance: 0 on the background, k + 1 on object k.
        semantic: 0 on the background, 1 + shape * 6 + colour on an object.
        edges: the pixels whose right or lower neighbour is of another instance.
        depth: of each object, how many objects lie before it; -1 in an empty slot.
        correspondence: where a pixel lies on the object that it shows: (x, y) in the object's own frame, the same for
            the same point in every picture of the object; 0 on the background.
        boxes: left, top, right, bottom of each mask, fractions of the side; 0 where nothing is seen.
    """

    masks: Bool[Tensor, "batch objects size size"]
    whole: Bool[Tensor, "batch objects size size"]
    instance: Int64[Tensor, "batch size size"]
    semantic: Int64[Tensor, "batch size size"]
    edges: Bool[Tensor, "batch size size"]
    depth: Int64[Tensor, "batch objects"]
    correspondence: Float[Tensor, "batch 2 size size"]
    boxes: Float[Tensor, "batch objects 4"]


def truth(scenes: Scenes, rendered: Rendered) -> Truth:
    """Read the ground truth off the coverage of a render of the scenes."""
    coverage = rendered.coverage
    ground = 1 - coverage.sum(1, keepdim=True)
    instance = torch.cat([ground, coverage], 1).argmax(1)
    slots = torch.arange(coverage.shape[1], device=coverage.device)
    masks = instance[:, None] == slots[:, None, None] + 1
    kind = 1 + scenes.shape * len(COLOURS) + scenes.colour
    semantic = torch.where(masks, kind[..., None, None], 0).sum(1)
    correspondence = torch.where(masks[:, :, None], rendered.local_xy, 0).sum(1)
    depth = torch.where(scenes.present, scenes.count[:, None] - 1 - slots, UNSTATED)
    return Truth(
        masks,
        rendered.whole >= 0.5,
        instance,
        semantic,
        _edges(instance),
        depth,
        correspondence,
        _boxes(masks, coverage),
    )


def _edges(instance: Int64[Tensor, "batch size size"]) -> Bool[Tensor, "batch size size"]:
    edges = torch.zeros_like(instance, dtype=torch.bool)
    edges[:, :, :-1] |= instance[:, :, 1:] != instance[:, :, :-1]
    edges[:, :-1] |= instance[:, 1:] != instance[:, :-1]
    return edges


def _boxes(masks: Bool[Tensor, "batch objects size size"], like: Tensor) -> Float[Tensor, "batch objects 4"]:
    size = masks.shape[-1]
    ends = []
    for along in (masks.any(-2), masks.any(-1)):
        seen = along.to(torch.uint8)
        # argmax finds the first of the largest
        first, last = seen.argmax(-1), size - seen.flip(-1).argmax(-1)
        ends.append((first, torch.where(along.any(-1), last, 0)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], -1).to(like) / size
