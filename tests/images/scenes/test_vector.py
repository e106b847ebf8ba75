"""Vector graphics, filled by another program's geometry, against the signed distances."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from matplotlib.path import Path

from images.scenes.render import DISTANCES
from images.scenes.scene import RGB, SHAPES, draw
from images.scenes.vector import svg

SPACE = "{http://www.w3.org/2000/svg}"


def element(shape: int) -> ElementTree.Element:
    scenes = draw(1, torch.Generator().manual_seed(0))
    group = ElementTree.fromstring(svg(replace(scenes, shape=torch.full((1, 1), shape)), 0)).find(f"{SPACE}g")
    assert group is not None
    return group[0]


@pytest.mark.parametrize("shape", [k for k, name in enumerate(SHAPES) if name not in ("circle", "ring")])
def test_polygon_is_the_inside_of_the_distance(shape: int) -> None:
    found = element(shape)
    if found.tag == f"{SPACE}rect":
        x, y, width, height = (float(found.attrib[k]) for k in ("x", "y", "width", "height"))
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    else:
        corners = [tuple(map(float, pair.split(","))) for pair in found.attrib["points"].split()]
    xy = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2.6 - 1.3
    distance = DISTANCES[shape](xy[:, 0], xy[:, 1])
    clear = distance.abs() > 1e-4
    inside = torch.from_numpy(Path(corners).contains_points(xy.numpy()))
    assert torch.equal(inside[clear], (distance < 0)[clear])


def test_circle_and_ring() -> None:
    assert element(0).attrib["r"] == "1"
    ring = element(5).attrib
    middle, width = float(ring["r"]), float(ring["stroke-width"])
    for radius in (middle - width / 2, middle + width / 2):
        edge = DISTANCES[5](torch.tensor(radius), torch.tensor(0.0))
        assert abs(float(edge)) < 1e-5


def test_objects_stand_in_painting_order_at_their_places() -> None:
    scenes = draw(3, torch.Generator().manual_seed(2), 3, rotation=0.5)
    for i in range(3):
        root = ElementTree.fromstring(svg(scenes, i))
        groups = root.findall(f"{SPACE}g")
        assert len(groups) == 3
        for k, group in enumerate(groups):
            x, y, degrees, radius = map(float, re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", group.attrib["transform"]))
            expected = [*scenes.centre[i, k].tolist(), float(scenes.rotation[i, k].rad2deg()), float(scenes.size[i, k])]
            assert [x, y, degrees, radius] == pytest.approx(expected, abs=1e-4)
            colour = [int(group.attrib["fill"][j : j + 2], 16) / 255 for j in (1, 3, 5)]
            assert colour == pytest.approx(RGB[int(scenes.colour[i, k])], abs=0.5 / 255 + 1e-9)
