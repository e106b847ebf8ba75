"""A stream of transitions: rewards counted by hand, what is refused, and its digest."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from planning.data.transitions import Transitions, transitions


def stream(xy: list[list[float]], goals: list[list[float]], timeouts: list[bool]) -> Transitions:
    n = len(xy)
    observations = np.concatenate([np.array(xy), np.zeros((n, 2))], 1)
    arrays = {"observations": observations, "actions": np.zeros((n, 2)), "goals": goals, "timeouts": timeouts}
    return transitions({name: np.asarray(values) for name, values in arrays.items()}, "by hand")


def test_a_reward_is_that_of_the_state_after_the_step():
    # one stream along x, then a jump: what comes after the third step is not recorded
    xy = [[1.0, 1.0], [1.04, 1.0], [1.08, 1.0], [3.0, 3.0], [3.0, 3.04]]
    own = [[1.54, 1.0], [1.54, 1.0], [3.0, 3.0], [3.0, 3.54], [3.0, 3.54]]
    made = stream(xy, own, [False, True, True, False, True])
    # the first step ends 0.5 m away though it begins 0.54 m away; the third must not be paid for the jump
    assert made.rewards().tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert made.rewards(np.array([3.0, 3.0])).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    # as D4RL labels them: by the state before
    before = np.linalg.norm(made.observations[:, :2] - made.goals, axis=1) <= 0.5
    assert before.tolist() == [False, True, False, False, True]


def test_a_goal_that_changes_without_a_jump_pays_for_the_step_towards_the_old_one():
    xy = [[1.0, 1.0], [1.04, 1.0], [1.08, 1.0]]
    made = stream(xy, [[1.54, 1.0], [1.54, 1.0], [9.0, 1.0]], [True, False, True])
    assert made.rewards().tolist() == [1.0, 1.0, 0.0]


def test_statistics_of_a_known_stream():
    n = 400
    sign = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    arrays = {
        "observations": np.tile([0.0, 0.0, 3.0, 4.0], (n, 1)),
        "actions": np.stack([sign, 0.5 * sign], 1),
        "goals": np.zeros((n, 2)),
        "timeouts": np.arange(n) % 100 == 99,
    }
    found = transitions(arrays, "").statistics()
    assert found["speed"] == 5.0 and found["saturated"] == 0.5 and found["size"] == 0.75
    assert found["steps of a goal"] == 100.0
    for lag, sign in ((1, -1.0), (5, -1.0), (10, 1.0)):
        assert abs(found[f"autocorrelation {lag}"] - sign) < 1e-12


def test_the_digest_is_of_the_content_alone():
    xy = [[1.0, 1.0], [1.04, 1.0]]
    made = stream(xy, xy, [False, True])
    assert made.content_sha256 == dataclasses.replace(made, provenance="other words").content_sha256
    for name in ("observations", "actions", "goals", "timeouts"):
        values = getattr(made, name).copy()
        values.reshape(-1)[0] = 1 - values.reshape(-1)[0] if values.dtype == bool else np.nextafter(values.flat[0], 9.0)
        assert dataclasses.replace(made, **{name: values}).content_sha256 != made.content_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": np.zeros((3, 27))}, r"expected \(3, 4\)"),
        ({"actions": np.zeros((2, 2))}, r"actions: got shape \(2, 2\)"),
        ({"goals": np.full((3, 2), np.nan)}, "goals: got a value that is not finite at step 0"),
        ({"timeouts": np.zeros(0, bool)}, "at least 1 step"),
    ],
)
def test_arrays_that_are_no_stream_are_refused(change, message):
    arrays = {"observations": np.zeros((3, 4)), "actions": np.zeros((3, 2)), "goals": np.zeros((3, 2))}
    arrays["timeouts"] = np.array([False, False, True])
    transitions(arrays, "")
    with pytest.raises(WorkbenchError, match=message):
        transitions(arrays | change, "")
