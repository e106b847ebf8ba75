"""The renderer against areas, exact pairs, its own linearity, and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import avg_pool2d

from diffusion_core.errors import WorkbenchError
from images.scenes import render as renderer
from images.scenes.render import DISTANCES, palette, pictures, render
from images.scenes.scene import LEVELS, RGB, SHAPES, Scenes, draw


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def single(shape: int, radius: float = 0.3, rotation: float = 0.0, dtype: torch.dtype = torch.float64) -> Scenes:
    one, zero = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    centre = torch.tensor([[[0.48, 0.53]]], dtype=dtype)
    size, angle = torch.tensor([[radius]], dtype=dtype), torch.tensor([[rotation]], dtype=dtype)
    return Scenes(one, torch.tensor([[shape]]), zero[:, None], size, centre, angle, zero)


R, STAR = renderer.TRIANGLE, renderer.STAR
AREAS = {
    "circle": math.pi,
    "square": 4 * renderer.SQUARE**2,
    "triangle": 3 * math.sqrt(3) / 4 * R**2,
    "cross": 2 * (4 * renderer.BAR) - 4 * renderer.BAR**2,
    # ten triangles between a tip and a waist
    "star": 5 * STAR * renderer.STAR_WAIST * math.sin(math.pi / 5),
    "ring": math.pi * (1 - renderer.HOLE**2),
}


@pytest.mark.parametrize("rotation", [0.0, 0.7])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_area_is_that_of_the_shape(shape: int, rotation: float) -> None:
    """To a half percent: the soft edge rounds corners."""
    whole = render(single(shape, rotation=rotation), 256).whole
    assert float(whole.mean()) == pytest.approx(AREAS[SHAPES[shape]] * 0.3**2, rel=5e-3)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_centroid_stands_where_it_is_said_to(shape: int) -> None:
    whole = render(single(shape), 256).whole[0, 0]
    points = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    y = float((whole.sum(1) * points).sum() / whole.sum())
    assert (y - 0.53) / 0.3 == pytest.approx(renderer.CENTROIDS[shape], abs=2e-3)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_distance_has_slope_one_where_it_is_zero(shape: int) -> None:
    xy = (torch.rand(40_000, 2, generator=seeded(), dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    distance = DISTANCES[shape](xy[:, 0], xy[:, 1])
    (slope,) = torch.autograd.grad(distance.sum(), xy)
    near = distance.abs() < 0.03
    assert near.sum() > 100
    torch.testing.assert_close(slope[near].norm(dim=1), torch.ones(int(near.sum()), dtype=torch.float64))


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_sizes_are_exact_pairs(tier: int) -> None:
    scenes = draw(20, seeded(tier), tier, rotation=0.5)
    large = pictures(scenes, 64)
    for size in (32, 16, 8):
        torch.testing.assert_close(pictures(scenes, size), avg_pool2d(large, 64 // size), atol=2e-6, rtol=0)


def test_picture_is_background_and_colours_mixed_by_coverage() -> None:
    scenes = draw(30, seeded(), 3)
    drawn = render(scenes, 32)
    colour, background = palette(scenes)
    ground = 1 - drawn.coverage.sum(1)
    assert ground.min() > -1e-5
    mixed = ground[:, None] * background[:, :, None, None] + torch.einsum("nkhw,nkc->nchw", drawn.coverage, colour)
    torch.testing.assert_close(drawn.image, mixed, atol=1e-5, rtol=0)
    assert torch.equal(drawn.image, pictures(scenes, 32))
    assert drawn.image.dtype == torch.float32 and drawn.image.min() >= 0 and drawn.image.max() <= 1


def test_later_objects_hide_earlier_ones() -> None:
    scenes = draw(1, seeded(), 2)
    centre, size = torch.full((1, 2, 2), 0.5), torch.tensor([[0.3, 0.15]])
    scenes = replace(scenes, centre=centre, size=size, shape=torch.tensor([[1, 0]]), colour=torch.tensor([[2, 3]]))
    drawn = render(scenes, 64)
    torch.testing.assert_close(drawn.image[0, :, 32, 32], torch.tensor(RGB[3]), atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.image[0, :, 32, 19], torch.tensor(RGB[2]), atol=1e-3, rtol=0)
    assert abs(float(drawn.image[0, 0, 2, 2]) - LEVELS[int(scenes.background[0])]) < 1e-6
    assert drawn.whole[0, 0, 32, 32] > 0.999 and drawn.coverage[0, 0, 32, 32] < 1e-3


def test_empty_slots_show_nothing() -> None:
    scenes = draw(5, seeded(), 3)
    fewer = replace(scenes, count=torch.ones_like(scenes.count))
    drawn = render(fewer, 16)
    assert (drawn.coverage[:, 1:] == 0).all() and (drawn.local_xy[:, 1:] == 0).all()
    alone = Scenes(
        fewer.count,
        *(getattr(fewer, k)[:, :1] for k in ("shape", "colour", "size", "centre", "rotation")),
        fewer.background,
    )
    torch.testing.assert_close(drawn.image, pictures(alone, 16), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_gradients_are_those_of_finite_differences(shape: int) -> None:
    scenes = single(shape, radius=0.22, rotation=0.2)

    def shrunk(size: torch.Tensor, centre: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        return pictures(replace(scenes, size=size, centre=centre, rotation=rotation), 8)[:, 0]

    leaves = tuple(x.clone().requires_grad_() for x in (scenes.size, scenes.centre, scenes.rotation))
    assert torch.autograd.gradcheck(shrunk, leaves, eps=1e-7, atol=1e-4)


def test_a_square_turned_by_a_quarter_is_the_same_and_a_triangle_turns_clockwise() -> None:
    quarter = math.pi / 2
    torch.testing.assert_close(pictures(single(1, rotation=quarter), 32), pictures(single(1), 32))
    x, y = (render(single(2, rotation=r), 128).whole[0, 0] for r in (quarter, 0.0))
    # the apex points right, so the base is at the left: its columns are the fullest
    assert x.sum(0)[:64].max() > x.sum(0)[64:].max() and y.sum(1)[64:].max() > y.sum(1)[:64].max()


def test_size_must_fit_the_grid() -> None:
    with pytest.raises(WorkbenchError, match="size"):
        render(draw(1, seeded()), 24)
