"""The closed-form push against pymunk, the ways against geometry, and the expert against the environment."""

from __future__ import annotations

import numpy as np
import pytest

from envs.pusht import GOAL, OUTLINE, RADIUS, PushT, coverage, mirror_state, mirror_xy, place, rotation
from envs.pusht_expert import Expert, ExpertStyle, plan
from envs.pusht_generate import Episode, Noise, Recipe, demonstrate, generate
from envs.pusht_push import CENTROID, CLEARANCE, GYRATION, SLACK, clearance, compose, library, misfit, push
from envs.pusht_travel import blocked, roadmap, route, shorten

FIELDS = ("state", "action", "keypoint", "n_contacts", "coverage")


def test_closed_form_push_is_pymunks() -> None:
    rng = np.random.default_rng(0)
    lib, env = library(), PushT(obs="state", render_mode=None)
    length = 60.0
    errors = []
    for k in rng.choice(len(lib.start), 40):
        pose = np.array([*(256 + rng.normal(size=2) * 20), rng.uniform(0, 6)])
        turn = rotation(pose[2])
        start, direction = pose[:2] + turn @ lib.start[k], turn @ lib.direction[k]
        env.reset(options={"state": np.concatenate([start, pose])})
        for t in range(30):
            env.step(start + min(8.0 * (t + 1), length) * direction)
        told = push(pose[None], start[None], direction[None], np.array([length]))[0, 0]
        errors.append([*np.abs(told[:2] - env.state[2:4]), np.abs(np.angle(np.exp(1j * (told[2] - env.state[4]))))])
        from_library = compose(pose, lib.motion[k, int(np.searchsorted(lib.lengths, length))])
        np.testing.assert_allclose(from_library, told, atol=0.5)
    px, rad = np.max(np.array(errors)[:, :2]), np.max(np.array(errors)[:, 2])
    assert px < 1.0 and rad < 0.015, f"closed form is {px:.2f} px, {rad:.4f} rad off after pushing {length} px"


def test_misfit_is_the_root_mean_square_distance_over_the_area() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [rng.uniform([-60, 0], [60, 30], (40000, 2)), rng.uniform([-15, 30], [15, 120], (30000, 2))]
    )
    np.testing.assert_allclose(points.mean(0), CENTROID, atol=0.5)
    np.testing.assert_allclose(np.sqrt(((points - CENTROID) ** 2).sum(1).mean()), GYRATION, rtol=0.005)
    pose = GOAL + np.array([12.0, -7.0, 0.6])
    distance = np.linalg.norm(place(points, pose) - place(points, GOAL), axis=1)
    assert misfit(pose) == pytest.approx(np.sqrt((distance**2).mean()), rel=0.01)


def test_library_is_mirror_symmetric() -> None:
    lib = library()
    flipped = lib.start * [-1, 1]
    twin = np.linalg.norm(flipped[:, None] - lib.start, axis=-1) + np.linalg.norm(
        (lib.direction * [-1, 1])[:, None] - lib.direction, axis=-1
    )
    assert twin.min(1).max() < 1e-9
    np.testing.assert_allclose(lib.motion[twin.argmin(1)] * [-1, 1, -1], lib.motion, atol=1e-6)


def test_ways_keep_clear_and_are_shortest() -> None:
    allowed = np.ones(len(roadmap().corner), bool)
    for goal in library().dock[::7]:
        finger = np.array([150.0, -90.0])
        way = np.concatenate([finger[None], route(finger, goal, allowed)])
        assert not blocked(way[:-1], way[1:], RADIUS + CLEARANCE - SLACK - 0.5).any()
        np.testing.assert_allclose(way[-1], goal)
    graph = roadmap()
    triangle = graph.docks[:, :, None] + graph.docks[None]
    assert (triangle.min(1) >= graph.docks - 1e-6).all()
    np.testing.assert_allclose(shorten(graph.docks), graph.docks)


def test_clearance_of_known_points() -> None:
    gap, near = clearance(np.array([[0.0, -10.0], [70.0, 40.0], [25.0, 60.0]]))
    np.testing.assert_allclose(gap, [10.0, np.hypot(10, 10), 10.0])
    np.testing.assert_allclose(near, [[0, 0], [60, 30], [15, 60]])
    assert (clearance(OUTLINE)[0] == 0).all()


def test_plan_depends_on_the_state_alone_and_commutes_with_the_mirror() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        state = np.array([60.0, 80.0, *rng.uniform(200, 300, 2), rng.uniform(0, 2 * np.pi)])
        here, again, there = (plan(s, ExpertStyle()) for s in (state, state, mirror_state(state)))
        np.testing.assert_array_equal(here.start, again.start)
        np.testing.assert_allclose(mirror_xy(here.start), there.start, atol=1e-6)


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return list(generate(range(300_000, 300_008), recipe=Recipe(), failures=True))


def test_expert_solves_published_seeds(episodes: list[Episode]) -> None:
    assert [e.seed for e in episodes if e.solved] == list(range(300_000, 300_008))
    assert np.median([len(e.state) for e in episodes]) < 140


def test_expert_frees_a_finger_that_starts_inside_the_block() -> None:
    # Published start 231189 puts the finger's centre into the T's stem, beside a wall.
    episode = demonstrate(231_189)
    assert episode is not None and episode.solved


def test_recorded_actions_reproduce_the_recorded_states(episodes: list[Episode]) -> None:
    for episode in episodes[:3]:
        env = PushT(obs="state", render_mode=None)
        observed, info = env.reset(seed=episode.seed)
        for t, action in enumerate(episode.action):
            np.testing.assert_allclose(observed, episode.state[t], atol=0.05)
            np.testing.assert_allclose(coverage(info["state"][2:]), episode.coverage[t], atol=0.01)
            observed, _, _, _, info = env.step(action)


def test_demonstrations_end_at_rest_beyond_the_threshold(episodes: list[Episode]) -> None:
    for episode in episodes:
        assert episode.coverage[-1] > 0.955
        assert np.abs(np.diff(episode.state[-3:, :2], axis=0)).max() < 1.0


def test_noise_disturbs_what_is_done_not_what_is_recorded() -> None:
    recipe = Recipe(starts="near_goal", noise=Noise(rate=0.05))
    episode = demonstrate(300_001, recipe)
    assert episode is not None and episode.solved
    expert = Expert(recipe.style)
    wanted = np.array([expert.act(state.astype(float)) for state in episode.state[:20]])
    np.testing.assert_allclose(wanted, episode.action[:20], atol=0.5)


def test_generate_is_deterministic_and_independent_of_jobs() -> None:
    recipe = Recipe(starts="near_goal", noise=Noise(rate=0.03))
    seeds = [7, 3, 5]
    alone = list(generate(seeds, 1, recipe, failures=True))
    shared = list(generate(seeds, 2, recipe, failures=True))
    assert [e.seed for e in alone] == [e.seed for e in shared] == seeds
    for a, b in zip(alone, shared, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_generate_refuses_no_jobs() -> None:
    with pytest.raises(ValueError, match="n_jobs: got 0"):
        next(generate([1], 0))
