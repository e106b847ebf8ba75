"""Latency of a whole sampling run of a policy-sized network: eager, as one CUDA graph, compiled, and diffusers' loop.

On a GPU:

    python -m benchmarks.graph_latency --device cuda --out benchmarks/results/graph_latency_cuda.json

On a CPU there are no graphs: ``--device cpu`` measures the compiled loop instead. The first call compiles: 20 s for the
MLP, minutes for the U-Net (``--networks mlp`` leaves it out).

Wall time from the call to the synchronised result, median over the repeats, all in one process. The networks are the
shipped policies': the residual MLP of the cpu preset and the temporal U-Net of the paper preset.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core import results
from diffusion_core.capture import capture
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.nn.unet1d import UNet1d
from diffusion_core.sample import sample
from diffusion_core.schedule import linear_betas
from diffusion_core.solvers import ddim

HORIZON, ACTION, COND = 16, 2, 40


def networks() -> dict[str, nn.Module]:
    return {"mlp": ResidualMLP(HORIZON, ACTION, COND), "unet": UNet1d(HORIZON, ACTION, COND)}


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median wall time of one run, results waited for."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def of_diffusers(model: nn.Module, x_start: Tensor, cond: Tensor, steps: int) -> Callable[[], Tensor]:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")

    @torch.no_grad()
    def run() -> Tensor:
        scheduler.set_timesteps(steps, device=x_start.device)
        x = x_start
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(len(x)).float(), cond), t, x, return_dict=False)[0]
        return x

    return run


def measure(device: torch.device, chosen: list[str], steps: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    how = "cuda_graph" if device.type == "cuda" else "compile"
    for name in chosen:
        network = networks()[name]
        for batch in (1, 256):
            model = NetworkDenoiser(network, linear_betas(), "eps").to(device)
            table = ddim(model.schedule, grids.trailing(1000, steps))
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(batch, HORIZON, ACTION, generator=generator).to(device)
            cond = torch.randn(batch, COND, generator=generator).to(device)
            begin = time.perf_counter()
            captured = capture(model, table, x, cond, how=how)  # type: ignore[arg-type]
            captured(x, cond)
            made = time.perf_counter() - begin
            theirs = of_diffusers(network, x, cond, steps)
            found = {
                "diffusers": milliseconds(theirs, device, repeats),
                "eager": milliseconds(lambda: sample(model, table, x, cond), device, repeats),  # noqa: B023
                how: milliseconds(lambda: captured(x, cond), device, repeats),  # noqa: B023
            }
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "steps": steps,
                    "seconds_to_capture": round(made, 2),
                    "largest_difference": float((captured(x, cond) - sample(model, table, x, cond)).abs().max()),
                    **{f"ms_{key}": round(value, 3) for key, value in found.items()},
                    "diffusers_over_captured": round(found["diffusers"] / found[how], 2),
                }
            )
            print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", choices=list(networks()), default=list(networks()))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    command = f"python -m benchmarks.graph_latency --device {device} --networks {' '.join(arguments.networks)} --steps "
    command += f"{arguments.steps} --repeats {arguments.repeats} --out {arguments.out}"
    report = {
        "what": "median wall milliseconds of one DDIM run of a policy-sized network",
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "diffusers": diffusers.__version__,
        "repeats": arguments.repeats,
        "rows": measure(device, arguments.networks, arguments.steps, arguments.repeats),
    }
    results.write_json(arguments.out, report)


if __name__ == "__main__":
    main()
