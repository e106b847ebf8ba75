"""Leaves: every YAML file with a ``_target_`` fits its constructor, and one misspelt key does not."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_core.configure import bind, build, table, target
from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Cosine, Schedule

REPOSITORY = Path(__file__).parents[2]


def leaves(value: Any, name: str) -> dict[str, dict[str, Any]]:
    """All ``_target_`` leaves inside a YAML value, by where they are."""
    if not isinstance(value, dict):
        return {}
    if "_target_" in value:
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in leaves(inner, f"{name}:{key}").items()}


FILES = sorted(f for package in ("diffusion_core", "policy") for f in (REPOSITORY / package).glob("conf/**/*.yaml"))
LEAVES = {k: v for f in FILES for k, v in leaves(yaml.safe_load(f.read_text()), str(f.relative_to(REPOSITORY))).items()}
every_leaf = pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES.keys())


def group(name: str) -> dict[str, dict[str, Any]]:
    folder = REPOSITORY / "diffusion_core" / "conf" / name
    return {f.stem: yaml.safe_load(f.read_text()) for f in sorted(folder.glob("*.yaml"))}


def test_every_shared_group_has_leaves():
    assert {name.split("/")[2] for name in LEAVES if name.startswith("diffusion_core")} == {
        "schedule",
        "sampler",
        "grid",
        "loss",
    }


@every_leaf
def test_every_leaf_binds_to_its_constructor(leaf):
    bound = bind(leaf)
    assert bound.func is target(leaf) and bound.keywords == {k: v for k, v in leaf.items() if k != "_target_"}
    for name, value in bound.keywords.items():
        assert name in inspect.signature(bound.func).parameters and value is not None


@every_leaf
def test_a_misspelt_key_is_refused_and_the_right_ones_are_listed(leaf):
    misspelt = leaf | {"widht": 1}
    for call in (bind, build):
        with pytest.raises(WorkbenchError) as caught:
            call(misspelt)
        message = str(caught.value)
        assert "\n" not in message and "widht" in message and leaf["_target_"] in message
        assert str(list(inspect.signature(target(leaf)).parameters)) in message


@pytest.mark.parametrize("leaf", group("schedule").values(), ids=group("schedule").keys())
def test_every_schedule_leaf_builds_a_schedule(leaf):
    assert isinstance(build(leaf), Schedule)


PAIRS = list(itertools.product(group("sampler"), group("grid")))


@pytest.mark.parametrize(("sampler", "grid"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_sampler_takes_every_grid(sampler, grid):
    found = table(group("sampler")[sampler], group("grid")[grid], 10, Cosine())
    assert int(found.ends_step.sum()) == 10
    # between the ends of steps churn goes up
    assert bool((found.reached[found.ends_step].diff() < 0.0).all()) and found.times[0] > 0.9


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ({}, "got _target_=None"),
        ({"_target_": "numpy.ones"}, "nothing else is ever imported"),
        ({"_target_": "diffusion_core.nn.nowhere.Cosine"}, "cannot be imported"),
        ({"_target_": "diffusion_core.schedule.Cosin"}, "cannot be imported"),
        ({"_target_": "diffusion_core.schedule"}, "nothing else is ever imported"),
        ({"_target_": "diffusion_core.schedule.formula.torch"}, "no function or class"),
        ({"_target_": "diffusion_core.schedule.definition.abstractmethod"}, "of abc"),
        ({"_target_": "diffusion_core.checkpoint.save_file"}, "nothing else is ever imported"),
        ({"_target_": "policy.data.__main__.main"}, "nothing else is ever imported"),
    ],
)
def test_a_target_that_is_not_ours_is_refused(leaf, words):
    for call in (bind, build, target):
        with pytest.raises(WorkbenchError) as caught:
            call(leaf)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_keyword_is_named():
    with pytest.raises(WorkbenchError, match="missing a required argument: 'horizon'"):
        build({"_target_": "diffusion_core.nn.mlp.ResidualMLP", "dim": 2, "cond_dim": 3})
