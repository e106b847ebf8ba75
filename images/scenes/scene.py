"""Scenes: up to three coloured shapes on a plain background, drawn from a small grammar.

Tier 1 is one object in a cell of a 3 x 3 grid (1,296 statements), tier 2 two objects and their relation, tier 3 three
objects in three cells. Tiers 2 and 3 add two shapes. The objects of a scene differ in colour. A `Spec` is what a
sentence states, a `Scenes` the geometry that a picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
BACKGROUNDS = ("white", "black", "gray")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Cells in reading order: row * 3 + column."""

N_TIER_1_SHAPES = 4
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES[:N_TIER_1_SHAPES] for colour in COLOURS)
"""The 24 classes of tier 1: shape * 6 + colour."""

RGB = ((0.85, 0.05, 0.15), (0.0, 0.65, 0.1), (0.05, 0.2, 0.95), (1.0, 1.0, 0.15), (0.6, 0.0, 0.9), (1.0, 0.48, 0.0))
"""Red, green and blue of each of the COLOURS, in [0, 1]."""
LEVELS = (1.0, 0.0, 0.5)
"""Brightness of each of the BACKGROUNDS."""
RADII = (0.15, 0.24)
"""Radius of each of the SIZES in a scene of one object, as a fraction of the picture's side."""
SCALES = (1.0, 0.8, 0.6)
"""What one, two and three objects multiply the radii by."""

HELD_OUT = ((0, 0), (0, 3), (1, 1), (1, 4), (2, 2), (2, 5), (3, 0), (3, 4))
"""Pairs (shape, colour) that `compositions="train"` never draws: 8 of the 24, two of each shape."""
Compositions: TypeAlias = Literal["all", "train", "held out"]

UNSTATED = -1
# a grid of one object leaves a large one inside the picture; a grid of three keeps them apart
_GRID = {1: (0.27, 0.5, 0.73), 3: (0.2, 0.5, 0.8)}
_JITTER = {1: 0.025, 3: 0.02}
# between the lines of either grid, so that both are read by the same rule
_CELL_EDGES = (0.375, 0.625)
_EDGE, _GAP, _ACROSS = 0.02, 0.04, 0.05


