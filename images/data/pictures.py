"""Pictures: bytes at rest, numbers in [-1, 1] when a network sees them, PNG files when a person does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.run import make_folder

Bytes = UInt8[Tensor, "batch channels height width"]
Images = Float[Tensor, "batch channels height width"]


def to_float(pixels: Bytes, levels: int = 256) -> Float32[Tensor, "batch channels height width"]:
    """Map bytes to the grid of `levels` even steps in [-1, 1].

        k = round(pixels (levels - 1) / 255),    x = 2 k / (levels - 1) - 1

    so that the steps of a source with few grey levels are exactly even, as a discretised likelihood assumes, although
    its bytes are rounded.
    """
    steps = levels - 1
    k = pixels.float() if levels == 256 else torch.round(pixels.float() * steps / 255)
    return k * (2 / steps) - 1


def to_bytes(images: Images, levels: int = 256) -> Bytes:
    """Map numbers to the nearest of `levels` even steps in [-1, 1], then to bytes: the inverse of `to_float`.

        k = clip(round((x + 1) (levels - 1) / 2), 0, levels - 1),    pixels = round(255 k / (levels - 1))

    Raises:
        WorkbenchError: a number is not finite; a byte could not show it.
    """
    if not torch.isfinite(images).all():
        bad = int((~torch.isfinite(images)).sum())
        raise WorkbenchError(f"images: got {bad} values NaN or infinite; expected finite ones: the sampling diverged.")
    steps = levels - 1
    k = torch.round((images.float() + 1) * (steps / 2)).clamp(0, steps)
    return torch.round(k * (255 / steps)).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Labelled pictures in memory; a `diffusion_core.train.Dataset`.

    Args:
        pixels: bytes, one channel or red, green, blue.
        labels: 0 ... n_classes - 1; all n_classes, the null label, when there are no classes.
        classes: their names in the order of the labels; empty when unlabelled.
        name: of the source.
        provenance: one line for config, log and report: source, count, what proves it.
        levels: how many even steps of brightness the source has; 256 unless it was scanned with fewer.
    """

    pixels: Bytes
    labels: Int64[Tensor, " labels"]
    classes: tuple[str, ...]
    name: str
    provenance: str
    levels: int = 256

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise WorkbenchError(
                f"{self.name}: got {len(self.pixels)} pictures and {len(self.labels)} labels; expected as many."
            )
        low, high = (0, self.n_classes - 1) if self.classes else (0, 0)
        if len(self.labels) and not (low <= int(self.labels.min()) and int(self.labels.max()) <= high):
            found = f"{int(self.labels.min())} to {int(self.labels.max())}"
            raise WorkbenchError(f"{self.name}: got labels {found}; expected {low} to {high} for {self.classes}.")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def n_classes(self) -> int:
        """How many classes there are; also the null label."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one picture."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def batch(self, rows: Int64[Tensor, " rows"]) -> dict[str, Tensor]:
        """Return {"image": float32 in [-1, 1], "label": int64} of these rows, on the device of the pixels."""
        rows = rows.to(self.pixels.device)
        return {"image": to_float(self.pixels[rows], self.levels), "label": self.labels[rows]}

    def images(self) -> Float32[Tensor, "batch channels height width"]:
        """Return all of them as numbers in [-1, 1]."""
        return to_float(self.pixels, self.levels)

    def subset(self, rows: Int64[Tensor, " rows"]) -> Pictures:
        """Return these rows, in this order."""
        rows = rows.to(self.pixels.device)
        provenance = f"{self.provenance}; {len(rows)} of these {len(self)}"
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], provenance=provenance)

    def to(self, device: torch.device | str) -> Pictures:
        """Return the same pictures on another device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def save_grid(images: Images | Bytes, path: Path | str, columns: int, gap: int = 1) -> None:
    """Write one PNG of all images, row by row, `columns` beside each other.

    Args:
        images: floats in [-1, 1] (clipped) or bytes.
        path: of the PNG; its folder is made.
        columns: images per row, at least 1.
        gap: white pixels between neighbours.

    Raises:
        WorkbenchError: no images, no columns, not 1 or 3 channels, or not finite.
    """
    from PIL import Image

    pixels = _for_file(images)
    if len(pixels) == 0 or columns < 1:
        raise WorkbenchError(f"grid: got {len(pixels)} images in {columns} columns; expected at least one of each.")
    n, height, width, channels = pixels.shape
    rows, columns = -(-n // columns), min(columns, n)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    path = Path(path)
    make_folder(path.parent)
    Image.fromarray(sheet if channels == 3 else sheet[..., 0]).save(path, format="PNG")


def save_images(images: Images | Bytes, folder: Path | str, names: Iterable[str] | None = None) -> list[Path]:
    """Write every image as a PNG of its own: `00000.png`, `00001.png`, ... or `<name>.png`.

    Args:
        images: floats in [-1, 1] (clipped) or bytes.
        folder: is made; files of the same name are replaced.
        names: one per image, without ending.

    Returns:
        The files, in the order of the images.

    Raises:
        WorkbenchError: not 1 or 3 channels, or not finite.
    """
    from PIL import Image

    folder = make_folder(Path(folder))
    pixels = _for_file(images)
    stems = [f"{i:05d}" for i in range(len(pixels))] if names is None else list(names)
    paths = [folder / f"{stem}.png" for stem in stems]
    for picture, path in zip(pixels, paths, strict=True):
        Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).save(path, format="PNG")
    return paths


def _for_file(images: Tensor) -> UInt8[np.ndarray, "batch height width channels"]:
    if images.shape[1] not in (1, 3):
        raise WorkbenchError(f"PNG: got {images.shape[1]} channels; expected 1 or 3: decode latents before saving.")
    pixels = images if images.dtype == torch.uint8 else to_bytes(images)
    return pixels.cpu().permute(0, 2, 3, 1).contiguous().numpy()
