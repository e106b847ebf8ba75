"""Ground truth against geometry done by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from images.scenes.render import render
from images.scenes.scene import Scenes, draw
from images.scenes.truth import truth


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to_picture(scenes: Scenes, local: torch.Tensor) -> torch.Tensor:
    """xy = centre + radius R(rotation) local, of the only object: local is (2, size, size)."""
    cos, sin = math.cos(float(scenes.rotation)), math.sin(float(scenes.rotation))
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=local.dtype)
    return scenes.centre[0, 0, :, None, None] + scenes.size[0, 0] * torch.einsum("ij,jhw->ihw", turn, local)


def test_maps_agree_with_one_another() -> None:
    scenes = draw(40, seeded(), 3)
    found = truth(scenes, render(scenes, 32))
    assert (found.masks.sum(1) == (found.instance > 0)).all()
    for k in range(3):
        assert torch.equal(found.masks[:, k], found.instance == k + 1)
        kinds = (1 + scenes.shape * 6 + scenes.colour)[:, k, None, None].expand(-1, 32, 32)
        assert torch.equal(found.semantic[found.masks[:, k]], kinds[found.masks[:, k]])
    assert (found.semantic[found.instance == 0] == 0).all()
    assert torch.equal(found.depth, torch.tensor([2, 1, 0]).expand(40, 3))
    assert (found.whole | ~found.masks).float().mean() > 0.999


def test_boxes_are_the_extent_of_a_circle() -> None:
    scenes = draw(50, seeded())
    scenes = replace(scenes, shape=torch.zeros_like(scenes.shape))
    boxes = truth(scenes, render(scenes, 64)).boxes[:, 0]
    exact = torch.cat([scenes.centre[:, 0] - scenes.size, scenes.centre[:, 0] + scenes.size], 1)
    # a row of pixels is in the mask or it is not
    assert (boxes - exact).abs().max() < 1.0 / 64


def test_correspondence_finds_the_same_point_in_another_picture() -> None:
    scenes = draw(10, seeded(1), rotation=0.6)
    size = 32
    centres = (torch.arange(size) + 0.5) / size
    grid = torch.stack([centres.expand(size, size), centres[:, None].expand(size, size)])
    found = truth(scenes, render(scenes, size))
    for i in range(10):
        one = scenes.take(slice(i, i + 1))
        back = to_picture(one, found.correspondence[i])
        mask = found.masks[i, 0]
        torch.testing.assert_close(back[:, mask], grid[:, mask], atol=1e-5, rtol=0)
        moved = replace(one, centre=one.centre + 0.05, rotation=one.rotation + 0.4, size=one.size * 1.1)
        there = truth(moved, render(moved, size))
        ahead = to_picture(moved, found.correspondence[i])[:, mask]
        inside = ((ahead > 0) & (ahead < 1)).all(0)
        at = (ahead * size - 0.5).round().long().clamp(0, size - 1)
        seen = there.masks[0, 0][at[1], at[0]] & inside
        again = there.correspondence[0][:, at[1], at[0]]
        error = (again - found.correspondence[i][:, mask]).norm(dim=0)[seen]
        # rounded to a pixel: half its diagonal in the object's own units
        assert error.max() < math.sqrt(0.5) / size / float(moved.size) + 1e-5
        assert seen[inside].float().mean() > 0.8


def test_edges_surround_a_square() -> None:
    scenes = draw(1, seeded())
    scenes = replace(
        scenes, shape=torch.ones_like(scenes.shape), centre=torch.full((1, 1, 2), 0.5), size=torch.full((1, 1), 0.25)
    )
    found = truth(scenes, render(scenes, 32))
    side = round(math.sqrt(int(found.masks.sum())))
    assert int(found.masks.sum()) == side * side
    # one pixel left of and above each row and column, and the last one of each inside; the corner counts once
    assert int(found.edges.sum()) == 4 * side - 1


def test_depth_is_unstated_in_empty_slots() -> None:
    scenes = draw(3, seeded(), 2)
    scenes = replace(scenes, count=torch.ones_like(scenes.count))
    found = truth(scenes, render(scenes, 16))
    assert found.depth.tolist() == [[0, -1]] * 3
    assert (found.boxes[:, 1] == 0).all() and not found.masks[:, 1].any()
