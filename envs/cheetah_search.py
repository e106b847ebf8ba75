"""Linear policies of a half cheetah, found by random search: ``python -m envs.cheetah_search --out stages.npz``.

Augmented random search (ARS V2-t): of N random directions in the space of 6 x 17 matrices both signs are tried,

    M <- M + a / (b s_R) sum_(k in best b) (r(M + v d_k) - r(M - v d_k)) d_k

with the observations whitened by all that were seen, and s_R the standard deviation of the returns used.

Source: Mania, Guy & Recht 2018, algorithm 2 (arXiv 1803.07055). Ours: episodes are shorter while searching.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from envs.cheetah import ACTIONS, OBS, STEPS, Cheetahs

logger = logging.getLogger("workbench.envs")
SHIPPED = Path(__file__).parent / "cheetah_stages.npz"
"""Policies of several stages of one search."""
STAGES = (5, 20, 50, 100, 200, 300, 450, 600)
"""Iterations after which a policy was kept."""


@dataclass(frozen=True, eq=False)
class Linear:
    """``a = clip(M (obs - mean) / std, -1, 1)``.

    Args:
        matrix: M.
        mean, std: of observations.
    """

    matrix: Float[np.ndarray, "6 17"]
    mean: Float[np.ndarray, "17"]
    std: Float[np.ndarray, "17"]

    def __call__(self, obs: Float[np.ndarray, "n 17"]) -> Float[np.ndarray, "n 6"]:
        return np.clip((obs - self.mean) / self.std @ self.matrix.T, -1.0, 1.0)


def returns(policies: list[Linear], seed: int, steps: int = STEPS) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
    """The return of one episode of each policy, and all that was seen, (steps * n, 17)."""
    cheetahs = Cheetahs(len(policies))
    obs, total, seen = cheetahs.reset(seed), np.zeros(len(policies)), []
    for _ in range(steps):
        seen.append(obs)
        actions = np.stack([policy(one[None])[0] for policy, one in zip(policies, obs, strict=True)])
        obs, rewards = cheetahs.step(actions)
        total += rewards
    return total, np.concatenate(seen)


def search(
    iterations: int,
    seed: int,
    steps: int = 400,
    directions: int = 16,
    best: int = 8,
    rate: float = 0.02,
    reach: float = 0.03,
) -> Iterator[tuple[Linear, float]]:
    """The policy after each iteration, and the mean return of what was tried in it.

    Args:
        steps: of an episode.
        directions: N.
        best: b.
        rate: a.
        reach: v.
    """
    rng = np.random.default_rng(seed)
    matrix = np.zeros((ACTIONS, OBS))
    count, mean, squares = 1e-2, np.zeros(OBS), np.ones(OBS) * 1e-2
    for _ in range(iterations):
        std = np.sqrt(squares / count)
        tries = rng.standard_normal((directions, ACTIONS, OBS))
        signed = np.concatenate([matrix + reach * tries, matrix - reach * tries])
        total, seen = returns([Linear(m, mean, std) for m in signed], int(rng.integers(2**31)), steps)
        plus, minus = np.split(total, 2)
        order = np.argsort(-np.maximum(plus, minus))[:best]
        used = np.concatenate([plus[order], minus[order]])
        step = np.einsum("k,kij->ij", (plus - minus)[order], tries[order]) / (best * used.std() + 1e-6)
        matrix = matrix + rate * step
        # whitening moves with what was seen, by parallel sums of squares
        n, new = len(seen), seen.mean(0)
        squares = squares + np.square(seen - new).sum(0) + np.square(new - mean) * count * n / (count + n)
        mean, count = mean + (new - mean) * n / (count + n), count + n
        yield Linear(matrix, mean, np.sqrt(squares / count)), float(total.mean())


def stages(path: Path = SHIPPED) -> list[Linear]:
    """The policies in a file of stages, the worst first.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with np.load(path) as file:
            return [Linear(*each) for each in zip(file["matrix"], file["mean"], file["std"], strict=True)]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); expected a file of stages: python -m envs.cheetah_search makes one."
        ) from error


def main() -> None:
    """Search, and keep the policies of all stages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="an .npz file for the stages")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    kept = []
    for k, (policy, found) in enumerate(search(max(STAGES), asked.seed), 1):
        if k % 10 == 0:
            logger.info("iteration %d: mean return of what was tried %.0f", k, found)
        if k in STAGES:
            kept.append(policy)
    matrix, mean, std = (np.stack([getattr(policy, name) for policy in kept]) for name in ("matrix", "mean", "std"))
    np.savez(asked.out, matrix=matrix, mean=mean, std=std)


if __name__ == "__main__":
    main()
