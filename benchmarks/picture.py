"""Draw README's picture: ``python -m benchmarks.picture`` -> docs/pusht.png."""

from __future__ import annotations

import numpy as np

from benchmarks.tables import ROOT
from diffusion_core import checkpoint
from diffusion_core.report import ACCENT, save_figure, subplots
from policy import evaluate, report
from policy.model import restore, sampling_table

SEED = 100_003
MOMENTS = 6


def main() -> None:
    policy, config = restore(checkpoint.find("pretrained/pusht", evaluate.PRETRAINED))
    plan = sampling_table(config, policy)
    denoising = report.denoise_start(policy, config, SEED, 32)
    episode = evaluate.rollout(policy, config, [SEED], plan, film=[SEED])[0]
    figure, axes = subplots(2, MOMENTS, 2.2 * MOMENTS, 4.8)
    report.draw_denoising(axes[0], denoising)
    chosen = np.linspace(0, len(episode.frames) - 1, MOMENTS).round().astype(int)
    for axis, i in zip(axes[1], chosen, strict=True):
        axis.imshow(episode.frames[i], extent=(0, 512, 512, 0))
        trail = np.stack(episode.states[: i + 1])[:, :2]
        axis.plot(trail[:, 0], trail[:, 1], color=ACCENT, lw=1, alpha=0.6)
        covered = ([0.0, *episode.coverage])[i]
        axis.set(xlim=(0, 512), ylim=(512, 0), xticks=[], yticks=[], title=f"{0.1 * i:.1f} s, coverage {covered:.2f}")
        axis.spines[:].set_visible(False)
    save_figure(figure, ROOT / "docs" / "pusht.png")


if __name__ == "__main__":
    main()
