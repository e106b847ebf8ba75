"""Sources: digits round trip, published sets are the published ones, and nothing unproven is ever used."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from images.config import TaskConfig
from images.data import published, sources
from images.data.pictures import to_bytes
from images.data.sources import load

STAGED = Path(os.environ.get("WORKBENCH_DATA", "/absent")) / "images"


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (STAGED / name).exists(), reason=f"WORKBENCH_DATA does not hold images/{name}")


def task(source: str, size: int, channels: int, **options) -> TaskConfig:
    return TaskConfig(**({"name": source, "source": source, "size": size, "channels": channels} | options))


DIGITS = task("digits", 8, 1)


def test_digits_are_scikit_learns_to_the_level():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = {(image.tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True)}
    seen = set()
    for split, n in (("train", 1297), ("test", 500)):
        pictures = load(DIGITS, split)
        assert len(pictures) == n and pictures.levels == 17 and pictures.classes == tuple("0123456789")
        levels = np.rint(pictures.pixels[:, 0].numpy() * 16.0 / 255)
        mine = {(image.tobytes(), int(label)) for image, label in zip(levels, pictures.labels, strict=True)}
        assert not mine & seen
        seen |= mine
        # 17 even steps, exactly: what bits per dimension over 17 levels needs
        torch.testing.assert_close(pictures.images()[:, 0], torch.from_numpy(levels / 8 - 1).float(), rtol=0, atol=0)
        assert torch.equal(to_bytes(pictures.images(), 17), pictures.pixels)
        share = torch.bincount(pictures.labels, minlength=10) / n
        np.testing.assert_allclose(share.numpy(), np.bincount(bunch.target) / 1797, atol=1.5 / n)
    assert seen == whole


def test_split_of_the_digits_is_fixed():
    pixels = load(DIGITS, "test").pixels.numpy()
    # pinned: a later split would test trained checkpoints on what they learned
    assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith("f738aeb970435b23")
    assert load(task("digits", 8, 1, seed=3), "test").pixels.numpy().tobytes() == pixels.tobytes()


def test_inverted_digits_are_classes_of_their_own():
    plain, both = load(DIGITS, "test"), load(task("digits_inverted", 8, 1), "test")
    assert len(both) == 2 * len(plain) and both.n_classes == 20 and both.classes[10] == "0 inverted"
    for sign, kept in ((1, both.labels < 10), (-1, both.labels >= 10)):
        assert torch.equal(both.images()[kept] * sign, plain.images())
        assert torch.equal(both.labels[kept] % 10, plain.labels)


def test_fewer_pictures_of_a_source():
    few = load(task("digits", 8, 1, train=100, seed=1), "train")
    assert torch.bincount(few.labels).tolist() == pytest.approx([10] * 10, abs=1)
    assert few.provenance.endswith("; 100 of these 1297")
    assert not torch.equal(few.pixels, load(task("digits", 8, 1, train=100, seed=2), "train").pixels)
    with pytest.raises(WorkbenchError, match=r"task.test: got 501; expected at most the 500 pictures"):
        load(task("digits", 8, 1, test=501), "test")


def test_what_a_source_has_not():
    with pytest.raises(WorkbenchError, match=r"task.source: got 'digit'; expected one of digits, .*, folder"):
        load(task("digit", 8, 1), "train")
    with pytest.raises(WorkbenchError, match=r"task.size: got 16 for digits; expected one of \(8,\)"):
        load(task("digits", 16, 1), "train")
    with pytest.raises(WorkbenchError, match=r"task.channels: got 3 for digits; expected 1"):
        load(task("digits", 8, 3), "train")
    with pytest.raises(WorkbenchError, match=r"task.size: got 64 for cifar10; expected one of \(32, 16, 8\)"):
        load(task("cifar10", 64, 3), "train")


def test_other_digits_are_refused(monkeypatch):
    monkeypatch.setattr(sources, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(WorkbenchError, match=r"digits: got content sha256 \w{64} from scikit-learn; expected 000"):
        load(DIGITS, "train")


def test_scenes_are_the_same_every_time_and_the_splits_are_disjoint():
    what = task("scenes", 16, 3, train=600, test=200, seed=5)
    train, test = load(what, "train"), load(what, "test")
    assert load(what, "train") is train  # kept in memory
    sources._drawn.cache_clear()
    assert torch.equal(load(what, "train").pixels, train.pixels)
    assert load(what, "train").provenance == train.provenance
    assert train.shape == (3, 16, 16) and len(train) == 600 and len(test) == 200
    seen = [p.numpy().tobytes() for p in (*train.pixels, *test.pixels)]
    assert len(set(seen)) == 800
    other = load(task("scenes", 16, 3, train=600, test=200, seed=6), "train")
    assert not torch.equal(other.pixels, train.pixels)


def test_labels_of_scenes_are_colour_and_shape():
    pictures = load(task("scenes", 32, 3, train=480), "train")
    assert pictures.n_classes == 24 and pictures.classes[0] == "red circle" and pictures.classes[9] == "yellow square"
    count = torch.bincount(pictures.labels, minlength=24)
    assert (count - 20).abs().max() < 4.5 * (480 * (1 / 24) * (23 / 24)) ** 0.5  # 4.5 standard errors
    from images.scenes.scene import RGB

    for colour, rgb in enumerate(RGB):
        mine = pictures.pixels[pictures.labels % 6 == colour].double() / 255
        flat = (mine - torch.tensor(rgb, dtype=torch.float64)[:, None, None]).abs().amax(1) < 0.003
        # the smallest shape fills some pixels with its very colour
        assert (flat.flatten(1).sum(1) >= 4).all()
    two = load(task("scenes", 32, 3, test=8, tier=2), "test")
    assert two.classes == () and not two.labels.any()


def test_scenes_that_cannot_be_drawn():
    with pytest.raises(WorkbenchError, match=r"task.train: got 0 for scenes; expected how many to draw"):
        load(task("scenes", 32, 3, test=8), "train")
    with pytest.raises(WorkbenchError, match=r"task.size: got 24 for scenes; expected one of"):
        load(task("scenes", 24, 3, train=8), "train")
    with pytest.raises(WorkbenchError, match=r"tier: got 4; expected 1, 2 or 3"):
        load(task("scenes", 32, 3, train=8, tier=4), "train")


# ---------------------------------------------------------------------------- published sets, where they are staged


@needs("mnist.npz")
def test_staged_mnist_is_the_published_one():
    train, test = load(task("mnist", 28, 1), "train"), load(task("mnist", 28, 1), "test")
    for split, pictures, n in (("train", train, 60_000), ("test", test, 10_000)):
        images, labels = pictures.pixels.numpy(), pictures.labels.numpy().astype(np.uint8)
        headers = struct.pack(">4i", 2051, n, 28, 28), struct.pack(">2i", 2049, n)
        digests = list(published.MNIST_FILES[split].values())
        assert hashlib.sha256(headers[0] + images.tobytes()).hexdigest() == digests[0]
        assert hashlib.sha256(headers[1] + labels.tobytes()).hexdigest() == digests[1]
    assert torch.bincount(train.labels)[:3].tolist() == [5923, 6742, 5958]
    assert torch.bincount(test.labels)[:3].tolist() == [980, 1135, 1032]
    assert train.pixels.double().mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert train.pixels.numpy().std() / 255 == pytest.approx(0.3081, abs=5e-5)


@needs("mnist.npz")
def test_sizes_of_mnist():
    native = load(task("mnist", 28, 1), "test").pixels.numpy()
    padded = load(task("mnist", 32, 1), "test").pixels.numpy()
    np.testing.assert_array_equal(padded[:, :, 2:30, 2:30], native)
    assert padded.sum(dtype=np.int64) == native.sum(dtype=np.int64)
    for size in (16, 14, 8, 7):
        small = load(task("mnist", size, 1), "test").pixels.numpy()
        whole = padded if 32 % size == 0 else native
        # the mean of all is kept, but for halves that round up by 1/2 in one of the factor^2 remainders
        factor = whole.shape[-1] // size
        shift = small.mean() - whole.mean()
        assert small.shape == (10_000, 1, size, size) and 0 <= shift < 0.5 / factor**2 + 0.01
    corner = padded[7, 0, 12:14, 10:12].astype(int)
    assert load(task("mnist", 16, 1), "test").pixels[7, 0, 6, 5] == (corner.sum() + 2) // 4


@needs("cifar10_jpeg.npz")
def test_staged_cifar10_says_that_it_is_jpeg():
    pictures = load(task("cifar10", 32, 3), "test")
    assert pictures.name == "cifar10-jpeg" and pictures.provenance.startswith("cifar10-jpeg: 10000 of CIFAR-10-JPEG's")
    assert torch.bincount(pictures.labels).tolist() == [1000] * 10
    assert pictures.classes[:3] == ("airplane", "automobile", "bird") and pictures.classes[9] == "truck"
    small = load(task("cifar10", 8, 3, test=50), "test")
    assert small.shape == (3, 8, 8) and torch.bincount(small.labels).tolist() == [5] * 10
    # ships and airplanes stand before blue, frogs do not
    blue = [float(pictures.pixels[pictures.labels == c, 2].double().mean()) for c in (0, 8, 6)]
    assert min(blue[:2]) > blue[2] + 20


@pytest.mark.slow
@needs("cifar10_jpeg.npz")
def test_means_of_staged_cifar10():
    pictures = load(task("cifar10", 32, 3), "train")
    assert torch.bincount(pictures.labels).tolist() == [5000] * 10
    mean = pictures.pixels.double().mean((0, 2, 3)) / 255
    # published: .4914 .4822 .4465; JPEG moves the first two by 1e-4
    np.testing.assert_allclose(mean.numpy(), [0.4914, 0.4822, 0.4465], atol=2e-4)


# ------------------------------------------------------------------------------- and where they must be downloaded


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no WORKBENCH_DATA, and no network beyond a server of this test."""
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("MNIST_URLS", "CIFAR10_URLS"):
        monkeypatch.setattr(published, name, ("http://127.0.0.1:9/",))
    return tmp_path / "cache/diffusion-workbench/images"


