"""The shipped feature networks are what was pinned, see what they should, and can be trained again."""

from __future__ import annotations

import os
import shutil
from functools import lru_cache

import pytest
import torch
from torch.nn import functional

from diffusion_core import checkpoint
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run
from diffusion_core.train import TrainConfig
from images import features
from images.config import TaskConfig
from images.data import sources
from images.features import FeatureNetwork
from images.metrics import frechet_distance, kid, precision_recall

DIGITS = TaskConfig(name="digits", source="digits", size=8, channels=1)
LEAST_ACCURACY = {"digits": 0.97, "mnist": 0.98, "scenes": 0.97}


@lru_cache
def digits(split):
    return sources.load(DIGITS, split)


@pytest.mark.parametrize("task", sorted(features.SHA256))
def test_shipped_networks_are_the_pinned_ones(task):
    found = features.load(task)
    assert found.id == f"{task}-features-v1" and found.sha256 == features.SHA256[task]
    assert found.accuracy >= LEAST_ACCURACY[task]
    assert not any(p.requires_grad for p in found.network.parameters())
    saved = checkpoint.load(features.PRETRAINED / f"{task}-features")
    assert saved.meta["n_test"] >= 500 and saved.meta["data"]
    assert sum(f.stat().st_size for f in saved.path.iterdir()) < 1e6


@pytest.mark.parametrize("task", ["digits", "mnist"])
def test_the_recorded_accuracy_is_that_on_the_test_pictures(task):
    if task not in features.SHA256 or (task == "mnist" and not os.environ.get("WORKBENCH_DATA")):
        pytest.skip(f"{task}: the folder that WORKBENCH_DATA names holds its pictures")
    extractor = features.load(task)
    size = extractor.network.size
    test = sources.load(TaskConfig(name=task, source=task, size=size, channels=1), "test")
    right = extractor.probabilities(test.images()).argmax(1) == test.labels
    # the same float32 sums in another order may turn one near tie in ten thousand
    assert float(right.double().mean()) == pytest.approx(extractor.accuracy, abs=1e-4)


def test_scenes_as_they_are_drawn_now_are_recognised():
    extractor = features.load("scenes")
    test = sources.load(TaskConfig(name="scenes", source="scenes", size=16, channels=3, test=500), "test")
    right = extractor.probabilities(test.images()).argmax(1) == test.labels
    assert float(right.double().mean()) >= LEAST_ACCURACY["scenes"]


def check_ladder(measure) -> None:
    """Real from real is the floor; every worse rung is farther, and noise grows with its level."""
    extractor = features.load("digits")
    generator = torch.Generator().manual_seed(0)
    test, training = digits("test"), digits("train")
    reference = extractor.features(test.images())
    rows = torch.randperm(len(training), generator=generator)[: len(test)]
    x = training.images()[rows]

    def distance(images: torch.Tensor) -> float:
        return measure(extractor.features(images), reference).value

    floor = distance(x)
    blurred = distance(functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1))
    z = torch.randn(x.shape, generator=generator)
    levels = [distance(x + sigma * z) for sigma in (0.2, 0.3, 0.5, 0.8)]
    noise = distance(z)
    without_threes = training.images()[training.labels != 3][: len(test)]
    dropped = distance(without_threes)
    assert floor < blurred / 5.0 and blurred < noise / 3.0
    assert [floor, *levels, noise] == sorted([floor, *levels, noise])
    assert dropped > 3.0 * floor


def test_the_frechet_distance_climbs_the_ladder():
    check_ladder(frechet_distance)


def test_the_kernel_distance_climbs_the_ladder():
    check_ladder(kid)


def test_a_dropped_class_lowers_recall_and_blur_lowers_precision():
    extractor = features.load("digits")
    training, test = digits("train"), digits("test")
    reference = extractor.features(test.images())
    x = training.images()[: len(test)]
    real = precision_recall(extractor.features(x), reference)
    few = training.images()[training.labels < 5][: len(test)]
    half = precision_recall(extractor.features(few), reference)
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    soft = precision_recall(extractor.features(blurred), reference)
    assert half.recall.high < real.recall.low - 0.2 and half.precision.value > real.precision.low - 0.05
    assert soft.precision.high < real.precision.low - 0.2


def test_features_of_an_image_do_not_depend_on_its_batch_and_stop_at_the_pictures_range():
    extractor = features.load("digits")
    x = digits("test").images()[:60]
    whole = extractor.features(x)
    torch.testing.assert_close(extractor.features(x, batch=7), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor.features(3.0 * x.clamp(-1, 1).sign()), extractor.features(x.sign()))
    head = extractor.network.head
    torch.testing.assert_close(extractor.probabilities(x), head(whole).softmax(1))
    assert whole.shape == (60, 64)


def test_a_shift_by_whole_pixels_moves_the_image():
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]])
    moved = features._shifted(x, pixels)
    torch.testing.assert_close(moved[0], x[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[1][:, :, :-1], x[1][:, :, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[2][:, 2:], x[2][:, :-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[2][:, 0], x[2][:, 0], rtol=0, atol=1e-5)


def test_other_images_are_refused():
    extractor = features.load("digits")
    with pytest.raises(WorkbenchError, match=r"got images of \(1, 16, 16\); expected \(1, 8, 8\)"):
        extractor.features(torch.zeros(2, 1, 16, 16))
    with pytest.raises(WorkbenchError, match="not finite"):
        extractor.features(torch.full((2, 1, 8, 8), torch.nan))


def test_altered_weights_and_unknown_tasks_are_refused(tmp_path):
    copy = tmp_path / "digits-features"
    shutil.copytree(features.PRETRAINED / "digits-features", copy)
    assert features.load("digits", tmp_path).sha256 == features.SHA256["digits"]
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(WorkbenchError, match=r"has weights of sha256 \w{64}; expected 5f1c01af"):
        features.load("digits", tmp_path)
    with pytest.raises(WorkbenchError, match="got task birds; expected one of digits"):
        features.load("birds")


def test_a_short_training_learns_and_leaves_a_checkpoint_that_restores(tmp_path):
    quick = TrainConfig(
        steps=60, batch_size=64, learning_rate=3e-3, betas=[0.9, 0.99], warmup_steps=5, checkpoint_every=0, seed=3
    )
    state = torch.get_rng_state()
    path = features.train(DIGITS, Run.create(tmp_path, "features"), quick)
    assert torch.equal(torch.get_rng_state(), state)
    restored = features.restore(checkpoint.load(path).require("images", "digits"))
    assert path.name == "digits-features" and sorted(f.name for f in path.iterdir()) == [
        "config.yaml",
        "meta.json",
        "model.safetensors",
    ]
    # ten classes: chance is 0.1
    assert restored.accuracy > 0.6
    test = digits("test")
    right = restored.probabilities(test.images()).argmax(1) == test.labels
    assert float(right.double().mean()) == pytest.approx(restored.accuracy, abs=2e-3)


def test_impossible_networks_are_refused():
    with pytest.raises(WorkbenchError, match="width=12"):
        FeatureNetwork(1, 8, 10, width=12)
    with pytest.raises(WorkbenchError, match="n_classes=1"):
        FeatureNetwork(1, 8, 1)


def test_the_command_names_the_tasks_it_knows(monkeypatch):
    monkeypatch.setattr("sys.argv", ["features", "task=birds"])
    with pytest.raises(WorkbenchError, match=r"got task=birds; expected task=NAME .* digits, .*mnist"):
        features.main()
