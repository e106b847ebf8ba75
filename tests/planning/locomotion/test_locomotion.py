"""Planning for locomotion: data, prior, planner, and the commands."""

import copy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from diffusion_core import checkpoint, configure
from diffusion_core.errors import WorkbenchError
from diffusion_core.normalize import MinMax
from envs.cheetah import OBS, Cheetahs
from planning.locomotion import data, evaluate, train
from planning.locomotion.config import MotionConfig, MotionDataConfig, MotionEvaluateConfig, MotionPlannerConfig
from planning.locomotion.planner import MotionPlanner
from planning.locomotion.prior import STEP, MotionPrior, assemble, normalizers, sampling_tables

SMALL = ["network.width=64", "network.depth=2", "steps=4"]


def config(*overrides: str) -> MotionConfig:
    return configure.composed(MotionConfig, "planning.conf", "locomotion", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def episodes() -> data.Episodes:
    return data.generate(MotionDataConfig(episodes=8), steps=150)


@pytest.fixture(scope="module")
def prior(episodes: data.Episodes) -> MotionPrior:
    torch.manual_seed(0)
    motions = data.Motions(episodes, 8, 100, 0.98)
    found = assemble(config(), *normalizers(motions)).requires_grad_(False).eval()
    # a network begins with an outlet of zeros, and then says the same to everything
    torch.nn.init.normal_(found.denoiser.network.outlet.weight, std=0.1)
    return found


def test_returns_to_go_are_the_formula() -> None:
    rewards, ends = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), np.array([0, 0, 0, 1, 0, 0, 1], bool)
    values, known = data.returns_to_go(rewards, ends, 3, 0.5)
    assert known.tolist() == [True, True, False, False, True, False, False]
    wanted = [(1 + 0.5 * 2 + 0.25 * 3) / 1.75, (2 + 0.5 * 3 + 0.25 * 4) / 1.75, (5 + 0.5 * 6 + 0.25 * 7) / 1.75]
    np.testing.assert_allclose(values[known], wanted, rtol=1e-6)


def test_windows_stay_in_their_episode(episodes: data.Episodes) -> None:
    motions = data.Motions(episodes, 8, 100, 0.98)
    assert len(motions) == 8 * 51
    batch = motions.batch(torch.arange(len(motions)))
    first = motions.starts.numpy()
    np.testing.assert_array_equal(batch["motion"][:, 7, :OBS].numpy(), episodes.observations[first + 7])
    assert (first % 150 <= 50).all()


def test_episodes_are_the_same_and_survive_a_file(episodes: data.Episodes, tmp_path: Path) -> None:
    again = data.generate(MotionDataConfig(episodes=8), steps=150)
    assert again.content_sha256 == episodes.content_sha256
    assert episodes.returns[7] > episodes.returns[1]
    data.save(tmp_path / "motions.hdf5", episodes)
    read = data.load(MotionDataConfig(source=str(tmp_path / "motions.hdf5")))
    assert read.content_sha256 == episodes.content_sha256
    assert read.provenance == episodes.provenance
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = np.zeros((5, 3))
    with pytest.raises(WorkbenchError, match="those of a half cheetah"):
        data.of_file(tmp_path / "other.hdf5")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        data.of_file(tmp_path / "absent.hdf5")


def test_the_first_observation_is_kept(prior: MotionPrior) -> None:
    obs = Cheetahs(3).reset(seed=0)
    for changes in ({}, {"guide": 5.0}, {"target": 0.9, "guidance_scale": 2.0}, {"target": 0.5, "guide": 1.0}):
        asked = MotionPlannerConfig(candidates=4, **changes)
        planner = MotionPlanner(prior, *sampling_tables(config(), prior), asked, 0)
        x = planner.candidates(obs)
        assert x.shape == (3, 4, 8, STEP)
        found = prior.normalizer.unnormalize(x)[:, :, 0, :OBS].double().numpy()
        np.testing.assert_allclose(found, np.repeat(obs[:, None], 4, 1), atol=1e-4)


