"""The renderer: signed distances to coverage to a picture, differentiable in every number of a scene.

Every shape is a function of (x, y) in its own frame (radius 1, y down) that is negative inside and has slope 1 at the
edge. What an object covers is computed on a grid of 64 x 64 points (of the picture's size above that) and averaged, so
that the pictures of 16, 32 and 64 pixels of one scene are exact pairs: each is the average of the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffusion_core.errors import WorkbenchError
from images.scenes.scene import LEVELS, RGB, SHAPES, Scenes

Points = Float[Tensor, "*points"]

GRID = 64
"""Points a side on which coverage is computed at the least."""
SHARPNESS = 3.0
"""Slope of the edge per point of the grid: nine tenths of it lie within two points."""
# points computed at once: few enough to stay in the cache
CHUNK_POINTS = 2**19

SQUARE = 0.88
BAR = 0.38
HOLE = 0.5
# an equilateral triangle and a star, moved down so that their boxes are centred
TRIANGLE, TRIANGLE_DOWN = 1.15, 0.25 * 1.15
STAR, STAR_WAIST, STAR_DOWN = 1.1, 0.45 * 1.1, 0.5 * (1 - math.cos(math.pi / 5)) * 1.1


def circle(x: Points, y: Points) -> Points:
    # the root has no slope at 0
    return torch.sqrt(x * x + y * y + 1e-12) - 1


def square(x: Points, y: Points) -> Points:
    return torch.maximum(x.abs(), y.abs()) - SQUARE


def triangle(x: Points, y: Points) -> Points:
    """Equilateral, apex up: the largest distance to its three sides."""
    y = y - TRIANGLE_DOWN
    return torch.maximum(y, x.abs() * (math.sqrt(3) / 2) - y / 2) - TRIANGLE / 2


def cross(x: Points, y: Points) -> Points:
    """Two bars: the smaller distance."""
    across, along = x.abs(), y.abs()
    return torch.maximum(torch.minimum(across, along) - BAR, torch.maximum(across, along) - 1)


def star(x: Points, y: Points) -> Points:
    """Five points: the plane folded onto a tenth of it, then the distance to one edge."""
    y = y - STAR_DOWN
    radius = torch.sqrt(x * x + y * y + 1e-12)
    fifth = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (angle - fifth * torch.round(angle / fifth)).abs()
    # the edge from the tip (0, STAR) to the waist at half a fifth
    half = fifth / 2
    run, rise = STAR_WAIST * math.sin(half), STAR_WAIST * math.cos(half) - STAR
    length = math.hypot(run, rise)
    return (radius * torch.sin(angle) * -rise + (radius * torch.cos(angle) - STAR) * run) / length


def ring(x: Points, y: Points) -> Points:
    middle, half = (1 + HOLE) / 2, (1 - HOLE) / 2
    return (torch.sqrt(x * x + y * y + 1e-12) - middle).abs() - half


DISTANCES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (circle, square, triangle, cross, star, ring)
"""One for each of SHAPES."""
CENTROIDS = (0.0, 0.0, TRIANGLE_DOWN, 0.0, STAR_DOWN, 0.0)
"""How far below its centre the centroid of each shape lies, in radii."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """Pictures and what covers them.

    Args:
        image: red, green, blue in [0, 1].
        coverage: of each object the share of each pixel in which it is seen, so that
            image = background (1 - sum_k coverage_k) + sum_k coverage_k colour_k.
        whole: the same were the other objects not there.
        local_xy: each pixel's centre in each object's own frame: moved, turned back and divided by the radius.
    """

    image: Float[Tensor, "batch 3 size size"]
    coverage: Float[Tensor, "batch objects size size"]
    whole: Float[Tensor, "batch objects size size"]
    local_xy: Float[Tensor, "batch objects 2 size size"]


def render(scenes: Scenes, size: int) -> Rendered:
    """Render scenes with their coverage and coordinates.

    Args:
        scenes: gradients flow to size, centre and rotation.
        size: pixels a side: 8, 16, 32, 64 or more.

    Raises:
        WorkbenchError: the size divides 64 nowhere and is not above it.
    """
    parts = [_render(scenes.take(rows), size) for rows in _chunks(scenes, size)]
    local = [local_frame(scenes.take(rows), size) for rows in _chunks(scenes, size)]
    colour, background = palette(scenes)
    coverage, whole = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])
    return Rendered(paint(coverage, colour, background), coverage, whole, torch.cat(local))


def pictures(scenes: Scenes, size: int) -> Float[Tensor, "batch 3 size size"]:
    """Render the images alone, with little memory."""
    colour, background = palette(scenes)
    return torch.cat(
        [paint(_render(scenes.take(rows), size)[0], colour[rows], background[rows]) for rows in _chunks(scenes, size)]
    )


def palette(scenes: Scenes) -> tuple[Float[Tensor, "batch objects 3"], Float[Tensor, "batch 3"]]:
    """Colours of the objects and of the backgrounds."""
    like = scenes.size
    background = like.new_tensor(LEVELS)[scenes.background]
    return like.new_tensor(RGB)[scenes.colour], background[:, None].expand(-1, 3)


def paint(
    coverage: Float[Tensor, "batch objects size size"],
    colour: Float[Tensor, "batch objects 3"],
    background: Float[Tensor, "batch 3"],
) -> Float[Tensor, "batch 3 size size"]:
    """Mix the colours by what is seen of each.

    image = background + sum_k coverage_k (colour_k - background)
    """
    mixed = torch.einsum("nkhw,nkc->nchw", coverage, colour - background[:, None])
    # rounding may leave [0, 1] by one unit in the last place
    return (background[:, :, None, None] + mixed).clamp(0, 1)


def local_frame(scenes: Scenes, size: int) -> Float[Tensor, "batch objects 2 size size"]:
    """Coordinates of the pixels' centres in each object's own frame; 0 in an empty slot.

    local = R(-rotation) (xy - centre) / radius
    """
    centres = (torch.arange(size, device=scenes.size.device).to(scenes.size) + 0.5) / size
    x = (centres - scenes.centre[..., 0, None])[..., None, :]
    y = (centres - scenes.centre[..., 1, None])[..., :, None]
    cos, sin = (f(scenes.rotation)[..., None, None] for f in (torch.cos, torch.sin))
    per_radius = 1 / torch.where(scenes.present, scenes.size, torch.inf)[..., None, None]
    # products of a row and a column, so that nothing larger than the result is made
    local_x = (cos * per_radius) * x + (sin * per_radius) * y
    local_y = (cos * per_radius) * y - (sin * per_radius) * x
    return torch.stack([local_x, local_y], -3)


def _chunks(scenes: Scenes, size: int) -> list[slice]:
    grid = max(size, GRID)
    if grid % size:
        raise WorkbenchError(f"size: got {size} pixels; expected a divisor of {GRID} or more than that: choose 32.")
    step = max(1, CHUNK_POINTS // (grid * grid * scenes.shape.shape[1]))
    return [slice(i, i + step) for i in range(0, max(len(scenes), 1), step)]


def _render(scenes: Scenes, size: int) -> tuple[Tensor, Tensor]:
    """Coverage seen and coverage whole, both averaged from the grid to pixels.

    whole_k = sigmoid(-distance_k radius_k grid sharpness),    seen_k = whole_k prod_{j > k} (1 - whole_j)
    """
    grid = max(size, GRID)
    local = local_frame(scenes, grid)
    x, y = local.unbind(-3)
    distance = torch.full_like(x, 1.0)
    for index in range(len(SHAPES)):
        mine = (scenes.shape == index) & scenes.present
        if bool(mine.any()):
            distance[mine] = DISTANCES[index](x[mine], y[mine])
    steep = torch.where(scenes.present, scenes.size * (grid * SHARPNESS), 0)[..., None, None]
    whole = torch.sigmoid(distance * -steep) * scenes.present[..., None, None]
    seen = [whole[:, -1]]
    free = 1 - whole[:, -1]
    for k in range(whole.shape[1] - 2, -1, -1):
        seen.append(whole[:, k] * free)
        free = free * (1 - whole[:, k])
    stacked = torch.stack(seen[::-1], 1)
    factor = grid // size
    if factor == 1:
        return stacked, whole
    return functional.avg_pool2d(stacked, factor), functional.avg_pool2d(whole, factor)
