"""The judge against renders whose scenes are known, damaged renders, and pictures of no scene."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from diffusion_core.errors import WorkbenchError
from images.scenes.grammar import caption, parse
from images.scenes.judge import agreement, brightness, classes, read
from images.scenes.render import pictures
from images.scenes.scene import LEVELS, Scenes, draw, every, join, realise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(images: Tensor) -> Tensor:
    return images + 0.1 * torch.randn(images.shape, generator=seeded(8))


def blurred(images: Tensor) -> Tensor:
    reach = torch.arange(-3.0, 4.0)
    kernel = torch.softmax(-reach.square() / (2 * 0.7**2), 0)
    kernel = (kernel[:, None] * kernel).expand(3, 1, 7, 7)
    return conv2d(pad(images, (3,) * 4, mode="replicate"), kernel, groups=3)


def check_accuracy(images: Tensor, scenes: Scenes, tier: int, least: float) -> None:
    found = agreement(read(images, tier), scenes)
    shares = {name: float(right.float().mean()) for name, right in found.items()}
    assert shares["all"] >= least, shares


@pytest.mark.parametrize("size", [16, 32, 64])
def test_reads_two_thousand_clean_renders_of_tiers_1_and_2(size: int) -> None:
    scenes = join([draw(1000, seeded(1)), draw(1000, seeded(2), 2)])
    check_accuracy(pictures(scenes, size), scenes, 2, 0.995)


@pytest.mark.parametrize("size", [16, 32])
def test_reads_every_statement_of_tier_1(size: int) -> None:
    scenes = realise(every(), seeded(3))
    images = pictures(scenes, size)
    check_accuracy(images, scenes, 1, 0.998)
    assert (classes(read(images, 1)) == scenes.labels()).float().mean() >= 0.998


def test_reads_tier_3_at_32_pixels() -> None:
    scenes = draw(500, seeded(4), 3)
    check_accuracy(pictures(scenes, 32), scenes, 3, 0.98)


@pytest.mark.parametrize(("tier", "size"), [(1, 16), (1, 32), (2, 32)])
def test_is_robust_to_noise_and_blur(tier: int, size: int) -> None:
    scenes = draw(600, seeded(5), tier)
    images = pictures(scenes, size)
    check_accuracy(noisy(images), scenes, tier, 0.98)
    check_accuracy(blurred(images), scenes, tier, 0.98)


def test_centres_are_found_within_a_step_of_the_templates() -> None:
    scenes = draw(300, seeded(6), 1)
    error = read(pictures(scenes, 32)).centre[:, :1] - scenes.centre
    assert error.abs().max() <= 1 / 128


def test_shuffled_captions_score_chance() -> None:
    """As often as another scene of the grammar states the same; within 5 standard errors of 1 in k choices."""
    n = 3000
    scenes = draw(n, seeded(7))
    images, spec = pictures(scenes, 16), scenes.spec()
    wanted = spec.take(torch.randperm(n, generator=seeded(9)))
    found = agreement(read(images, 1), wanted)
    assert (found["all"] == spec.same(wanted)).float().mean() >= 0.995
    for name, choices in {"shape": 4, "colour": 6, "size": 2, "place": 9, "background": 3, "all": 1296}.items():
        stderr = (1 / choices * (1 - 1 / choices) / n) ** 0.5
        assert abs(float(found[name].float().mean()) - 1 / choices) < 5 * stderr, name


def test_only_what_is_stated_is_judged() -> None:
    scenes = draw(100, seeded(1), 2)
    reading = read(pictures(scenes, 32))
    assert agreement(reading, parse([""] * 100))["all"].all()
    # said in the other order, by the opposite relation
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    turned = []
    for text in caption(scenes):
        body, ground = text.split(" on a ")
        name = next(k for k in opposite if f" {k} " in body)
        first, second = body.split(f" {name} ")
        turned.append(f"{second} {opposite[name]} {first} on a {ground}")
    assert agreement(reading, parse(turned))["all"].float().mean() >= 0.99
    wrong = agreement(reading, parse([text.replace("small", "large") for text in turned]))
    has_small = torch.tensor(["small" in text for text in turned])
    assert torch.equal(wrong["size"], ~has_small) and wrong["colour"].all()


def test_a_missing_or_further_object_is_seen() -> None:
    scenes = draw(200, seeded(2), 2)
    images = pictures(replace(scenes, count=torch.ones_like(scenes.count)), 32)
    found = agreement(read(images), scenes)
    assert not found["count"].any() and not found["colour"].any() and not found["place"].any()
    alone = parse([text.split(" on a ")[0] for text in caption(scenes.take(slice(0, 200)))])
    first = replace(alone, count=torch.ones_like(alone.count), relation=torch.full_like(alone.relation, -1))
    first = replace(first, **{k: getattr(alone, k)[:, :1] for k in ("shape", "colour", "cell")}, size=alone.cell[:, :1])
    both = agreement(read(pictures(scenes, 32)), first)
    assert both["colour"].all() and not both["count"].any()


def test_two_objects_of_one_colour_are_two() -> None:
    scenes = draw(100, seeded(3), 2)
    same = replace(scenes, colour=scenes.colour[:, :1].expand(-1, 2), shape=scenes.shape % 3)
    assert (read(pictures(same, 32)).count >= 2).float().mean() > 0.95


@pytest.mark.parametrize("size", [16, 32])
def test_pictures_of_no_scene_have_no_class(size: int) -> None:
    """At least 97 of 100, where the same damage leaves something of the grammar by chance."""
    scenes, others = draw(300, seeded(4)), draw(300, seeded(5))
    images = pictures(scenes, size)
    second = pictures(replace(others, background=scenes.background), size)
    different = (others.labels() != scenes.labels()) | (others.spec().cell != scenes.spec().cell)[:, 0]
    pairs = draw(300, seeded(6), 2)
    strange = {
        "noise": torch.rand(images.shape, generator=seeded(7)),
        "nothing": torch.full_like(images, 0.5),
        "blend of two": ((images + second) / 2)[different],
        "two objects": pictures(pairs, size),
        "a size between": pictures(replace(scenes, size=torch.full_like(scenes.size, 0.195)), size),
        "a star or a ring": pictures(replace(scenes, shape=4 + scenes.shape % 2), size),
        "a paler ground": torch.where(images > 0.99, 0.85, images)[scenes.background == 0],
    }
    for name, x in strange.items():
        assert (classes(read(x, 1)) == -1).float().mean() >= 0.97, name
    slightly = images + 0.03 * torch.randn(images.shape, generator=seeded(8))
    assert (classes(read(slightly, 1)) == scenes.labels()).float().mean() >= 0.99


def test_a_picture_is_read_alike_in_any_batch() -> None:
    scenes = join([draw(6, seeded(1), tier) for tier in (1, 2, 3)])
    images = noisy(pictures(scenes, 32))
    together = read(images)
    for i in (0, 7, 17):
        alone = read(images[i : i + 1])
        for field in fields(alone):
            one, many = getattr(alone, field.name)[0], getattr(together, field.name)[i]
            torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)


def test_brightness_is_that_of_the_background() -> None:
    scenes = draw(200, seeded(), 3)
    level = torch.tensor(LEVELS)[scenes.background]
    torch.testing.assert_close(brightness(pictures(scenes, 16)), level, atol=1e-3, rtol=0)
    torch.testing.assert_close(brightness(pictures(scenes, 16) * 0.8), level * 0.8, atol=1e-3, rtol=0)


def test_mistakes_are_told() -> None:
    with pytest.raises(WorkbenchError, match="tier"):
        read(torch.zeros(1, 3, 16, 16), 4)
    with pytest.raises(WorkbenchError, match="got 0 pictures"):
        read(torch.zeros(0, 3, 16, 16))
