"""Planning with blocks: data, energies, prior, planner, tasks."""

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_core import checkpoint, configure
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run
from envs.stacking import BLOCKS, SIDE, STATE, on, tower
from planning.stacking import data, evaluate, train
from planning.stacking.config import BlocksConfig, BlocksPlannerConfig, MovesConfig
from planning.stacking.energies import At, Avoid, Either, Goes, OnTop, block
from planning.stacking.planner import BlocksPlanner, faults, refined
from planning.stacking.prior import MovePrior, assemble, sampling_table
from planning.stacking.tasks import TASKS, Task

pytestmark = pytest.mark.skipif(
    find_spec("gymnasium_robotics") is None, reason="the arm's model: pip install 'diffusion-workbench[arm]'"
)


def config(*overrides: str) -> BlocksConfig:
    small = ["network.width=64", "network.depth=2", "steps=4", "horizon=24"]
    return configure.composed(BlocksConfig, "planning.conf", "stacking", [*small, *overrides])


@pytest.fixture(scope="module")
def moves() -> data.Moves:
    return data.generate(MovesConfig(episodes=4))


@pytest.fixture(scope="module")
def prior() -> MovePrior:
    torch.manual_seed(0)
    found = assemble(config()).requires_grad_(False).eval()
    # a network begins with an outlet of zeros, and then says the same to everything
    torch.nn.init.normal_(found.denoiser.network.outlet.weight, std=0.05)
    return found


def test_moves_are_the_same_for_a_seed_and_come_off(moves: data.Moves) -> None:
    again = data.generate(MovesConfig(episodes=4))
    np.testing.assert_array_equal(moves.states, again.states)
    assert len(moves.states) >= 0.8 * moves.tried
    ways = np.linalg.norm(np.diff(moves.states[:, [0, -1], 4:].reshape(-1, 2, BLOCKS, 3), axis=1), axis=-1)[:, 0]
    # one block goes, the others stay
    assert (np.sort(ways, 1)[:, -1] > 0.03).all() and (np.sort(ways, 1)[:, -2] < 0.015).all()


def test_renamed_and_mirrored_moves_are_moves(moves: data.Moves) -> None:
    windows = data.Windows(moves, 24)
    assert len(windows) == 48 * len(moves.states)
    x = windows.batch(torch.arange(len(windows)))
    n = len(moves.states)
    torch.testing.assert_close(x[:n], windows.states)
    a, b = x[0], x[24 * n]
    torch.testing.assert_close(a[:, 1], -b[:, 1])
    torch.testing.assert_close(a[:, [0, 2, 3]], b[:, [0, 2, 3]])
    every = x[::n][:24, 0, 4:].unflatten(-1, (BLOCKS, 3))
    assert len({tuple(one.flatten().tolist()) for one in every}) == 24
    torch.testing.assert_close(every.sum(1), every.sum(1)[:1].expand(24, 3))


