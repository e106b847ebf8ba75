"""The judge: reads pictures back into statements, without a network, by rendering and comparing.

A picture's background is the level that most of its pixels are nearest to. What differs from it is explained by rays
from the background to the colours, so that the soft edge of an object counts for its own colour; the colours that cover
enough are the objects. Each is then compared with renders of every shape and size, at steps of a 128th of the side
around its centroid, and the least squared difference decides. What is left unexplained is the residual.

Shapes are expected upright.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from diffusion_core.errors import WorkbenchError
from images.scenes.render import CENTROIDS, render
from images.scenes.scene import (
    COLOURS,
    LEVELS,
    N_TIER_1_SHAPES,
    RADII,
    RGB,
    SCALES,
    SHAPES,
    UNSTATED,
    Scenes,
    Spec,
    cell_of,
    relation_of,
)

SLOTS = 3
# area, as a share of the picture, below which a colour is no object: the smallest triangle of three covers .014
LEAST_AREA = 0.008
# shares of a colour below this are noise or an edge
FIRM = 0.4
# so are colours nearer than this to the background
FAR = 0.33
# templates are tried this many pixels to each side of the centroid, in steps of this share of the picture
REACH, STEP = 1.25, 1 / 128
# so small a picture is also compared with templates blurred by this many pixels: an edge is most of a shape there
SOFT_BELOW, SOFT = 16, 0.7
RESIDUAL, MISFIT = 0.06, 0.3
"""Above either of these a picture is not of the grammar."""
# larger pictures are averaged to this size, at which every scene can be read: their pairs are exact
LARGEST = 32
CHUNK_PIXELS = 2**16


@dataclass(frozen=True, eq=False)
class Reading:
    """What the judge sees in pictures.

    Args:
        background: index in BACKGROUNDS.
        count: objects seen: colours that cover enough, and one more where a heap of one of them is left over.
        shape, colour, size, cell: of up to three objects, the largest first; indices as in `Spec`, -1 in an empty slot.
        centre: (x, y), fractions of the side; 0 in an empty slot.
        residual: root mean square difference between the picture and the render of what was read.
        misfit: the same around the worst fitting object, less the noise of the picture's typical pixel, as a share of
            the root mean square that the object makes there; infinite without an object.
    """

    background: Int64[Tensor, " batch"]
    count: Int64[Tensor, " batch"]
    shape: Int64[Tensor, "batch 3"]
    colour: Int64[Tensor, "batch 3"]
    size: Int64[Tensor, "batch 3"]
    cell: Int64[Tensor, "batch 3"]
    centre: Float[Tensor, "batch 3 2"]
    residual: Float[Tensor, " batch"]
    misfit: Float[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.count)


@torch.no_grad()
def read(images: Float[Tensor, "batch 3 size size"], tier: int = 2) -> Reading:
    """Read pictures.

    Args:
        images: red, green and blue in [0, 1], of 8, 16, 32, 64 ... pixels a side; generated ones may leave that range.
        tier: 1 compares with the four shapes of tier 1 only, 2 and 3 with all six.

    Raises:
        WorkbenchError: no such tier, or there are no pictures.
    """
    if tier not in (1, 2, 3) or not len(images):
        raise WorkbenchError(f"judge: got {len(images)} pictures, tier {tier!r}; expected some, of tier 1, 2 or 3.")
    n_shapes = N_TIER_1_SHAPES if tier == 1 else len(SHAPES)
    if images.shape[-1] > LARGEST:
        images = functional.avg_pool2d(images, images.shape[-1] // LARGEST)
    step = max(1, CHUNK_PIXELS // images.shape[-1] ** 2)
    parts = [_read(part.float(), n_shapes) for part in images.split(step)]
    return Reading(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Reading)}
    )


def classes(reading: Reading, residual: float = RESIDUAL, misfit: float = MISFIT) -> Int64[Tensor, " batch"]:
    """Class of tier 1 (`scene.CLASSES`); -1 where a picture is not exactly one object of its grammar."""
    shape, colour = reading.shape[:, 0], reading.colour[:, 0]
    one = (reading.count == 1) & (shape < N_TIER_1_SHAPES)
    fits = (reading.residual <= residual) & (reading.misfit <= misfit)
    return torch.where(one & fits, shape * len(COLOURS) + colour, -1)


def brightness(images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, " batch"]:
    """Brightness of the background: the median pixel's, since the background covers more than half of every scene."""
    return images.mean(1).flatten(1).median(1).values