def test_guidance_raises_the_value_and_selection_takes_the_most(prior: MotionPrior) -> None:
    obs = Cheetahs(4).reset(seed=0)

    def values(**changes: float) -> torch.Tensor:
        asked = MotionPlannerConfig(candidates=8, **changes)
        x = MotionPlanner(prior, *sampling_tables(config(), prior), asked, 0).candidates(obs)
        return prior.value(x.flatten(0, 1)).unflatten(0, (4, 8))

    plain, guided = values(), values(guide=200.0)
    assert float((guided - plain).mean()) > 0.0
    planner = MotionPlanner(prior, *sampling_tables(config(), prior), MotionPlannerConfig(candidates=8), 0)
    taken = prior.value(planner.planned(obs))
    torch.testing.assert_close(taken, plain.max(1).values, rtol=1e-4, atol=1e-5)


class Echo(torch.nn.Module):
    """Says that what it is shown is clean, so that a sample ends where it began."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return x


def test_a_warm_start_begins_at_the_last_plan_moved_on(prior: MotionPrior) -> None:
    obs = Cheetahs(2).reset(seed=0)
    still = copy.deepcopy(prior)
    still.denoiser.network = Echo()
    tables = sampling_tables(config("planner.warm=2", "planner.warm_start=0.02"), prior)
    planner = MotionPlanner(still, *tables, MotionPlannerConfig(candidates=1, warm=2, warm_start=0.02), 0)
    planner.act(obs)
    assert planner.plan is not None
    before = planner.plan.clone()
    planner.act(obs)
    moved = torch.cat([before[:, 1:], before[:, -1:]], 1)
    # noise of t = 0.02 on numbers of order 1, and the first observation is the new one
    assert float((planner.plan - moved)[:, 1:].abs().mean()) < 0.05
    assert float((before[:, 2:] - before[:, 1:-1]).abs().mean()) > 0.2


def test_only_every_few_actions_are_planned(prior: MotionPrior) -> None:
    obs = Cheetahs(1).reset(seed=0)
    planner = MotionPlanner(prior, *sampling_tables(config(), prior), MotionPlannerConfig(candidates=2, every=3), 0)
    actions = [planner.act(obs) for _ in range(4)]
    plan = planner.plan
    planner.act(obs)
    assert planner.plan is plan
    assert not np.array_equal(actions[0], actions[1])


def test_the_prior_learns_and_is_evaluated(episodes: data.Episodes, tmp_path: Path) -> None:
    data.save(tmp_path / "motions.hdf5", episodes)
    asked = config(
        f"data.source={tmp_path / 'motions.hdf5'}", "train.steps=60", "train.batch_size=64", "train.log_every=20",
        "train.warmup_steps=5", "train.checkpoint_every=0", "planner.candidates=2", "n=1", "steps=2", "film=false",
        f"runs={tmp_path / 'runs'}",
    )  # fmt: skip
    home = train.run(asked)
    losses = [
        float(line.split('"loss": ')[1].split(",")[0]) for line in (home / "metrics.jsonl").open() if "loss" in line
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert (home / "evaluation" / "evaluation.json").exists()
    saved = checkpoint.find(home)
    with pytest.raises(WorkbenchError):
        saved.require("planning")
    request = MotionEvaluateConfig(
        checkpoint=str(home), n=1, film=False, guide=1.0, candidates=1, out=str(tmp_path / "e")
    )
    found = evaluate.run(request)
    assert found["planner"]["guide"] == 1.0
    assert np.isfinite(found["metrics"]["return"].value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("planner.select=best", "expected one of first, critic"),
        ("planner.warm_start=1.5", r"expected a time in \(0, 1\)"),
        ("planner.every=9", "of a plan of 8"),
        ("told=2", "expected a chance"),
        ("data.discount=0", "data.discount"),
    ],
)
def test_bad_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        config(override)


def test_a_return_needs_a_prior_that_was_told_some(prior: MotionPrior) -> None:
    never = assemble(config("told=0"), MinMax.empty(STEP), MinMax.empty(1))
    with pytest.raises(WorkbenchError, match="never told a return"):
        MotionPlanner(never, *sampling_tables(config(), never), MotionPlannerConfig(target=0.5), 0)
