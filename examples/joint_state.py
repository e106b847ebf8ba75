"""A state of three fields, sampled together: a number, an angle and a class, each noised in its own way.

    python examples/joint_state.py docs/joint_state.png

The data: three kinds of object, each with its own number, angle (a whole turn is 1) and label. Given the kind the
fields are independent, so a kind's exact denoiser is a dict of oracles, and the denoiser of the data is the mixture
``one | two | three``. Each field has its own process, schedule and grid; all that ties them together is the denoiser,
and yet the samples have the right angle for their label.
"""

import sys
from pathlib import Path

import torch

from diffusion_core import grid
from diffusion_core.denoise import Denoiser
from diffusion_core.noise import On, Shared
from diffusion_core.oracles import CategoricalTable, GaussianData, WrappedMixture
from diffusion_core.plan import Together
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.report import ACCENT, INK, MUTED, WARM, save_figure, subplots
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine, RectifiedFlow, VarianceExploding
from diffusion_core.solvers import dpm_solver_pp_2m_sde
from diffusion_core.solvers.categorical import ancestral as jump
from diffusion_core.solvers.torus import ancestral as wind

COSINE, EXPLODING = Cosine(), VarianceExploding(1.0)
CIRCLE, LABEL = Torus(EXPLODING), Absorbing(RectifiedFlow(), classes=3)
NUMBERS, WIDTHS, ANGLES, SPREAD = (-1.5, 0.0, 1.2), (0.3, 0.2, 0.4), (0.15, 0.5, 0.9), 0.06


class Kind(Denoiser):
    """Independent fields: the oracles of one kind of object, as one denoiser with a log-density."""

    def __init__(self, k):
        number, width, angle = (torch.tensor([v[k]], dtype=torch.float64) for v in (NUMBERS, WIDTHS, ANGLES))
        one, spread = torch.ones(1, dtype=torch.float64), torch.tensor([SPREAD], dtype=torch.float64)
        self.number = GaussianData(COSINE, number, width)
        self.angle = WrappedMixture(CIRCLE, one, angle[:, None], spread)
        self.label = CategoricalTable(LABEL, torch.eye(3, dtype=torch.float64)[k])
        self.process = Joint({"number": self.number.process, "angle": CIRCLE, "label": LABEL})

    def bind(self, times, cond=None):
        each = {name: getattr(self, name).bind(times[name]) for name in times}
        return lambda x, i: {name: evaluate(x[name], i) for name, evaluate in each.items()}

    def bind_log_density(self, times, cond=None):
        number, label = (getattr(self, name).bind_log_density(times[name]) for name in ("number", "label"))
        at = times["angle"].tolist()
        return lambda x, i: number(x["number"], i) + self.angle.log_density(x["angle"], at[i]) + label(x["label"], i)


def plan(steps):
    """A solver and a grid for each field: as many steps, each where its own field needs them."""
    return Together(
        {
            "number": dpm_solver_pp_2m_sde(COSINE, grid.log_snr_uniform(COSINE, steps, 0.999, 1e-3)),
            "angle": wind(CIRCLE, grid.log_snr_uniform(EXPLODING, steps, 1.0, 1e-2)),
            "label": jump(LABEL, grid.uniform(steps) ** 2),
        }
    )


def main(out=None, n=8000, steps=60):
    world = Kind(0) | Kind(1) | Kind(2)
    noise, like = Shared(torch.Generator().manual_seed(0)), torch.zeros(n, 1, dtype=torch.float64)
    base = world.process.noise({"number": like, "angle": like, "label": like.long()}, On(noise, like.device))
    x = {name: v[:, 0] for name, v in sample(world, plan(steps), world.process.prior(base), noise=noise).items()}

    gap = (x["angle"] - torch.tensor(ANGLES, dtype=torch.float64)[x["label"]] + 0.5) % 1.0 - 0.5
    agree = (gap.abs() < 4.0 * SPREAD).double().mean().item()
    shares = [(x["label"] == k).double().mean().item() for k in range(3)]
    if out:
        figure, axes = subplots(1, 4, 13.0, 3.2)
        now, turn = torch.zeros(1, dtype=torch.float64), torch.linspace(0.0, 1.0, 201, dtype=torch.float64)[:, None]
        line = 5.6 * turn - 2.8
        number = sum(kind.number.bind_log_density(now)(line, 0).exp() for kind in world.parts) / 3.0
        angle = sum(kind.angle.log_density(turn, 0.0).exp() for kind in world.parts) / 3.0
        for axis, name, at, exact in ((axes[0, 0], "number", line, number), (axes[0, 1], "angle", turn, angle)):
            axis.hist(x[name].numpy(), 60, range=(float(at[0]), float(at[-1])), density=True, color=MUTED, alpha=0.5)
            axis.plot(at, exact, color=INK, lw=1.5)
            axis.set(xlabel=name, yticks=[])
        axes[0, 2].bar(range(3), shares, color=MUTED, alpha=0.5)
        axes[0, 2].hlines([1 / 3] * 3, [-0.4, 0.6, 1.6], [0.4, 1.4, 2.4], color=INK, lw=1.5)
        axes[0, 2].set(xlabel="label", xticks=range(3), yticks=[])
        for k, colour in enumerate((WARM, ACCENT, INK)):
            axes[0, 3].scatter(*(x[name][x["label"] == k][:500] for name in ("number", "angle")), s=2, color=colour)
        axes[0, 3].set(xlabel="number", ylabel="angle", xlim=(-2.8, 2.8), ylim=(0, 1), title="coloured by label")
        save_figure(figure, Path(out))
    return {"agree": agree, "spread": float(gap.std()) / SPREAD, "shares": shares, "samples": x}


if __name__ == "__main__":
    print({name: value for name, value in main(*sys.argv[1:]).items() if name != "samples"})