def agreement(reading: Reading, wanted: Scenes | Spec) -> dict[str, Bool[Tensor, " batch"]]:
    """Compare what was read with what was asked for, attribute by attribute.

    The objects read are assigned to those asked for so that as many as possible agree in colour, then in shape, size
    and place. What a statement is silent about agrees.

    Returns:
        background, count, colour, shape, size, place (cells, or the relation) and all of them together.
    """
    spec = wanted.spec() if isinstance(wanted, Scenes) else wanted
    n, device = len(spec), reading.count.device
    wants = {name: _slots(getattr(spec, name).to(device), UNSTATED) for name in ("colour", "shape", "size", "cell")}
    orders = torch.tensor(list(itertools.permutations(range(SLOTS))), device=device)
    right = {
        name: (getattr(reading, name)[:, orders] == want[:, None]) | (want[:, None] < 0) for name, want in wants.items()
    }
    weights = {"colour": 64, "shape": 16, "size": 4, "cell": 1}
    score = sum(right[name].sum(-1) * weight for name, weight in weights.items())
    best, rows = torch.as_tensor(score).argmax(1), torch.arange(n, device=device)
    found = {name: values[rows, best].all(1) for name, values in right.items()}

    first, second = orders[best, 0], orders[best, 1]
    relation = relation_of(reading.centre[rows, first], reading.centre[rows, second])
    both = (reading.colour[rows, first] >= 0) & (reading.colour[rows, second] >= 0)
    stated = spec.relation.to(device)
    related = (stated < 0) | ((relation == stated) & both)
    result = {
        "background": (reading.background == spec.background.to(device)) | (spec.background.to(device) < 0),
        "count": (reading.count == spec.count.to(device)) | (spec.count.to(device) < 0),
        "colour": found["colour"],
        "shape": found["shape"],
        "size": found["size"],
        "place": found["cell"] & related,
    }
    return {**result, "all": torch.stack(list(result.values())).all(0)}


def _slots(values: Tensor, fill: int) -> Tensor:
    return functional.pad(values, (0, SLOTS - values.shape[1]), value=fill)


@dataclass(frozen=True, eq=False)
class _Bank:
    """Templates of a count of objects: coverage in a window around the centroid, one row each."""

    rows: Tensor  # (templates, window^2)
    energy: Tensor  # (templates,)
    shape: Tensor
    size: Tensor
    offset: Tensor  # (templates, 2): from the window's middle to the shape's centre, pixels
    half: int  # pixels on each side of the window's middle


@lru_cache(maxsize=32)
def _bank(size: int, count: int, n_shapes: int, device: torch.device) -> _Bank:
    steps = size * STEP * torch.arange(-math.ceil(REACH / (size * STEP)), math.ceil(REACH / (size * STEP)) + 1)
    radii = torch.tensor(RADII) * SCALES[count - 1]
    ranges = (torch.arange(n_shapes), torch.arange(len(RADII)), torch.arange(len(steps)), torch.arange(len(steps)))
    shape, kind, column, row = torch.cartesian_prod(*ranges).unbind(1)
    radius = radii[kind]
    offset = torch.stack([steps[column], steps[row] - torch.tensor(CENTROIDS)[shape] * radius * size], 1)
    # the farthest tip, the reach of the offsets, and the soft edge
    half = math.ceil(1.2 * float(radii.max()) * size + REACH) + 1
    middle = size // 2
    scenes = Scenes(
        torch.ones_like(shape),
        shape[:, None],
        torch.zeros_like(shape)[:, None],
        radius[:, None],
        ((middle + 0.5 + offset) / size)[:, None],
        torch.zeros(len(shape), 1),
        torch.zeros_like(shape),
    )
    whole = functional.pad(render(scenes, size).whole[:, 0], (half,) * 4)
    window = whole[:, middle : middle + 2 * half + 1, middle : middle + 2 * half + 1]
    if size <= SOFT_BELOW:
        window = torch.cat([window, _softened(window)])
        shape, kind, offset = shape.repeat(2), kind.repeat(2), offset.repeat(2, 1)
    window = window.flatten(1).to(device)
    return _Bank(window, window.square().sum(1), shape.to(device), kind.to(device), offset.to(device), half)