@pytest.fixture
def site(tmp_path, monkeypatch, cache):
    """A folder served over HTTP as the second home of both sets; the first does not answer."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name in ("MNIST_URLS", "CIFAR10_URLS"):
        monkeypatch.setattr(published, name, ("http://127.0.0.1:9/", f"http://127.0.0.1:{server.server_port}/"))
    yield folder
    server.shutdown()
    server.server_close()


def publish_mnist(site: Path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Serve twelve digits in MNIST's format, and make their content the expected one."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 28, 28), dtype=np.uint8), np.arange(12, dtype=np.uint8) % 10
    contents = struct.pack(">4i", 2051, 12, 28, 28) + images.tobytes(), struct.pack(">2i", 2049, 12) + labels.tobytes()
    names = list(published.MNIST_FILES["test"])
    for name, content in zip(names, contents, strict=True):
        (site / f"{name}.gz").write_bytes(gzip.compress(content))
    digests = [hashlib.sha256(c).hexdigest() for c in contents]
    monkeypatch.setitem(published.MNIST_FILES, "test", dict(zip(names, digests, strict=True)))
    return images, labels


def test_mnist_is_downloaded_kept_and_used_again(site, cache, monkeypatch):
    images, labels = publish_mnist(site, monkeypatch)
    for _ in range(2):
        pictures = load(task("mnist", 28, 1), "test")
        np.testing.assert_array_equal(pictures.pixels[:, 0].numpy(), images)
        np.testing.assert_array_equal(pictures.labels.numpy(), labels)
        for path in site.iterdir():
            path.unlink()
    assert sorted(p.name for p in (cache / "mnist").iterdir()) == sorted(
        f"{name}.gz" for name in published.MNIST_FILES["test"]
    )


@pytest.mark.parametrize("how", ["changed", "cut short", "not gzip"])
def test_spoiled_download_of_mnist_is_put_aside(site, cache, monkeypatch, how):
    publish_mnist(site, monkeypatch)
    path = site / "t10k-images-idx3-ubyte.gz"
    good = path.read_bytes()
    spoiled = {
        "changed": gzip.compress(gzip.decompress(good)[:-1] + b"\0"),
        "cut short": good[: len(good) // 2],
        "not gzip": b"<html>moved</html>",
    }
    path.write_bytes(spoiled[how])
    with pytest.raises(WorkbenchError, match=r"expected content of sha256 \w{64}.* put aside as .*\.bad-") as error:
        load(task("mnist", 28, 1), "test")
    assert "\n" not in str(error.value)
    left = list((cache / "mnist").iterdir())
    assert len(left) == 1 and left[0].name.startswith("t10k-images-idx3-ubyte.gz.bad-")
    path.write_bytes(good)
    assert len(load(task("mnist", 28, 1), "test")) == 12


def publish_cifar10(site: Path, monkeypatch) -> np.ndarray:
    """Serve six archives of two records each, and make the archive the expected one."""
    records = np.random.default_rng(0).integers(0, 256, (12, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(12) % 10
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        names = [n for split in ("train", "test") for n in published.CIFAR10_MEMBERS[split]]
        for i, name in enumerate(names):
            content = records[2 * i : 2 * i + 2].tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    name, _ = published.CIFAR10_ARCHIVE
    (site / name).write_bytes(stream.getvalue())
    monkeypatch.setattr(published, "CIFAR10_ARCHIVE", (name, hashlib.sha256(stream.getvalue()).hexdigest()))
    return records


def test_cifar10_is_downloaded_and_is_not_called_jpeg(site, cache, monkeypatch):
    records = publish_cifar10(site, monkeypatch)
    train, test = load(task("cifar10", 32, 3), "train"), load(task("cifar10", 32, 3), "test")
    assert train.name == "cifar10" and "cifar-10-binary.tar.gz, sha256 " in train.provenance
    assert train.labels.tolist() == records[:10, 0].tolist() and test.labels.tolist() == records[10:, 0].tolist()
    # red, green, blue, each row by row
    assert test.pixels[1, 2, 3, 5] == records[11, 1 + 2 * 1024 + 3 * 32 + 5]
    assert (cache / "cifar-10-binary.tar.gz").exists()


def test_original_cifar10_is_preferred_where_it_is_staged(site, cache, monkeypatch, tmp_path):
    publish_cifar10(site, monkeypatch)
    staged = tmp_path / "staged/images"
    staged.mkdir(parents=True)
    (site / "cifar-10-binary.tar.gz").rename(staged / "cifar-10-binary.tar.gz")
    (staged / "cifar10_jpeg.npz").write_bytes(b"not looked at")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "staged"))
    assert load(task("cifar10", 32, 3), "test").name == "cifar10"
    (staged / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(WorkbenchError, match=r"cifar10_jpeg.npz: got sha256 \w{64}; expected \w{64}: the file is left"):
        load(task("cifar10", 32, 3), "test")


def test_absent_sets_are_never_replaced(cache, monkeypatch, tmp_path):
    with pytest.raises(
        WorkbenchError, match=r"WORKBENCH_DATA is not set.*the download failed: ConnectionError"
    ) as error:
        load(task("mnist", 28, 1), "train")
    assert str(cache / "mnist/train-images-idx3-ubyte.gz") in str(error.value)
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in str(error.value)
    with pytest.raises(WorkbenchError, match="not asked to download"):
        published.cifar10("train", download=False)
    (tmp_path / "staged/images").mkdir(parents=True)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "staged"))
    with pytest.raises(WorkbenchError, match=f"CIFAR-10: got none in {tmp_path}/staged/images nor at"):
        load(task("cifar10", 32, 3), "train")
    (tmp_path / "staged/images/mnist.npz").write_bytes(b"spoiled")
    with pytest.raises(WorkbenchError, match=r"mnist.npz: got sha256 \w{64}; expected 7a9e9afe"):
        load(task("mnist", 28, 1), "train")
    assert (tmp_path / "staged/images/mnist.npz").exists() and not list(cache.rglob("*.gz*"))
