"""Push-T against the human data, shapely, gym-pusht and its own symmetry."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import shapely.geometry as sg
from gym_pusht.envs.pusht import PushTEnv
from gymnasium.utils.env_checker import check_env

from envs.pusht import (
    GOAL,
    RECTANGLES,
    PushT,
    coverage,
    keypoints,
    mirror_keypoints,
    mirror_state,
    mirror_xy,
    place,
)

HUMAN = Path(os.environ.get("WORKBENCH_DATA", "absent")) / "policy/pusht_cchi_v7_replay_lowdim.zarr.zip"


def random_states(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(60, 450, (n, 4)), rng.uniform(0, 2 * np.pi, n)])


@pytest.fixture(scope="module")
def human() -> dict[str, np.ndarray]:
    if not HUMAN.exists():
        pytest.skip(f"the human Push-T data is not at {HUMAN}; set WORKBENCH_DATA to the folder that holds policy/")
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(zarr.storage.ZipStore(HUMAN, mode="r"), mode="r")
    names = ("data/state", "data/keypoint", "data/n_contacts", "meta/episode_ends")
    return {name.split("/")[1]: np.asarray(root[name][:]) for name in names}


def test_published_resets_are_the_206_human_first_states(human: dict[str, np.ndarray]) -> None:
    starts = np.concatenate([[0], human["episode_ends"][:-1]])
    env = PushT(obs="state", render_mode=None)
    observed = np.array([env.reset(seed=seed)[0] for seed in range(len(starts))])
    np.testing.assert_array_equal(observed, human["state"][starts])


def test_keypoints_are_the_human_ones(human: dict[str, np.ndarray]) -> None:
    error = np.abs(keypoints(human["state"]).reshape(-1, 9, 2) - human["keypoint"]).max((1, 2))
    # While the finger presses, the recorded keypoints are off their own recorded state, by up to 2 px at starts where
    # finger and block overlap; so only what is untouched can be exact. Its tail are blocks pressed against a wall.
    untouched = error[human["n_contacts"][:, 0] == 0]
    assert np.quantile(untouched, 0.99) < 1e-4
    assert np.quantile(error, 0.9) < 1e-2


def test_coverage_equals_shapely() -> None:
    rng = np.random.default_rng(0)

    def tee(pose: np.ndarray) -> sg.MultiPolygon:
        boxes = [np.array([[a, b], [c, b], [c, d], [a, d]]) for a, b, c, d in RECTANGLES]
        return sg.MultiPolygon([sg.Polygon(place(box, pose)) for box in boxes])

    special = GOAL + np.array([[0, 0, 0], [10, 0, 0], [0, 0, np.pi / 2], [0, 0, np.pi], [10, 10, np.pi], [300, 0, 1]])
    poses = np.concatenate([GOAL + rng.normal(size=(200, 3)) * [40, 40, 1], special])
    expected = [tee(pose).intersection(tee(GOAL)).area / tee(GOAL).area for pose in poses]
    np.testing.assert_allclose(coverage(poses), expected, atol=1e-12)


def test_physics_is_gym_pushts() -> None:
    ours, theirs = PushT(obs="state", resets="gym", render_mode=None), PushTEnv(obs_type="state")
    ours.reset(seed=4)
    theirs.reset(options={"reset_to_state": [0.0] * 5})
    theirs.reset(seed=4)
    for t in range(60):
        target = ours.state[2:4] + 70 * np.array([np.cos(t / 9), np.sin(t / 7)])
        _, reward, _, _, info = ours.step(target)
        observed, their_reward, _, _, their_info = theirs.step(target)
        np.testing.assert_array_equal(info["state"], observed)
        assert info["coverage"] == pytest.approx(their_info["coverage"], abs=1e-12)
        assert reward == pytest.approx(their_reward, abs=1e-12)


def test_reset_to_an_observed_state_observes_it() -> None:
    env = PushT(obs="state", render_mode=None)
    for state in random_states(20):
        observed, info = env.reset(options={"state": state})
        np.testing.assert_allclose(info["state"], state, atol=1e-10)
        np.testing.assert_array_equal(observed, state.astype(np.float32))


def test_rollouts_commute_with_the_mirror() -> None:
    rng = np.random.default_rng(1)
    here, there = PushT(obs="state", render_mode=None), PushT(obs="state", render_mode=None)
    for _ in range(5):
        # Around the middle, since the walls themselves are 1 px off their mirror image.
        start = np.array([120.0, 150.0, *rng.uniform(220, 290, 2), rng.uniform(0, 2 * np.pi)])
        here.reset(options={"state": start})
        there.reset(options={"state": mirror_state(start)})
        for t in range(25):
            target = start[:2] + 0.04 * t * (start[2:4] + 30 - start[:2])
            here.step(target)
            there.step(mirror_xy(target))
        assert np.abs(here.state[2:4] - start[2:4]).max() > 5, "the block was never pushed: the test tests nothing"
        off = mirror_state(here.state) - there.state
        assert np.abs(np.angle(np.exp(1j * off[4]))) < 1e-9
        np.testing.assert_allclose(off[:4], 0.0, atol=1e-7)


def test_mirror_is_an_involution_that_keeps_coverage() -> None:
    states = random_states(50)
    np.testing.assert_allclose(mirror_state(mirror_state(states)), states, atol=1e-9)
    np.testing.assert_allclose(coverage(mirror_state(states)[:, 2:]), coverage(states[:, 2:]), atol=1e-12)
    flat = keypoints(states)
    np.testing.assert_allclose(mirror_keypoints(flat), keypoints(mirror_state(states)), atol=1e-9)


@pytest.mark.parametrize("obs", ["state", "keypoints", "image"])
def test_passes_gymnasiums_checker(obs: str) -> None:
    check_env(PushT(obs=obs), skip_render_check=False)  # type: ignore[arg-type]


def test_observations_tell_the_state() -> None:
    state = random_states(1)[0]
    flat, _ = PushT(obs="keypoints").reset(options={"state": state})
    np.testing.assert_allclose(flat, np.concatenate([keypoints(state), state[:2]]), rtol=1e-6)
    seen, _ = PushT(obs="image").reset(options={"state": state})
    row, column = (state[1::-1] * 96 / 512).astype(int)
    blue = np.array([65, 105, 225])
    assert np.abs(seen["image"][row, column].astype(int) - blue).max() < 60, "no blue finger where the agent is"


@pytest.mark.parametrize("action", [[np.nan, 1.0], [1.0], [[1.0, 2.0]], [np.inf, 0.0]])
def test_refuses_bad_actions(action: list[float]) -> None:
    env = PushT()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected 2 finite numbers"):
        env.step(np.array(action))


def test_refuses_bad_options_and_steps_before_reset() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        PushT().step(np.zeros(2))
    with pytest.raises(ValueError, match="expected 5 finite"):
        PushT().reset(options={"state": np.zeros(4)})
    with pytest.raises(ValueError, match="expected only 'state'"):
        PushT().reset(options={"sate": np.zeros(5)})
    # Under the test run's type checker the same mistake is a TypeError.
    with pytest.raises((ValueError, TypeError), match="obs"):
        PushT(obs="pixels")  # type: ignore[arg-type]


def test_truncates_and_ends() -> None:
    env = PushT(max_steps=3, render_mode=None)
    env.reset(seed=1)
    ends = [env.step(np.array([256.0, 256.0]))[2:4] for _ in range(3)]
    assert [truncated for _, truncated in ends] == [False, False, True]
    env.reset(options={"state": np.array([100.0, 100.0, *GOAL])})
    _, reward, terminated, _, info = env.step(np.array([100.0, 100.0]))
    assert terminated and info["is_success"] and reward == 1.0 and info["coverage"] == pytest.approx(1.0)
