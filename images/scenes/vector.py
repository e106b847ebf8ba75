"""Vector graphics of a scene: one element an object, in the order in which they are painted."""

from __future__ import annotations

import math
from collections.abc import Iterable

from images.scenes.render import BAR, HOLE, SQUARE, STAR, STAR_DOWN, STAR_WAIST, TRIANGLE, TRIANGLE_DOWN
from images.scenes.scene import LEVELS, RGB, SHAPES, Scenes


def svg(scenes: Scenes, i: int, size: int = 256) -> str:
    """Write scene `i` as an SVG file of so many pixels a side."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 1 1">',
        f'<rect width="1" height="1" fill="{_hex([LEVELS[int(scenes.background[i])]] * 3)}"/>',
    ]
    for k in range(int(scenes.count[i])):
        (x, y), radius = scenes.centre[i, k].tolist(), float(scenes.size[i, k])
        turn = math.degrees(float(scenes.rotation[i, k]))
        place = f"translate({x:.6g} {y:.6g}) rotate({turn:.6g}) scale({radius:.6g})"
        body, paint = _element(SHAPES[int(scenes.shape[i, k])]), _hex(RGB[int(scenes.colour[i, k])])
        lines.append(f'<g transform="{place}" fill="{paint}" stroke="{paint}" stroke-width="0">{body}</g>')
    return "\n".join([*lines, "</svg>", ""])


def _element(shape: str) -> str:
    """A shape of radius 1 around the origin, y down."""
    points: list[tuple[float, float]]
    match shape:
        case "circle":
            return '<circle r="1"/>'
        case "ring":
            return f'<circle r="{(1 + HOLE) / 2:.6g}" fill="none" stroke-width="{1 - HOLE:.6g}"/>'
        case "square":
            return f'<rect x="{-SQUARE}" y="{-SQUARE}" width="{2 * SQUARE}" height="{2 * SQUARE}"/>'
        case "triangle":
            points = [_polar(TRIANGLE, k / 3, TRIANGLE_DOWN) for k in range(3)]
        case "cross":
            quarter = [(-BAR, -1.0), (BAR, -1.0), (BAR, -BAR)]
            points = [p for turn in range(4) for p in _turned(quarter, turn)]
        case _:
            points = [_polar(STAR_WAIST if k % 2 else STAR, k / 10, STAR_DOWN) for k in range(10)]
    return f'<polygon points="{" ".join(f"{x:.6g},{y:.6g}" for x, y in points)}"/>'


def _polar(radius: float, turn: float, down: float) -> tuple[float, float]:
    angle = 2 * math.pi * turn
    return radius * math.sin(angle), down - radius * math.cos(angle)


def _turned(points: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    for _ in range(quarters):
        points = [(-y, x) for x, y in points]
    return points


def _hex(rgb: Iterable[float]) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