@pytest.mark.parametrize(
    "cost", [OnTop(0, 2), At(1, (0.5, 0.1, 0.02)), Either((OnTop(0, 1), OnTop(2, 1))), Avoid((0.5, 0.0), 0.1), Goes(2)]
)
def test_gradients_are_the_costs_own(cost: object) -> None:
    torch.manual_seed(1)
    x = (0.5 + 0.05 * torch.randn(2, 6, STATE, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(cost, (x,), eps=1e-6, atol=1e-4)


def test_costs_are_least_where_they_should_be() -> None:
    x = torch.zeros(1, 4, STATE)
    x[0, -1, 4:7] = torch.tensor([0.5, 0.1, 0.06])
    x[0, -1, 7:10] = torch.tensor([0.5, 0.1, 0.02])
    assert float(OnTop(0, 1)(x)) == pytest.approx(0.0, abs=1e-9)
    assert float(Goes(0)(x)) == 0.0 < float(Goes(3)(x)) == pytest.approx(8.0, rel=1e-3)
    assert float(At(0, (0.5, 0.1, 0.06))(x)) == pytest.approx(0.0, abs=1e-9)
    assert float(OnTop(1, 0)(x)) > 5.0
    assert float(Either((OnTop(0, 1), OnTop(1, 0)))(x)) == pytest.approx(np.log(2.0), abs=1e-3)
    with pytest.raises(WorkbenchError, match="say what would do"):
        Either(())
    assert float(Avoid((1.0, 1.0), 0.5)(x)) == 0.0 < float(Avoid((0.0, 0.0), 0.1)(x))
    with pytest.raises(WorkbenchError, match="different ones of 0 to 3"):
        OnTop(1, 1)


def test_a_refined_move_closes_at_the_block_and_opens_where_it_ends(moves: data.Moves) -> None:
    move = data.Windows(moves, 48).states[0].double().numpy()
    blocks = move[:, 4:].reshape(48, BLOCKS, 3)
    moved = int(np.linalg.norm(blocks[-1] - blocks[0], axis=1).argmax())
    shifted = move.copy()
    shifted[:, :3] += 0.012
    exact = refined(shifted)
    closed = np.flatnonzero(exact[:, 3] < 0.02)
    np.testing.assert_allclose(exact[closed[0], :3], blocks[0, moved], atol=1e-6)
    np.testing.assert_allclose(exact[closed[-1], :3], blocks[-1, moved], atol=1e-6)
    assert set(np.round(exact[:, 3], 3)) == {0.012, 0.08}
    never = move.copy()
    never[:, 3] = 0.08
    np.testing.assert_array_equal(refined(never)[:, :3], never[:, :3])


def test_faults_tell_a_real_move_from_a_broken_one(moves: data.Moves) -> None:
    real = data.Windows(moves, 48).states[:1]
    teleported, dropped = real.clone(), real.clone()
    moved = int((block(real, 0)[:, -1] - block(real, 0)[:, 0]).norm() < 0.01)
    teleported[:, :, 0] += 0.1
    dropped[:, -1, 6 + 3 * moved] += 0.05
    scores = faults(torch.cat([real, teleported, dropped]), [])
    assert scores[0] < 4.0 < scores[1:].min()


class Unit(torch.nn.Module):
    """The exact answer for standard normal data under the cosine schedule."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return x * torch.cos(0.5 * torch.pi * t)[:, None, None]


def test_the_first_state_is_kept_and_energies_are_followed(prior: MovePrior, moves: data.Moves) -> None:
    prior = copy.deepcopy(prior)
    prior.denoiser.network = Unit()
    state = moves.states[0, 0].astype(np.float64)
    table = sampling_table(config(), prior)
    place = (0.5, 0.0, 0.02)

    def drawn(strength: float) -> torch.Tensor:
        planner = BlocksPlanner(prior, table, BlocksPlannerConfig(candidates=16, strength=strength), 0)
        return planner.candidates(state, [At(0, place)])

    free, led = drawn(0.0), drawn(0.05)
    np.testing.assert_allclose(led[:, 0].numpy(), np.tile(state, (16, 1)), atol=1e-5)
    # one over 1 and the cost's precision, 0.05 (0.14 m / 0.02 m)^2, is the posterior's variance
    assert float(At(0, place)(led).mean()) < 0.5 * float(At(0, place)(free).mean())


@pytest.mark.parametrize("name", list(TASKS))
def test_a_scripted_hand_solves_the_tasks(name: str) -> None:
    found = evaluate.played(evaluate.scripted, name, 3, 5, Run(Path("."), main=False))
    assert sum(one.reward for one in found) >= 7


def test_subgoals_clear_what_is_in_the_way() -> None:
    rng = np.random.default_rng(0)
    blocks = tower([0.5, 0.0], [0, 1, 2])
    task = Task(blocks, (0, 2, 1, 3), 7)
    first = task.asked(blocks, rng)
    assert first is not None and first.block == 2
    assert abs(first.target[2] - SIDE / 2) < 1e-9
    assert task.reward(blocks) == 0
    done = tower([0.5, 0.0], [0, 2, 1, 3])
    assert task.asked(done, rng) is None and task.reward(done) == 3
    assert on(done, 2, 0)


def test_the_prior_learns_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "cache", lambda domain: tmp_path / domain)
    asked = config(
        "data.episodes=4", "train.steps=40", "train.batch_size=64", "train.log_every=10", "train.warmup_steps=5",
        "train.checkpoint_every=0", "planner.candidates=2", "n=1", "steps=2", f"runs={tmp_path / 'runs'}",
    )  # fmt: skip
    home = train.run(asked)
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (home / "metrics.jsonl").open()]
    assert losses[-1] < 0.8 * losses[0]
    assert (home / "evaluation" / "episode.mp4").stat().st_size > 10_000
    saved = checkpoint.find(home)
    request = evaluate.BlocksEvaluateConfig(
        checkpoint=str(home), n=1, candidates=1, strength=0.0, out=str(tmp_path / "e")
    )
    assert evaluate.run(request)["planner"]["candidates"] == 1
    with pytest.raises(WorkbenchError):
        saved.require("planning")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("horizon=4", "at least 8 nodes"),
        ("planner.candidates=0", "planner.candidates"),
        ("prediction=y", "expected one of"),
    ],
)
def test_bad_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        assemble(config(override))