def _softened(windows: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Blur by a Gaussian of SOFT pixels."""
    reach = torch.arange(-3.0, 4.0)
    kernel = torch.softmax(-reach.square() / (2 * SOFT**2), 0)
    across = functional.conv2d(windows[:, None], kernel[None, None, None], padding=(0, 3))
    return functional.conv2d(across, kernel[None, None, :, None], padding=(3, 0))[:, 0]


def _read(images: Tensor, n_shapes: int) -> Reading:
    n, _, side, _ = images.shape
    device = images.device
    levels = images.new_tensor(LEVELS)
    # every pixel votes for the levels that it is near to
    off = (images[:, None] - levels[:, None, None, None]).square().sum(2)
    background = torch.exp(off / (-2 * 0.2**2)).sum((-2, -1)).argmax(1)

    rest = images - levels[background][:, None, None, None]
    rays = images.new_tensor(RGB) - levels[background][:, None, None]
    along = torch.einsum("nchw,nkc->nkhw", rest, rays)
    length = rays.square().sum(-1)[..., None, None]
    share = along / length
    inside = share.clamp(0, 1)
    # |rest - inside ray|^2 up to |rest|^2, which all rays have in common
    apart = inside * (inside * length - 2 * along)
    kinds = torch.arange(len(COLOURS), device=device)[None, :, None, None]
    firm = (inside > FIRM) & (inside * length.sqrt() > FAR) & (apart.argmin(1, keepdim=True) == kinds)
    # noise gives single pixels of an object another colour: their neighbours outvote them
    votes = functional.avg_pool2d(firm.float(), 3, 1, 1).argmax(1, keepdim=True)
    firm = (firm.any(1, keepdim=True) & (votes == kinds)).float().mean((-2, -1))
    area, colour = firm.topk(SLOTS, dim=1)
    seen = area > LEAST_AREA
    count = (firm > LEAST_AREA).sum(1)

    # again among the colours seen: noise on an object may look like any other colour
    rows = torch.arange(n, device=device)[:, None]
    apart = torch.where(seen[..., None, None], apart[rows, colour], torch.inf)
    mine = apart.argmin(1, keepdim=True) == torch.arange(SLOTS, device=device)[None, :, None, None]
    share = torch.where(mine & seen[..., None, None], share[rows, colour].clamp(-0.5, 1.5), 0)
    ray = rays[rows, colour]

    shape, size = (torch.full_like(colour, UNSTATED) for _ in range(2))
    centre, misfit = images.new_zeros(n, SLOTS, 2), images.new_full((n, SLOTS), -torch.inf)
    for scale in range(1, SLOTS + 1):
        # a colour too many makes the fourth; the three largest are still read
        which = (seen.sum(1) == scale)[:, None] & seen
        if not bool(which.any()):
            continue
        bank = _bank(side, scale, n_shapes, device)
        maps, image = share[which], which.nonzero()[:, 0]
        corner = _middle(maps, SCALES[scale - 1] * RADII[1]).round().long()
        padded = functional.pad(maps, (bank.half,) * 4)
        reach = torch.arange(2 * bank.half + 1, device=device)
        y, x = corner[:, 1, None, None] + reach[:, None], corner[:, 0, None, None] + reach
        patch = padded[torch.arange(len(maps), device=device)[:, None, None], y, x].flatten(1)
        best = (2 * patch @ bank.rows.T - bank.energy).argmax(1)
        shape[which], size[which] = bank.shape[best], bank.size[best]
        centre[which] = (corner + 0.5 + bank.offset[best]) / side
        # take what was read out of the picture
        room = functional.pad(rest, (bank.half,) * 4)
        drawn = bank.rows[best].reshape(len(maps), 1, len(reach), len(reach)) * ray[which][:, :, None, None]
        places = (image[:, None, None, None], torch.arange(3, device=device)[:, None, None], y[:, None], x[:, None])
        room.index_put_(places, -drawn, accumulate=True)
        rest = room[:, :, bank.half : bank.half + side, bank.half : bank.half + side]
        left = room[places].square().sum((1, 2, 3)) - 3 * len(reach) ** 2 * _noise(rest)[image]
        misfit[which] = (left.clamp_min(0) / drawn.square().sum((1, 2, 3))).sqrt()

    residual = rest.square().mean((1, 2, 3)).sqrt()
    over = torch.einsum("nchw,nkc->nkhw", rest, ray) / ray.square().sum(-1)[..., None, None]
    over = (mine & seen[..., None, None] & (over > 0.5)).float()
    # a heap has an inside; the rim that is left of an object of another size has none
    heaps = -functional.max_pool2d(-over, 3, 1, 1)
    count = count + (heaps.mean((-2, -1)) > LEAST_AREA / 4).any(1).long()
    cell = torch.where(seen, cell_of(centre), UNSTATED)
    colour = torch.where(seen, colour, UNSTATED)
    worst = torch.where(seen.any(1), misfit.amax(1), torch.inf)
    return Reading(background, count, shape, colour, size, cell, centre, residual, worst)


def _noise(rest: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, " batch"]:
    """Variance of the noise, were it normal, from the median: what is wrong with an object does not move it."""
    return (rest.abs().flatten(1).median(1).values / 0.6745).square()


def _middle(maps: Float[Tensor, "batch size size"], radius: float) -> Float[Tensor, "batch 2"]:
    """Centroid (x, y), in pixels, of the largest heap of a map: the fullest window, then its centroid twice."""
    side = maps.shape[-1]
    half = math.ceil(radius * side)
    firm = torch.where(maps > FIRM, maps.clamp(0, 1), 0)
    heap = functional.avg_pool2d(firm[:, None], 2 * half + 1, 1, half).flatten(1).argmax(1)
    centre = torch.stack([heap % side, heap // side], 1).to(maps)
    axis = torch.arange(side, device=maps.device).to(maps)
    for _ in range(2):
        near = (axis - centre[..., None]).abs() <= 1.25 * half  # (batch, 2, side): x, then y
        window = firm * near[:, 0, None, :] * near[:, 1, :, None]
        total = window.sum((1, 2)).clamp_min(1e-6)
        centre = torch.stack([(window.sum(1) * axis).sum(1), (window.sum(2) * axis).sum(1)], 1) / total[:, None]
    return centre
