"""What each way to sample a product of experts gets wrong, and what it costs: products known in closed form.

    python -m benchmarks.composition --out benchmarks/results/composition.json --figure docs/composition.png

The experts are Gaussian mixtures with exact denoisers, so every error is the sampler's. The truth is the product of
the densities of the data. All samplers take the same grid and draw the same number of samples. Weighted particles are
resampled to as many of equal weight before they are compared.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product as pairs
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core import experts, results
from diffusion_core import grid as grids
from diffusion_core.correct import Hmc, Mala, Ula
from diffusion_core.denoise import Denoiser
from diffusion_core.noise import Shared
from diffusion_core.oracles import GaussianMixture
from diffusion_core.particles import Resampling, sample_particles
from diffusion_core.report import ACCENT, MUTED, save_figure, subplots
from diffusion_core.sample import Corrector, sample
from diffusion_core.schedule import Linear
from diffusion_core.solvers import ddim, ddpm

SCHEDULE = Linear()
STEPS = 64
GRID = grids.log_snr_uniform(SCHEDULE, STEPS, 0.999, 0.002)
SEEDS = 6
SAMPLES = 4000
DIRECTIONS = 32


def gaussians(*components: tuple[float, Any, float]) -> GaussianMixture:
    """A mixture of (share, mean, standard deviation)."""
    shares, means, stds = zip(*components, strict=True)
    centres = torch.tensor([m if isinstance(m, tuple) else (m,) for m in means], dtype=torch.float64)
    weights = torch.tensor(shares, dtype=torch.float64)
    return GaussianMixture(SCHEDULE, weights / weights.sum(), centres, torch.tensor(stds, dtype=torch.float64))


@dataclass(frozen=True)
class Problem:
    """A product of mixtures with exponents, and the places that count as its modes."""

    what: str
    factors: tuple[tuple[Any, float], ...]
    modes: tuple[Any, ...]

    @property
    def dimensions(self) -> int:
        return len(self.centres[0])

    @property
    def centres(self) -> Tensor:
        return torch.tensor([m if isinstance(m, tuple) else (m,) for m in self.modes], dtype=torch.float64)

    def denoiser(self) -> Denoiser:
        total: Any = None
        for mixture, exponent in self.factors:
            factor = mixture**exponent
            total = factor if total is None else total * factor
        return total

    def log_density(self, x: Tensor) -> Tensor:
        """Of the data, up to a constant."""
        return sum(w * mixture.log_density(x, 0.0) for mixture, w in self.factors)  # type: ignore[return-value]

    def shares(self, x: Tensor, weights: Tensor) -> Tensor:
        """Share of each mode: of what is nearest to it."""
        nearest = torch.cdist(x, self.centres).argmin(1)
        return torch.zeros(len(self.modes), dtype=torch.float64).index_add_(0, nearest, weights) / weights.sum()


PROBLEMS: dict[str, Problem] = {
    "two bimodal experts": Problem(
        "p q, two modes each",
        (
            (gaussians((0.5, -1.5, 0.3), (0.5, 1.5, 0.3)), 1.0),
            (gaussians((0.3, -1.2, 0.35), (0.7, 1.9, 0.35)), 1.0),
        ),
        (-1.4, 1.6),
    ),
    "plane": Problem(
        "p q, four and three modes",
        (
            (gaussians(*((0.25, (x, y), 0.35) for x, y in pairs((-1.2, 1.2), (-1.2, 1.2)))), 1.0),
            (gaussians((0.4, (-1.3, -0.8), 0.5), (0.3, (1.0, 1.5), 0.4), (0.3, (1.3, -1.4), 0.6)), 1.0),
        ),
        ((-1.2, -1.1), (1.1, 1.3), (1.2, -1.2), (-1.2, 1.2)),
    ),
    "power": Problem(
        "p^2",
        ((gaussians((0.4, -1.0, 0.2), (0.6, 1.0, 0.4)), 2.0),),
        (-1.0, 1.0),
    ),
    "guidance": Problem(
        "u (c / u)^3",
        (
            (gaussians((0.4, -1.2, 0.5), (0.3, 0.4, 0.4), (0.3, 1.5, 0.5)), -2.0),
            (gaussians((0.5, 0.4, 0.4), (0.5, 1.5, 0.5)), 3.0),
        ),
        (0.6, 1.6),
    ),
    "negation": Problem(
        "p / n^0.5",
        (
            (gaussians((0.5, -1.0, 0.4), (0.5, 1.0, 0.4)), 1.0),
            (
                gaussians(
                    (1.0, -0.7, 0.9),
                ),
                -0.5,
            ),
        ),
        (-1.0, 1.0),
    ),
}


# --- truth and distances --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """A density on the nodes of a fine lattice."""

    x: Tensor
    weights: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Truth:
        d = problem.dimensions
        axis = torch.linspace(-6.0, 6.0, 40_001 if d == 1 else 601, dtype=torch.float64)
        x = axis[:, None] if d == 1 else torch.cartesian_prod(axis, axis)
        return cls(x, problem.log_density(x).softmax(0))

    def quantiles(self, along: Tensor, n: int) -> Tensor:
        """Of the projection on a direction, at ``(i + 1/2) / n``."""
        projected = self.x @ along
        order = projected.argsort()
        levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        place = torch.searchsorted(self.weights[order].cumsum(0), levels).clamp(max=len(order) - 1)
        return projected[order][place]

    def sample(self, n: int, seed: int) -> Tensor:
        """n draws; on the lattice, whose spacing is far below the distances here."""
        chosen = torch.multinomial(self.weights, n, True, generator=torch.Generator().manual_seed(seed))
        spacing = float(self.x[1, -1] - self.x[0, -1])
        jitter = torch.rand(n, self.x.shape[1], generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
        return self.x[chosen] + spacing * (jitter - 0.5)


class Distance:
    """Wasserstein-1 to the truth; in the plane its mean over directions."""

    def __init__(self, truth: Truth, n: int) -> None:
        d = truth.x.shape[1]
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * (math.pi / DIRECTIONS)
        rows = torch.ones(1, 1, dtype=torch.float64) if d == 1 else torch.stack([angles.cos(), angles.sin()], 1)
        self.targets = [(row, truth.quantiles(row, n)) for row in rows]

    def __call__(self, x: Tensor) -> float:
        apart = [(torch.sort(x @ row).values - target).abs().mean() for row, target in self.targets]
        return float(torch.stack(apart).mean())


# --- samplers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted(Denoiser):
    """An expert that counts how often its estimate and its log-density are asked for."""

    denoiser: GaussianMixture
    calls: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def process(self) -> Any:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Tensor, cond: Any = None) -> Callable[[Tensor, int], Tensor]:
        return self._counting(self.denoiser.bind(times, cond), 0)

    def bind_log_density(self, times: Tensor, cond: Any = None) -> Callable[[Tensor, int], Tensor]:
        return self._counting(self.denoiser.bind_log_density(times, cond), 1)

    def _counting(self, function: Callable[[Tensor, int], Tensor], which: int) -> Callable[[Tensor, int], Tensor]:
        def counted(x: Tensor, i: int) -> Tensor:
            self.calls[which] += 1
            return function(x, i)

        return counted


def counted(problem: Problem) -> tuple[Problem, list[int]]:
    """The problem with its first expert counting, and its count."""
    (first, exponent), *others = problem.factors
    expert = Counted(first)
    return replace(problem, factors=((expert, exponent), *others)), expert.calls


Sampler = Callable[[Denoiser, Tensor, Shared], Tensor]


def plain(solver: Callable[..., Any], corrector: Corrector | None = None) -> Sampler:
    table = solver(SCHEDULE, GRID)
    return lambda denoiser, x, noise: sample(denoiser, table, x, noise=noise, corrector=corrector)


def weighted(resampling: Resampling | None, corrector: Corrector | None = None, **options: Any) -> Sampler:
    def run(denoiser: Denoiser, x: Tensor, noise: Shared) -> Tensor:
        end = sample_particles(denoiser, GRID, x, noise, resampling=resampling, corrector=corrector, **options)
        return end.resampled(noise)

    return run


def narrow(denoiser: Any, x: Tensor, noise: Shared) -> Tensor:
    """What particles by density propose, without weights: no correction, but stationary where no data is left."""
    total = denoiser.exponent(0.5)
    table = ddpm(SCHEDULE, GRID, "large")
    return sample(denoiser ** (1.0 / total), replace(table, noise=table.noise / math.sqrt(total)), x, noise=noise)


SAMPLERS: dict[str, Sampler] = {
    "DDIM": plain(ddim),
    "DDPM": plain(ddpm),
    "DDPM, mean of experts, noise / sqrt(W)": narrow,
    "DDPM + ULA x1": plain(ddpm, Ula(1, 0.1)),
    "DDPM + ULA x5": plain(ddpm, Ula(5, 0.1)),
    "DDPM + ULA x20": plain(ddpm, Ula(20, 0.1)),
    "DDPM + MALA x5": plain(ddpm, Mala(5, 0.3)),
    "DDPM + MALA x5, no densities": plain(ddpm, Mala(5, 0.3, quadrature=1)),
    "DDPM + HMC x1, 5 leapfrogs": plain(ddpm, Hmc(1, 0.1, 5)),
    "particles by path, weights only": weighted(None),
    "particles by path": weighted(Resampling()),
    "particles by path + ULA x2": weighted(Resampling(), Ula(2, 0.1)),
    "particles by path + MALA x2, no densities": weighted(Resampling(), Mala(2, 0.3, quadrature=1)),
    "particles by density, weights only": weighted(None, weigh="density"),
    "particles by density": weighted(Resampling(), weigh="density"),
    "particles by density + MALA x2": weighted(Resampling(), Mala(2, 0.3), weigh="density"),
}
FLOOR = "independent draws"


def run(problem: Problem, sampler: Sampler, n: int, seed: int) -> Tensor:
    denoiser, noise = problem.denoiser(), Shared(torch.Generator().manual_seed(seed))
    base = noise.normal((n, problem.dimensions), torch.float64, torch.device("cpu"))
    return sampler(denoiser, experts.start(denoiser, base, float(GRID[0])), noise)


def measure(problem: Problem, n: int, seeds: int) -> list[dict[str, Any]]:
    """A row for every sampler: distance, error of the modes' shares, cost; over seeds."""
    truth = Truth.of(problem)
    distance, right = Distance(truth, n), problem.shares(truth.x, truth.weights)
    rows = []
    for name, sampler in [*SAMPLERS.items(), (FLOOR, None)]:
        apart, missed, seconds = [], [], []
        counting, calls = counted(problem)
        for seed in range(seeds):
            begin = time.process_time()
            x = truth.sample(n, 2 * seed) if sampler is None else run(counting, sampler, n, seed)
            seconds.append(time.process_time() - begin)
            apart.append(distance(x))
            missed.append(float((problem.shares(x, torch.ones(n, dtype=torch.float64)) - right).abs().sum() / 2.0))
        rows.append(
            {
                "sampler": name,
                "w1": results.mean(apart),
                "mode_error": results.mean(missed),
                "evaluations": calls[0] // seeds,
                "log_densities": calls[1] // seeds,
                "cpu_ms": round(1e3 * min(seconds), 1),
            }
        )
    return rows