@dataclass(frozen=True, eq=False)
class Spec:
    """What sentences state, a batch; UNSTATED (-1) where they are silent.

    Args:
        background: index in BACKGROUNDS.
        count: how many objects are named.
        shape, colour, size, cell: of each object, indices in SHAPES, COLOURS, SIZES and CELLS; -1 beyond the count.
        relation: of the first object to the second, index in RELATIONS.
    """

    background: Int64[Tensor, " batch"]
    count: Int64[Tensor, " batch"]
    shape: Int64[Tensor, "batch objects"]
    colour: Int64[Tensor, "batch objects"]
    size: Int64[Tensor, "batch objects"]
    cell: Int64[Tensor, "batch objects"]
    relation: Int64[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.background)

    def take(self, rows: Tensor | slice) -> Spec:
        """Pick rows, by index, by mask or by slice."""
        return Spec(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def same(self, other: Spec) -> Bool[Tensor, " batch"]:
        """Tell the rows that state the same."""
        return torch.stack(
            [(getattr(self, f.name) == getattr(other, f.name)).reshape(len(self), -1).all(1) for f in fields(self)]
        ).all(0)


@dataclass(frozen=True, eq=False)
class Scenes:
    """Geometry of a batch of scenes; a later object is painted over an earlier one.

    Args:
        count: how many of the object slots are filled, from the first.
        shape, colour: of each object, indices in SHAPES and COLOURS; 0 in an empty slot.
        size: radius as a fraction of the picture's side: the shape fits in a square of about twice that side.
        centre: (x, y), fractions of the side from the left and from the top.
        rotation: radians, clockwise as seen.
        background: index in BACKGROUNDS.
    """

    count: Int64[Tensor, " batch"]
    shape: Int64[Tensor, "batch objects"]
    colour: Int64[Tensor, "batch objects"]
    size: Float[Tensor, "batch objects"]
    centre: Float[Tensor, "batch objects 2"]
    rotation: Float[Tensor, "batch objects"]
    background: Int64[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.count)

    @property
    def present(self) -> Bool[Tensor, "batch objects"]:
        """The slots that hold an object."""
        return torch.arange(self.shape.shape[1], device=self.count.device) < self.count[:, None]

    def take(self, rows: Tensor | slice) -> Scenes:
        """Pick rows, by index, by mask or by slice."""
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def labels(self) -> Int64[Tensor, " batch"]:
        """Class in CLASSES: shape * 6 + colour; -1 where a scene is not one object of a tier-1 shape."""
        one = (self.count == 1) & (self.shape[:, 0] < N_TIER_1_SHAPES)
        return torch.where(one, self.shape[:, 0] * len(COLOURS) + self.colour[:, 0], -1)

    def spec(self) -> Spec:
        """State what the canonical sentence states: cells of one and of three objects, the relation of two."""
        present, two = self.present, self.count == 2

        def stated(values: Tensor, where: Tensor) -> Tensor:
            return torch.where(where, values, UNSTATED)

        relation = relation_of(self.centre[:, 0], self.centre[:, min(1, self.shape.shape[1] - 1)])
        return Spec(
            self.background,
            self.count,
            stated(self.shape, present),
            stated(self.colour, present),
            stated(size_class(self.size, self.count), present),
            stated(cell_of(self.centre), present & ~two[:, None]),
            stated(relation, two),
        )


def join(parts: Sequence[Scenes]) -> Scenes:
    """Put batches behind one another; those with fewer slots get empty ones."""
    slots = max(part.shape.shape[1] for part in parts)

    def padded(name: str) -> Tensor:
        rows = [getattr(part, name) for part in parts]
        if rows[0].ndim > 1:
            rows = [torch.cat([x, x.new_zeros(len(x), slots - x.shape[1], *x.shape[2:])], 1) for x in rows]
        return torch.cat(rows)

    return Scenes(**{field.name: padded(field.name) for field in fields(Scenes)})


def cell_of(centre: Float[Tensor, "*batch 2"]) -> Int64[Tensor, "*batch"]:
    """Cell of the 3 x 3 grid in which a centre lies: row * 3 + column."""
    place = torch.bucketize(centre.detach().contiguous(), torch.tensor(_CELL_EDGES, device=centre.device).to(centre))
    return place[..., 1] * 3 + place[..., 0]


def relation_of(first: Float[Tensor, "*batch 2"], second: Float[Tensor, "*batch 2"]) -> Int64[Tensor, "*batch"]:
    """Relation of a first centre to a second one: the axis on which they are farther apart decides."""
    apart = second - first
    upright = apart[..., 1].abs() > apart[..., 0].abs()
    return torch.where(upright, 2 + (apart[..., 1] < 0).long(), (apart[..., 0] < 0).long())


def size_class(size: Float[Tensor, "batch objects"], count: Int64[Tensor, " batch"]) -> Int64[Tensor, "batch objects"]:
    """Index in SIZES of the class whose radius, among so many objects, is the nearest."""
    middle = sum(RADII) / 2
    scale = torch.tensor(SCALES, device=size.device).to(size)[(count.clamp(1, 3) - 1)]
    return (size.detach() > middle * scale[:, None]).long()


def allowed(tier: int, compositions: Compositions = "all") -> Bool[Tensor, "shapes colours"]:
    """Pairs (shape, colour) that a tier may show."""
    table = torch.zeros(len(SHAPES), len(COLOURS), dtype=torch.bool)
    table[: N_TIER_1_SHAPES if tier == 1 else len(SHAPES)] = True
    held = torch.zeros_like(table)
    held[tuple(torch.tensor(HELD_OUT).T)] = True
    if compositions == "all":
        return table
    return table & held if compositions == "held out" else table & ~held


def every() -> Spec:
    """Every statement of tier 1, once: 4 shapes x 6 colours x 2 sizes x 3 backgrounds x 9 cells."""
    ranges = [torch.arange(k) for k in (N_TIER_1_SHAPES, len(COLOURS), len(SIZES), len(BACKGROUNDS), len(CELLS))]
    shape, colour, size, background, cell = torch.cartesian_prod(*ranges).unbind(1)
    one, silent = torch.ones_like(shape), torch.full_like(shape, UNSTATED)
    return Spec(background, one, shape[:, None], colour[:, None], size[:, None], cell[:, None], silent)


def draw(
    n: int,
    generator: torch.Generator,
    tier: int = 1,
    compositions: Compositions = "all",
    backgrounds: Sequence[float] | None = None,
    rotation: float = 0.0,
) -> Scenes:
    """Draw scenes of a tier, every choice of the grammar with the same chance.

    Args:
        n: how many.
        tier: 1, 2 or 3: how many objects a scene has.
        compositions: "train" leaves out the HELD_OUT pairs of shape and colour, "held out" draws only those.
        backgrounds: chance of white, black and gray, up to a factor; equal by default.
        rotation: largest angle to either side, radians; 0 keeps shapes upright.

    Raises:
        WorkbenchError: the tier or the compositions are not among those named.
    """
    if tier not in (1, 2, 3):
        raise WorkbenchError(f"tier: got {tier!r}; expected 1, 2 or 3: choose one.")
    if compositions not in ("all", "train", "held out"):
        raise WorkbenchError(f"compositions: got {compositions!r}; expected all, train or held out: choose one.")
    device = generator.device

    def pick(weights: Tensor) -> Tensor:
        # multinomial refuses a batch of none
        return torch.multinomial(weights, 1, generator=generator)[:, 0] if n else weights.new_zeros(0).long()

    def choose(size: tuple[int, ...], choices: int) -> Tensor:
        return torch.randint(choices, size, generator=generator, device=device)

    pairs = allowed(tier, compositions).to(device).float().repeat(n, 1, 1)
    shapes, colours = [], []
    for _ in range(tier):
        pair = pick(pairs.flatten(1))
        shapes.append(pair // len(COLOURS))
        colours.append(pair % len(COLOURS))
        pairs[torch.arange(n, device=device), :, colours[-1]] = 0
    odds = torch.tensor(backgrounds or [1.0] * len(BACKGROUNDS), device=device).expand(n, -1)
    silent = torch.full((n, tier), UNSTATED, dtype=torch.int64, device=device)
    cells = torch.rand(n, len(CELLS), generator=generator, device=device).argsort(1)[:, :tier]
    spec = Spec(
        pick(odds),
        torch.full((n,), tier, dtype=torch.int64, device=device),
        torch.stack(shapes, 1),
        torch.stack(colours, 1),
        choose((n, tier), len(SIZES)),
        silent if tier == 2 else cells,
        choose((n,), len(RELATIONS)) if tier == 2 else silent[:, 0],
    )
    return realise(spec, generator, rotation)


def realise(spec: Spec, generator: torch.Generator, rotation: float = 0.0) -> Scenes:
    """Draw a scene for each statement: what it leaves open is its jitter, and the angle if `rotation` is given.

    Args:
        spec: complete statements (as of `Scenes.spec`, `every` or a canonical sentence), all of one count.
        rotation: largest angle to either side, radians.

    Raises:
        WorkbenchError: a statement is silent about what a picture must show.
    """
    n, slots = spec.shape.shape
    device = generator.device
    if n and not bool((spec.count == slots).all()):
        raise WorkbenchError(f"realise: got counts {sorted(set(spec.count.tolist()))}; expected {slots} in every row.")
    places = spec.relation if slots == 2 else spec.cell
    stated = {
        "shape": spec.shape,
        "colour": spec.colour,
        "size": spec.size,
        "place": places,
        "background": spec.background,
    }
    for name, values in stated.items():
        if bool((values < 0).any()):
            raise WorkbenchError(f"realise: got a sentence silent about {name}; expected a complete one: state it.")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    size = torch.tensor(RADII, device=device)[spec.size] * SCALES[slots - 1]
    angle = (2 * uniform(n, slots) - 1) * rotation
    if slots == 2:
        centre = _related(size, spec.relation, uniform(n, 2), uniform(n, 3))
    else:
        grid = torch.tensor(_GRID[slots], device=device)
        on_grid = torch.stack([grid[spec.cell % 3], grid[spec.cell // 3]], -1)
        centre = on_grid + (2 * uniform(n, slots, 2) - 1) * _JITTER[slots]
    return Scenes(spec.count, spec.shape, spec.colour, size, centre, angle, spec.background)


def _related(
    size: Float[Tensor, "batch 2"],
    relation: Int64[Tensor, " batch"],
    along: Float[Tensor, "batch 2"],
    across: Float[Tensor, "batch 3"],
) -> Float[Tensor, "batch 2 2"]:
    """Place two objects in a relation: apart along its axis, nearly level across it, inside the picture."""
    swapped = (relation % 2 == 1)[:, None]
    near, far = torch.where(swapped, size.flip(1), size).unbind(1)
    low, high = along.sort(1).values.unbind(1)
    slack = 1 - 2 * _EDGE - _GAP - 2 * near - 2 * far
    first = _EDGE + near + low * slack
    second = first + near + far + _GAP + (high - low) * slack
    main = torch.stack([first, second], 1)
    main = torch.where(swapped, main.flip(1), main)
    margin = size.amax(1) + _EDGE + _ACROSS
    level = margin + across[:, 0] * (1 - 2 * margin)
    side = level[:, None] + (2 * across[:, 1:] - 1) * _ACROSS
    horizontal = (relation < 2)[:, None, None]
    return torch.where(horizontal, torch.stack([main, side], -1), torch.stack([side, main], -1))
