"""Pictures: bytes and numbers are inverse, batches are what the training loop needs, PNGs hold what they show."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.errors import WorkbenchError
from images.data.pictures import Pictures, save_grid, save_images, to_bytes, to_float


def small(n: int = 6, channels: int = 3, size: int = 4, classes: tuple[str, ...] = ("a", "b")) -> Pictures:
    pixels = torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % len(classes) if classes else torch.zeros(n, dtype=torch.int64)
    return Pictures(pixels.to(torch.uint8), labels, classes, "small", "small: made here")


@pytest.mark.parametrize("levels", [2, 16, 17, 255, 256])
def test_bytes_and_numbers_are_inverse(levels):
    k = torch.arange(levels)
    pixels = torch.round(k.double() * 255 / (levels - 1)).to(torch.uint8).reshape(-1, 1, 1, 1)
    images = to_float(pixels, levels)
    torch.testing.assert_close(images.flatten().double(), 2 * k.double() / (levels - 1) - 1, rtol=0, atol=2e-7)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(to_bytes(images, levels), pixels)
    half_a_step = 0.499 * 2 / (levels - 1)
    assert torch.equal(to_bytes(images + half_a_step, levels), pixels)
    assert torch.equal(to_bytes(images - half_a_step, levels), pixels)


def test_numbers_outside_are_clipped_and_no_byte_is_made_of_nan():
    assert to_bytes(torch.tensor([-7.0, 1.01]).reshape(2, 1, 1, 1)).flatten().tolist() == [0, 255]
    with pytest.raises(WorkbenchError, match="got 1 values NaN or infinite"):
        to_bytes(torch.tensor([0.0, float("nan")]).reshape(2, 1, 1, 1))


def test_batch_is_the_rows_asked_for():
    pictures = small()
    batch = pictures.batch(torch.tensor([4, 1]))
    assert sorted(batch) == ["image", "label"] and batch["label"].tolist() == [0, 1]
    assert torch.equal(batch["image"], pictures.images()[[4, 1]])
    assert torch.equal(to_bytes(batch["image"]), pictures.pixels[[4, 1]])
    assert pictures.shape == (3, 4, 4) and pictures.n_classes == 2 and len(pictures) == 6


def test_subset_says_so():
    part = small().subset(torch.tensor([5, 0]))
    assert torch.equal(part.pixels, small().pixels[[5, 0]]) and part.labels.tolist() == [1, 0]
    assert part.provenance == "small: made here; 2 of these 6"


def test_labels_that_do_not_fit_are_refused():
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(WorkbenchError, match="got labels 0 to 2; expected 0 to 1"):
        Pictures(pixels, torch.tensor([0, 2]), ("a", "b"), "x", "x")
    with pytest.raises(WorkbenchError, match="got labels 0 to 1; expected 0 to 0"):
        Pictures(pixels, torch.tensor([0, 1]), (), "x", "x")
    with pytest.raises(WorkbenchError, match="2 pictures and 3 labels"):
        Pictures(pixels, torch.tensor([0, 1, 1]), ("a", "b"), "x", "x")
    assert Pictures(pixels, torch.zeros(2, dtype=torch.int64), (), "x", "x").n_classes == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_picture_in_its_place(tmp_path, channels):
    pictures = small(5, channels)
    save_grid(pictures.images(), tmp_path / "new/grid.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "new/grid.png")).reshape(9, 14, channels)
    for i in range(5):
        top, left = i // 3 * 5, i % 3 * 5
        cell = sheet[top : top + 4, left : left + 4]
        np.testing.assert_array_equal(cell, pictures.pixels[i].permute(1, 2, 0).numpy())
    assert (sheet[4] == 255).all() and (sheet[:, 4] == 255).all() and (sheet[5:, 10:] == 255).all()


def test_files_hold_the_bytes(tmp_path):
    pictures = small(3)
    paths = save_images(pictures.pixels, tmp_path / "out")
    assert [p.name for p in paths] == ["00000.png", "00001.png", "00002.png"]
    for path, pixels in zip(paths, pictures.pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels.permute(1, 2, 0).numpy())
    assert [p.name for p in save_images(pictures.images()[:1], tmp_path / "out", ["cat"])] == ["cat.png"]


def test_what_no_png_can_show_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="got 4 channels; expected 1 or 3"):
        save_grid(torch.zeros(1, 4, 2, 2), tmp_path / "a.png", 1)
    with pytest.raises(WorkbenchError, match="0 images in 2 columns"):
        save_grid(torch.zeros(0, 1, 2, 2), tmp_path / "a.png", 2)