# --- figure ---------------------------------------------------------------------------------------------

SHOWN = {
    "DDIM": "DDIM",
    "DDPM": "DDPM",
    "DDPM + ULA x5": "DDPM + ULA ×5",
    "DDPM + MALA x5": "DDPM + MALA ×5",
    "particles by path + MALA x2, no densities": "by path + MALA ×2",
    "particles by density + MALA x2": "by density + MALA ×2",
}


def draw(path: Path, n: int) -> None:
    """Above the product of two bimodal experts, below the one in the plane; each with the truth."""
    figure, axes = subplots(2, len(SHOWN), 2.3 * len(SHOWN), 4.9)
    line, plane = PROBLEMS["two bimodal experts"], PROBLEMS["plane"]
    x = torch.linspace(-3.0, 3.0, 601, dtype=torch.float64)
    density = line.log_density(x[:, None]).softmax(0) / float(x[1] - x[0])
    grid = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64)
    surface = plane.log_density(torch.cartesian_prod(grid, grid)).exp().reshape(121, 121).T
    levels = [float(surface.max()) * level for level in (0.03, 0.15, 0.5)]
    for k, (name, label) in enumerate(SHOWN.items()):
        above, below = axes[0, k], axes[1, k]
        samples = run(line, SAMPLERS[name], n, 0)[:, 0]
        above.hist(samples.numpy(), bins=120, range=(-3.0, 3.0), density=True, color=ACCENT, alpha=0.45)
        above.plot(x.numpy(), density.numpy(), color="black", lw=1.0)
        above.set(title=label, xlim=(-3.0, 3.0), ylim=(0.0, 1.6 * float(density.max())), yticks=[])
        points = run(plane, SAMPLERS[name], n, 0)[: n // 4]
        below.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=2.0, color=ACCENT, alpha=0.35, linewidths=0.0)
        below.contour(grid.numpy(), grid.numpy(), surface.numpy(), levels, colors="black", linewidths=0.7)
        below.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
        below.spines[:].set_color(MUTED)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/composition.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/composition.png"))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = {
        name: {"what": problem.what, "rows": measure(problem, arguments.samples, arguments.seeds)}
        for name, problem in PROBLEMS.items()
    }
    report = {
        "what": "distance of samples from a product of exact experts to the product; W1, sliced in the plane",
        "command": f"python -m benchmarks.composition --samples {arguments.samples} --seeds {arguments.seeds}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "schedule": str(SCHEDULE),
        "steps": STEPS,
        "seeds": list(range(arguments.seeds)),
        "n": arguments.samples,
        "dtype": "float64",
        "problems": measured,
    }
    results.write_json(arguments.out, report)
    draw(arguments.figure, 2 * arguments.samples)
    for name, problem in measured.items():
        print(name)
        for row in problem["rows"]:
            print(
                f"  {row['sampler']:40} W1 {row['w1'].value:.4f} ± {row['w1'].stderr:.4f}  modes "
                f"{row['mode_error'].value:.3f} ± {row['mode_error'].stderr:.3f}  {row['evaluations']:5d} + "
                f"{row['log_densities']:4d}  {row['cpu_ms']:8.1f} ms"
            )


if __name__ == "__main__":
    main()
