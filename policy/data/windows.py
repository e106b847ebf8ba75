"""Windows: which steps of which episodes one training sample shows, and which episodes are held out.

All of it is index arithmetic on `episode_ends`, so a data set stays in one array on the device and a batch is one
`array[windows[rows]]`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from diffusion_core.errors import WorkbenchError


def windows(
    episode_ends: Int64[np.ndarray, " episodes"],
    horizon: int,
    pad_before: int,
    pad_after: int,
    keep: Bool[np.ndarray, " flags"] | None = None,
) -> Int64[np.ndarray, "n_windows horizon"]:
    """List the step indices of every window, in the order of the published sampler.

    In an episode of L steps that begins at step b, window s shows, for h = 0 ... horizon - 1,

        b + clip(s + h, 0, L - 1),    s = -pad_before ... L - horizon + pad_after

    so steps before the first and after the last repeat the edge (no loss mask), and no window leaves its episode. An
    episode with L < horizon - pad_after - pad_before has no window. With diffusion_policy's pads, n_obs_steps - 1 and
    n_action_steps - 1, the first window ends its observations on the first step of the episode.

    Args:
        episode_ends: exclusive cumulative ends, steps.
        horizon: steps per window, at least 1.
        pad_before, pad_after: steps that a window may reach outside its episode. As published, values are moved into
            [0, horizon - 1], so every window shows at least one real step.
        keep: episodes to take; all when None.

    Raises:
        WorkbenchError: horizon below 1, or `keep` of another length than `episode_ends`.

    Source: Chi et al. 2023, appendix A (arXiv 2303.04137); index ranges of diffusion_policy's SequenceSampler.
    """
    ends = np.asarray(episode_ends, dtype=np.int64)
    if horizon < 1:
        raise WorkbenchError(f"windows: got horizon={horizon}; expected at least 1 step: raise it.")
    if keep is not None and np.shape(keep) != ends.shape:
        raise WorkbenchError(
            f"windows: got keep of shape {np.shape(keep)} for {len(ends)} episodes; expected one value per episode."
        )
    before = min(max(pad_before, 0), horizon - 1)
    after = min(max(pad_after, 0), horizon - 1)
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    lengths = ends - begins
    counts = np.maximum(lengths - horizon + after + before + 1, 0)
    if keep is not None:
        counts = np.where(keep, counts, 0)
    episode = np.repeat(np.arange(len(ends)), counts)
    rank = np.arange(len(episode)) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = (rank - before)[:, None] + np.arange(horizon)
    return begins[episode, None] + np.clip(inside, 0, lengths[episode, None] - 1)


def train_validation_split(
    n_episodes: int, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Hold out whole episodes.

    round(fraction n) episodes, but at least one and never all, are drawn without replacement from
    `numpy.random.default_rng(seed)`. Same as diffusion_policy's get_val_mask: the count, the generator and the draw,
    so one seed gives the published split (seed 42, fraction 0.02 of 206: 4 episodes).

    Args:
        n_episodes: episodes in the data set.
        fraction: share held out, in [0, 1); 0 holds out none.
        seed: of the draw.

    Returns:
        Indices of the training and of the validation episodes, each rising.

    Raises:
        WorkbenchError: fraction outside [0, 1), or a split asked of fewer than 2 episodes.
    """
    if not 0.0 <= fraction < 1.0:
        raise WorkbenchError(f"validation split: got fraction={fraction}; expected a share in [0, 1).")
    held_out = np.zeros(n_episodes, dtype=bool)
    if fraction > 0.0:
        if n_episodes < 2:
            raise WorkbenchError(
                f"validation split: got {n_episodes} episode(s) and fraction={fraction}; expected at least 2 episodes: "
                "set the fraction to 0 or add episodes."
            )
        count = min(max(1, round(n_episodes * fraction)), n_episodes - 1)
        held_out[np.random.default_rng(seed).choice(n_episodes, size=count, replace=False)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def limit_episodes(
    episodes: Int64[np.ndarray, " n"], max_train_episodes: int | None, seed: int
) -> Int64[np.ndarray, " kept"]:
    """Keep at most `max_train_episodes` of these episodes, drawn without replacement, in rising order.

    Same as diffusion_policy's downsample_mask on the training mask: `numpy.random.default_rng(seed)` draws positions
    among the episodes given (published: 90 of the 202 training episodes).

    Raises:
        WorkbenchError: max_train_episodes below 1.
    """
    if max_train_episodes is not None and max_train_episodes < 1:
        raise WorkbenchError(
            f"max_train_episodes: got {max_train_episodes}; expected at least 1, or none for every episode."
        )
    if max_train_episodes is None or len(episodes) <= max_train_episodes:
        return np.asarray(episodes, dtype=np.int64)
    picks = np.random.default_rng(seed).choice(len(episodes), size=max_train_episodes, replace=False)
    return np.sort(np.asarray(episodes, dtype=np.int64)[picks])
