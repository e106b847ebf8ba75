"""The doctor: a sound set passes, and every harm is found by the line that names it."""

import json
import sys

import numpy as np
import pytest

from policy.data import __main__ as cli
from policy.data import doctor
from policy.data.replay import ReplayBuffer
from tests.policy.data.files import expert, pusht


def robomimic_buffer(largest: float, kwargs: dict) -> ReplayBuffer:
    args = json.dumps({"env_name": "Lift", "env_type": 1, "env_kwargs": kwargs})
    part = expert().subset(range(20))
    action = part.arrays["action"] / np.abs(part.arrays["action"]).max() * largest
    return ReplayBuffer(
        part.arrays | {"action": action}, part.episode_ends, attributes={"robomimic": {"data": {"env_args": args}}}
    )


def harmed(key: str, change) -> ReplayBuffer:
    part = expert().subset(range(20))
    values = part.arrays[key].copy()
    change(values)
    return ReplayBuffer(part.arrays | {key: values}, part.episode_ends)


def found(buffer: ReplayBuffer) -> list[str]:
    return [line.text for line in doctor.examine(buffer) if line.bad]


def spoil(values: np.ndarray) -> None:
    values[5, 0] = np.nan


def clip(values: np.ndarray) -> None:
    np.clip(values[:, 0], None, np.quantile(values[:, 0], 0.8), out=values[:, 0])


def times(steps: int, change) -> ReplayBuffer:
    part = expert().subset([0])
    stamps = (np.arange(part.n_steps) / 10).astype(np.float32)
    change(stamps)
    return ReplayBuffer(part.arrays | {"timestamp": stamps}, part.episode_ends)


def black(values: np.ndarray) -> ReplayBuffer:
    values[7] = 0
    return ReplayBuffer({"action": expert().arrays["action"][: len(values)], "img": values}, np.array([len(values)]))


def waiting() -> ReplayBuffer:
    part = expert().episode(0)
    return ReplayBuffer.from_episodes([{k: np.concatenate([v, np.repeat(v[-1:], 40, 0)]) for k, v in part.items()}])


def with_masks() -> ReplayBuffer:
    masks = {"train": {"demos": ["demo_0", "demo_1"]}, "valid": {"demos": ["demo_1"]}}
    return ReplayBuffer(expert().arrays, expert().episode_ends, attributes={"robomimic": {"mask": masks}})


def test_the_shipped_demonstrations_are_sound():
    assert found(expert()) == []


def test_controllers_with_absolute_goals_are_not_limited():
    for kwargs in ({"controller_configs": {"control_delta": False}}, {"a": [{"right": {"input_type": "absolute"}}]}):
        assert found(robomimic_buffer(2.0, kwargs)) == []
    assert found(robomimic_buffer(1.0, {})) == []


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: harmed("state", spoil), "state: 1 values are NaN or infinite (first: step 5, episode 0)"),
        (lambda: harmed("state", lambda v: v[:, 1].fill(3.0)), "state: dimensions 1 constant"),
        (lambda: harmed("action", lambda v: v.fill(0.0)), "action: every dimension constant"),
        (lambda: harmed("action", clip), "its extreme, in 20% of the steps: clipped or saturated"),
        (lambda: harmed("state", lambda v: v[9].fill(1e5)), "state: outliers: the range of dimensions 0, 1, 2, 3, 4"),
        (lambda: harmed("state", lambda v: v.__imul__(1e-5)), "scales: "),
        (lambda: robomimic_buffer(1.5, {"controller_configs": {"control_delta": True}}), "action: outside [-1, 1] in "),
        (lambda: expert().subset([*range(20), 3]), "1 episodes are copies of others (first: 20 of 3)"),
        (
            lambda: ReplayBuffer.from_episodes(
                [expert().episode(0), {k: v[:9] for k, v in expert().episode(1).items()}]
            ),
            "1 episodes of fewer than 16 steps (first: 1, 9 steps)",
        ),
        (waiting, "idle: neither action nor observation changes in "),
        (lambda: times(0, lambda t: t[5:].__isub__(0.3)), "timestamp: does not rise after 1 steps (first: step 4)"),
        (lambda: times(0, lambda t: t[5:].__iadd__(0.3)), "timestamp: 1 steps are not 0.1 s long (first: step 4)"),
        (with_masks, "filter keys train and valid share 1 demos (first: demo_1)"),
        (lambda: black(pusht().arrays["img"].copy()), "img: 1 images are of one colour (first: step 7)"),
        (lambda: ReplayBuffer({"state": expert().arrays["state"]}, expert().episode_ends), "action: not there"),
    ],
)
def test_harms(make, text):
    lines = found(make())
    assert any(text in line for line in lines), lines
    assert len(lines) <= 2


def test_exit_status(tmp_path, capsys):
    expert().subset([0, 1]).save(tmp_path / "good.zarr")
    assert cli.main(["doctor", str(tmp_path / "good.zarr")]) == 0
    assert capsys.readouterr().out.endswith("sound\n")
    expert().subset([0, 1, 0]).save(tmp_path / "bad.hdf5")
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", str(tmp_path / "bad.hdf5")])
    out = capsys.readouterr().out
    assert left.value.code == 1 and "! 1 episodes are copies" in out and out.endswith("1 findings\n")
    assert cli.main(["doctor", str(tmp_path / "absent.zarr")]) == 2


def test_what_is_installed_and_what_is_broken(tmp_path, monkeypatch):
    lines = {line.text.split()[0]: line for line in doctor.installation()}
    assert lines["torch"].text.split()[1] == sys.modules["torch"].__version__ and not lines["torch"].bad
    package = tmp_path / "brokenrobot"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('needs a display\\nmore')")
    about = tmp_path / "brokenrobot-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: brokenrobot\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "OPTIONAL", {"brokenrobot": "brokenrobot", "absent-robot": "absent_robot"})
    last = {line.text.split()[0]: line for line in doctor.installation()}
    assert last["brokenrobot"].text.endswith("1.2, but import brokenrobot fails: RuntimeError: needs a display")
    assert last["brokenrobot"].bad and not last["absent-robot"].bad
