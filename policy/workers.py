"""Rollouts in several processes; each has the policy and a share of the seeds.

With one stream of noise for each seed, and float64, an episode is the same in whichever process and batch it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from envs.rollout import Rollout
from policy.config import PolicyConfig


@dataclass(frozen=True)
class Share:
    """What one process does at a time.

    Args:
        checkpoint: folder of the policy.
        config: of the task and the sampler.
        seeds: of its episodes.
        film: those of them that are filmed.
        batch, precision: see `policy.config.EvaluationConfig`.
    """

    checkpoint: Path
    config: PolicyConfig
    seeds: tuple[int, ...]
    film: tuple[int, ...]
    batch: int
    precision: str


def played(share: Share) -> list[Rollout]:
    """The episodes of a share."""
    # not above: this module is imported by the one that calls it
    from diffusion_core import checkpoint
    from policy import evaluate
    from policy.model import restore, sampling_table

    torch.set_num_threads(1)
    policy, _ = restore(checkpoint.load(share.checkpoint))
    table = sampling_table(share.config, policy)
    return evaluate.rollout(policy, share.config, share.seeds, table, share.batch, share.film, share.precision)


def episodes(
    checkpoint: Path,
    config: PolicyConfig,
    seeds: Sequence[int],
    film: Sequence[int],
    batch: int,
    precision: str,
    jobs: int,
) -> Iterator[Rollout]:
    """Every seed's episode, as shares end."""
    size = max(1, min(batch, -(-len(seeds) // jobs)))
    parts = [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]
    shares = [Share(checkpoint, config, p, tuple(s for s in film if s in p), batch, precision) for p in parts]
    with ProcessPoolExecutor(min(jobs, len(shares)), mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(played, share) for share in shares]):
            yield from done.result()
