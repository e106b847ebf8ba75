"""Scenes: the grammar's choices are all there, equally often, and their pictures say what was drawn."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from diffusion_core.errors import WorkbenchError
from images.scenes import scene
from images.scenes.scene import Spec, allowed, draw, every, join, realise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tier_1_has_1296_statements_and_every_scene_states_one() -> None:
    spec = every()
    stated = torch.stack([spec.background, *(getattr(spec, k)[:, 0] for k in ("shape", "colour", "size", "cell"))], 1)
    assert len(stated.unique(dim=0)) == len(spec) == 1296
    assert realise(spec, seeded()).spec().same(spec).all()


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_statement_of_a_drawn_scene_survives_another_jitter(tier: int) -> None:
    spec = draw(3000, seeded(tier), tier).spec()
    again = realise(spec, seeded(9), rotation=0.3)
    assert again.spec().same(spec).all()
    assert (again.rotation.abs() <= 0.3).all() and again.rotation.abs().max() > 0.29


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_objects_lie_inside_the_picture_and_differ_in_colour(tier: int) -> None:
    scenes = draw(3000, seeded(), tier)
    assert (scenes.count == tier).all() and scenes.present.all()
    reach = scenes.size[..., None]
    assert (scenes.centre - reach).min() > 0 and (scenes.centre + reach).max() < 1
    ordered = scenes.colour.sort(1).values
    assert (ordered[:, 1:] != ordered[:, :-1]).all()
    if tier == 2:
        apart = (scenes.centre[:, 0] - scenes.centre[:, 1]).abs().amax(1)
        assert (apart > scenes.size.sum(1)).all()


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_choices_are_equally_frequent(tier: int) -> None:
    """Every choice of every slot within 5 standard errors of its share."""
    n = 6000
    spec = draw(n, seeded(3), tier).spec()
    shapes = 4 if tier == 1 else 6
    ranges = {"shape": shapes, "colour": 6, "size": 2, "background": 3}
    ranges |= {"relation": 4} if tier == 2 else {"cell": 9}
    for name, choices in ranges.items():
        values = getattr(spec, name).reshape(n, -1)
        for slot in values.T:
            share = slot.bincount(minlength=choices).double() / n
            assert len(share) == choices
            stderr = (1 / choices * (1 - 1 / choices) / n) ** 0.5
            assert (share - 1 / choices).abs().max() < 5 * stderr, (name, share)


def test_weights_of_backgrounds() -> None:
    background = draw(5000, seeded(), backgrounds=(1.0, 0.0, 3.0)).background
    share = background.bincount(minlength=3) / 5000
    assert share[1] == 0 and abs(float(share[2]) - 0.75) < 5 * (0.75 * 0.25 / 5000) ** 0.5


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_held_out_compositions_are_never_in_training(tier: int) -> None:
    held = set(scene.HELD_OUT)
    assert len(held) == 8 and {shape for shape, _ in held} == set(range(4))
    pairs = {}
    for which in ("train", "held out", "all"):
        drawn = draw(3000, seeded(1), tier, which)
        pairs[which] = set(zip(drawn.shape.flatten().tolist(), drawn.colour.flatten().tolist(), strict=True))
    assert pairs["held out"] == held
    assert pairs["train"] == pairs["all"] - held
    assert len(pairs["all"]) == (24 if tier == 1 else 36) == int(allowed(tier).sum())


def test_labels_name_the_classes() -> None:
    scenes = draw(500, seeded())
    shapes, colours = scenes.shape[:, 0].tolist(), scenes.colour[:, 0].tolist()
    names = [f"{scene.COLOURS[c]} {scene.SHAPES[s]}" for s, c in zip(shapes, colours, strict=True)]
    assert [scene.CLASSES[label] for label in scenes.labels().tolist()] == names
    assert len(set(scene.CLASSES)) == 24
    assert (draw(50, seeded(), 2).labels() == -1).all()


def test_relations_and_cells_by_hand() -> None:
    middle = torch.tensor([0.5, 0.5])
    for name, point in {
        "left of": (0.2, 0.55),
        "right of": (0.8, 0.4),
        "above": (0.5, 0.1),
        "below": (0.6, 0.9),
    }.items():
        assert scene.RELATIONS[scene.relation_of(torch.tensor(point), middle)] == name
    cells = [
        scene.CELLS[scene.cell_of(torch.tensor(xy))] for xy in ((0.27, 0.27), (0.73, 0.27), (0.5, 0.5), (0.5, 0.73))
    ]
    assert cells == ["top left", "top right", "centre", "bottom"]


def test_same_seed_same_scenes_and_rows_are_picked() -> None:
    one, other = draw(20, seeded(4), 2), draw(20, seeded(4), 2)
    assert all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    both = join([draw(5, seeded(), 1), one])
    assert both.shape.shape == (25, 2) and both.count.tolist() == [1] * 5 + [2] * 20
    assert both.take(slice(5, 25)).spec().same(one.spec()).all()
    assert len(draw(0, seeded(), 2)) == 0


def test_mistakes_are_told() -> None:
    with pytest.raises(WorkbenchError, match="tier"):
        draw(1, seeded(), 4)
    spec = every().take(slice(0, 2))
    silent = Spec(**{f.name: getattr(spec, f.name) for f in fields(spec)} | {"size": torch.full((2, 1), -1)})
    with pytest.raises(WorkbenchError, match="silent about size"):
        realise(silent, seeded())
