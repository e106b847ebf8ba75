"""Folder: every file is looked at, what is wrong is named with the remedy, and nothing is changed silently."""

import io
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run
from images.config import TaskConfig
from images.data.folder import UnfitError, decode
from images.data.sources import load


def picture(seed: int, height: int = 12, width: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(image: Image.Image, channels: int = 3, form: str = "PNG", **options) -> np.ndarray:
    """The picture as the project reads it, with the channel axis last."""
    return decode(raw(image, form, **options), 12, channels).transpose(1, 2, 0)


def raw(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def fill(root: Path, names: list[str], size: int = 12) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i, size, size).save(root / name, format="PNG")


def task(path: Path | str, **options) -> TaskConfig:
    settings = {"name": "mine", "source": "folder", "size": 8, "channels": 3, "path": str(path)} | options
    return TaskConfig(**settings)


def fails(what: TaskConfig, match: str, split: str = "train") -> str:
    with pytest.raises(WorkbenchError, match=match) as error:
        load(what, split)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def two(tmp_path):
    """Twenty cats and ten dogs."""
    root = tmp_path / "pets"
    fill(root, [f"dog/{i}.png" for i in range(10)] + [f"cat/{i}.png" for i in range(20)])
    return root


def test_classes_are_the_sorted_sub_folders(two):
    train, test = load(task(two), "train"), load(task(two), "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert torch.bincount(train.labels).tolist() == [18, 9] and torch.bincount(test.labels).tolist() == [2, 1]
    assert train.shape == (3, 8, 8) and train.provenance.startswith("folder pets: 27 pictures, train, content sha256 ")
    assert str(two.parent) not in train.provenance


def test_every_picture_is_in_one_split_with_its_own_label(two):
    whole = {}
    for folder in ("cat", "dog"):
        for path in (two / folder).iterdir():
            whole[decode(path.read_bytes(), 8, 3).tobytes()] = folder
    seen = []
    for split in ("train", "test"):
        pictures = load(task(two), split)
        for pixels, label in zip(pictures.pixels, pictures.labels, strict=True):
            key = pixels.numpy().tobytes()
            assert whole[key] == pictures.classes[label]
            seen.append(key)
    assert len(seen) == 30 and set(seen) == set(whole)


def test_same_order_every_time_and_another_seed_another_split(two):
    once, again = load(task(two), "test"), load(task(two), "test")
    assert torch.equal(once.pixels, again.pixels) and once.provenance == again.provenance
    assert load(task(two, seed=1), "test").provenance != once.provenance


def test_counts_of_the_task(two):
    assert len(load(task(two, test=6), "test")) == 6 and len(load(task(two, test=6), "train")) == 24
    assert torch.bincount(load(task(two, train=9), "train").labels).tolist() == [6, 3]
    fails(task(two, train=28), "task.train: got 28; expected at most the 27 pictures")
    fails(task(two, test=30), "got 30 pictures of which 30 are held out; expected some to learn from")


def test_without_labels_the_null_label(two):
    pictures = load(task(two, labels="none"), "train")
    assert pictures.classes == () and pictures.n_classes == 0 and len(pictures) == 27
    assert not pictures.labels.any()
    fails(task(two, labels="names"), "task.labels: got 'names'; expected folders or none")


def test_train_and_test_folders_are_the_splits(tmp_path, caplog):
    fill(tmp_path, [f"train/{c}/{i}.png" for c in "ab" for i in range(3)] + ["test/b/0.png", "val/a/0.png"])
    train, test = load(task(tmp_path), "train"), load(task(tmp_path), "test")
    assert len(train) == 6 and train.classes == test.classes == ("a", "b") and test.labels.tolist() == [1]
    assert "val not read" in caplog.text
    fill(tmp_path, ["test/c/0.png"])
    fails(task(tmp_path), "got classes c; expected only those of train", "test")


def test_folders_that_look_like_splits_are_no_classes(tmp_path):
    fill(tmp_path, ["train/0.png", "val/1.png", "train/2.png"])
    fails(task(tmp_path), "got sub-folders train, val; expected both train and test")
    assert len(load(task(tmp_path, labels="none"), "train")) == 2


def test_pictures_beside_class_folders(two):
    picture(0).save(two / "stray.png")
    fails(task(two), "got 1 pictures outside a class folder, the first stray.png; expected CLASS/PICTURE")
    assert len(load(task(two, labels="none"), "train")) == 28


def test_nothing_to_read(tmp_path, two, caplog):
    fails(task(""), "task.path: got none; expected a folder")
    fails(task(tmp_path / "absent"), "task.path: got nothing at .*absent; expected a folder")
    fails(task(two / "cat/0.png"), "task.path: got a file at .*0.png; expected a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("x")
    fails(task(tmp_path / "empty"), "empty: got no pictures; expected files ending in .png, .jpg")
    assert "1 files with other endings not read" in caplog.text
    (two / "fish").mkdir()
    fails(task(two), "got no picture in fish; expected some in each: fill or remove it")


def test_hidden_files_and_links_back_are_not_read_twice(two):
    (two / "cat/._0.png").write_bytes(b"resource fork")
    (two / ".cache").mkdir()
    picture(0).save(two / ".cache/x.png")
    os.symlink(two, two / "cat/again")
    assert len(load(task(two), "train")) + len(load(task(two), "test")) == 30


def damage(root: Path) -> dict[str, str]:
    """Spoil five files in five ways; name to what the message must say."""
    whole = (root / "cat/0.png").read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    jpeg = raw(picture(5, 64, 64), "JPEG")
    spoiled = {
        "cat/1.png": (b"", "in no known picture format"),
        "cat/2.png": (b"<html>not found</html>", "in no known picture format"),
        "cat/3.png": (whole[:middle], "(?i)truncated"),
        "cat/4.png": (flipped, "(?i)broken|checksum|crc"),
        "cat/5.jpg": (jpeg[: len(jpeg) // 2], "(?i)truncated"),
    }
    for name, (content, _) in spoiled.items():
        (root / name).write_bytes(content)
    return {name: reason for name, (_, reason) in spoiled.items()}


def test_damaged_files_are_counted_and_named(two, caplog):
    reasons = damage(two)
    text = fails(task(two, labels="none", test=1), r"got [45] damaged of 30 files .*set task.skip_damaged=true")
    assert text.count(".png:") + text.count(".jpg:") == 3 and "more, all in the log" in text
    held = {n for n in reasons if n not in caplog.text}
    assert len(held) <= 1
    for record in caplog.records:
        assert record.levelno == logging.ERROR


@pytest.mark.parametrize("name", ["cat/1.png", "cat/2.png", "cat/3.png", "cat/4.png", "cat/5.jpg"])
def test_each_kind_of_damage_has_its_reason(two, name):
    import re

    reasons = damage(two)
    for other in reasons:
        if other != name:
            (two / other).unlink()
    split = "train" if name not in _test_names(two) else "test"
    text = fails(task(two), f"got 1 damaged of .*{re.escape(name)}", split)
    assert re.search(reasons[name], text), text


def _test_names(root: Path) -> set[str]:
    from images.data.folder import held_out

    return set(held_out(task(root), "test").names)


def test_damaged_files_are_skipped_only_when_asked_and_named(two, caplog):
    reasons = damage(two)
    pictures = [load(task(two, skip_damaged=True), split) for split in ("train", "test")]
    assert sum(map(len, pictures)) == 31 - 5
    for name in reasons:
        assert f"left out damaged {name}: " in caplog.text
    assert any("damaged left out" in p.provenance for p in pictures)
    for path in two.rglob("*.*"):
        path.write_bytes(b"gone")
    fails(task(two, skip_damaged=True), "got 28 damaged of 28 files .*mend or remove them")


def test_damaged_files_are_named_in_the_runs_log(two, tmp_path):
    reasons, logger = damage(two), logging.getLogger("workbench")
    before = list(logger.handlers)
    Run(tmp_path).log_to_file()
    try:
        for split in ("train", "test"):
            load(task(two, skip_damaged=True), split)
        assert all(name in (tmp_path / "log.txt").read_text() for name in reasons)
    finally:
        for handler in set(logger.handlers) - set(before):
            logger.removeHandler(handler)
            handler.close()


def test_the_split_does_not_depend_on_damage(two):
    before = _test_names(two)
    (two / "cat/7.png").write_bytes(b"")
    assert _test_names(two) == before


def test_a_picture_that_is_too_small_is_named(two):
    picture(0, 7, 30).save(two / "dog/3.png")
    split = "test" if "dog/3.png" in _test_names(two) else "train"
    fails(
        task(two),
        r"got 1 of \d+ pictures that do not fit: dog/3.png has 30 x 7 pixels; expected at least 8 each way",
        split,
    )
    fails(task(two, skip_damaged=True), "do not fit", split)


def test_crop_at_the_centre_and_area_average():
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, :2] = image[:, 10:] = 255  # outside the central square
    image[:4, 2:6, 0] = 200
    image[4:, 6:10, 1] = np.arange(4) * 40
    small = decode(raw(Image.fromarray(image)), 2, 3)
    assert small[0].tolist() == [[200, 0], [0, 0]] and small[1].tolist() == [[0, 0], [0, 60]]
    # 3 pixels to 2: each new pixel covers one and a half old ones
    bar = Image.fromarray(np.tile(np.array([0, 90, 240], np.uint8), (3, 1)))
    assert decode(raw(bar), 2, 1)[0].tolist() == [[30, 190], [30, 190]]


def test_same_size_is_the_same_bytes():
    image = picture(1)
    np.testing.assert_array_equal(seen(image, 3), np.asarray(image))


def test_harmless_modes_are_expanded():
    image = picture(2)
    expected = np.asarray(image)
    opaque = image.copy()
    opaque.putalpha(255)
    np.testing.assert_array_equal(seen(opaque, 3), expected)
    flat = Image.fromarray(np.repeat(np.repeat(expected[:2, :2], 6, 0), 6, 1))
    palette = flat.convert("P", palette=Image.Palette.ADAPTIVE)
    assert palette.mode == "P"
    np.testing.assert_array_equal(seen(palette, 3), np.asarray(flat))
    grey = image.convert("L")
    np.testing.assert_array_equal(seen(grey, 1)[..., 0], np.asarray(grey))
    np.testing.assert_array_equal(seen(grey, 3), np.repeat(np.asarray(grey)[..., None], 3, 2))
    la = grey.copy()
    la.putalpha(255)
    np.testing.assert_array_equal(seen(la, 1)[..., 0], np.asarray(grey))
    bits = grey.convert("1")
    np.testing.assert_array_equal(seen(bits, 1)[..., 0], np.asarray(bits) * np.uint8(255))
    np.testing.assert_array_equal(seen(image, 1)[..., 0], np.asarray(grey))
    for form in ("BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(seen(image, 3, form), expected)
    np.testing.assert_array_equal(seen(image, 3, "WEBP", lossless=True), expected)


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    image = picture(3)
    turned = seen(image, exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(image), -1))


def unfit() -> dict[str, tuple[bytes, str]]:
    image = picture(4)
    glass = image.copy()
    glass.putalpha(128)
    clear = image.convert("P")
    deep = Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400)
    still = {"save_all": True, "append_images": [picture(5), picture(6)], "duration": 10}
    return {
        "alpha": (raw(glass), "transparent pixels; expected none: flatten it"),
        "clear palette": (raw(clear, transparency=int(np.asarray(clear)[0, 0])), "transparent pixels"),
        "clear colour": (raw(image, transparency=tuple(np.asarray(image)[0, 0].tolist())), "transparent pixels"),
        "16-bit png": (raw(deep), "16 bits per channel; expected 8"),
        "16-bit tiff": (raw(deep, "TIFF"), "16 bits per channel; expected 8"),
        "16-bit colour": (_png16(), "16 bits per channel; expected 8"),
        "float": (raw(Image.fromarray(np.ones((12, 12), np.float32)), "TIFF"), "32 bits per channel; expected 8"),
        "16-bit pgm": (b"P5 12 12 65535\n" + bytes(288), "colour mode I.*; expected 8"),
        "print": (raw(image.convert("CMYK"), "JPEG"), "colour mode CMYK; expected grey or RGB: convert it"),
        "film": (raw(image, "GIF", **still), "3 frames; expected one picture"),
    }


def _png16() -> bytes:
    """A PNG of 12 x 12 pixels with three channels of 16 bits."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)
    rows = (b"\0" + bytes(range(72))) * 12
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", list(unfit()))
def test_what_cannot_be_converted_without_harm_says_what_to_do(kind):
    content, match = unfit()[kind]
    with pytest.raises(UnfitError, match=match):
        decode(content, 8, 3)


def test_ten_thousand_small_files_take_seconds(tmp_path):
    content = raw(picture(0, 32, 32))
    for i in range(2_000):
        (tmp_path / f"{i:05d}.png").write_bytes(content)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        assert len(load(task(tmp_path, labels="none", size=24, test=1), "train")) == 1999
        seconds.append(time.perf_counter() - begin)
    # a fifth of 10,000 in a fifth of 10 s; measured 0.5 ms a file on two busy cores
    assert min(seconds) < 2.0
