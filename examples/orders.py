"""The order of convergence of every solver, against exact answers.

    python examples/orders.py docs/orders.png benchmarks/results/orders.json

Deterministic solvers: the mean error at the end of the probability flow of a mixture of three Gaussians on a line,
whose score is far from linear and whose flow is known exactly. Solvers that add noise: the error of the variance of
Gaussian data; as samples are linear in the noise, it is a sum over draws and needs none.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch

from diffusion_core import grid, results, solvers
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.report import ACCENT, INK, MUTED, WARM, save_figure, subplots
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine

SCHEDULE, START, END = Cosine(), 0.8, 0.2


SINGLE = ("ddim", "euler", "heun", "edm", "dpm_solver_2s", "dpm_solver_pp_2s", "dpm_solver_3s", "dpm_solver_pp_3s")
MULTI = ("dpm_solver_2m", "dpm_solver_pp_2m", "dpm_solver_3m", "dpm_solver_pp_3m")
ORDERS = (("deis", 2), ("deis", 3), ("lms", 4), ("unipc", 1), ("unipc", 2))
FLOWS = [(name, {}) for name in SINGLE + MULTI] + [(name, {"order": order}) for name, order in ORDERS]
FLOWS += [("unipc", {"order": 3, "warm_up": word}) for word in ("staged", "published")]
FLOWS += [("dpm_solver_pp_3m", {"warm_up": "published"}), ("sa_solver", {"order": 2, "tau": 0.0})]
NOISY = [(name, {}) for name in ("ddpm", "dpm_solver_pp_2m_sde", "dpm_solver_pp_3m_sde")]
NOISY += [("ddim", {"eta": 0.5}), ("sa_solver", {"order": 3, "tau": 1.0}), ("edm", {"churn": 20.0})]


class Impulses:
    """Noise in which sample k of the batch gets 1 at the k-th draw and 0 otherwise."""

    drawn = 0

    def normal(self, shape, dtype, device):
        self.drawn += 1
        return (torch.arange(shape[0]) == self.drawn).to(dtype)[:, None]

    uniform = normal


def flow_error(solver, n):
    """Mean distance to the exact flow after ``n`` steps."""
    weights, means, stds = torch.tensor([[0.3, 0.5, 0.2], [-1.5, 0.2, 1.6], [0.3, 0.5, 0.25]], dtype=torch.float64)
    data = GaussianMixture(SCHEDULE, weights, means[:, None], stds)
    exact = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]
    end = sample(data, solver(SCHEDULE, grid.uniform(n, START, END)), data.flow(exact, END, START))
    return float((end - exact).abs().mean())


def variance_error(solver, n):
    """Relative error of the variance of N(0, 0.4^2) after ``n`` steps."""
    data = GaussianData(SCHEDULE, torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.4, dtype=torch.float64))
    table, wanted = solver(SCHEDULE, grid.uniform(n, START, END)), float(data.marginal(END)[1]) ** 2
    x = torch.zeros(int((table.noise > 0).sum()) + 1, 1, dtype=torch.float64)
    x[0] = data.marginal(START)[1]
    return abs(float(sample(data, table, x, noise=Impulses()).square().sum()) / wanted - 1.0)


def measure(steps):
    """For every solver its evaluations and errors at these numbers of steps, and the slope between the last two."""
    rows = []
    for k, (name, keywords) in enumerate(FLOWS + NOISY):
        solver, noisy = partial(getattr(solvers, name), **keywords), k >= len(FLOWS)
        errors = [(variance_error if noisy else flow_error)(solver, n) for n in steps]
        calls = [int(solver(SCHEDULE, grid.uniform(n, START, END)).evaluates.sum()) for n in steps]
        order = math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])
        label = name + "".join(f", {key}={value!r}" for key, value in keywords.items())
        rows.append({"solver": label, "noisy": noisy, "order": order, "evaluations": calls, "errors": errors})
    return rows


def main(out, json=None, steps=(8, 16, 32, 64, 128, 256)):
    rows = measure(steps)
    figure, axes = subplots(1, 4, 15.0, 4.6)
    styles = [{"color": c, "ls": line, "lw": 1.3} for line in ("-", "--", ":") for c in (ACCENT, WARM, INK)]
    for p, axis in enumerate(axes[0], 1):
        panel = [row for row in rows if not row["noisy"] and round(row["order"]) == p]
        for row, style in zip(panel, styles, strict=False):
            axis.loglog(row["evaluations"], row["errors"], label=row["solver"], marker=".", **style)
        axis.loglog([8, 800], [3.0, 3.0 * 100.0**-p], color=MUTED, lw=7, alpha=0.3)
        axis.set(title=f"order {p}", xlabel="evaluations of the network", xlim=(7, 900), ylim=(1e-12, 8.0))
        axis.legend(fontsize=8, loc="lower left", handlelength=2.2)
    axes[0, 0].set_ylabel("mean distance to the exact flow")
    save_figure(figure, Path(out))
    if json:
        what = f"errors under {SCHEDULE}, uniform grids of n steps from {START} to {END}; order: slope of the last two"
        head = {"what": what, "command": __doc__.split("\n")[2].strip(), "commit": results.commit()}
        results.write_json(Path(json), head | {"n": list(steps), "rows": rows})
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
