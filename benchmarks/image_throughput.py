"""Images per second against diffusers' DDIMPipeline, the same trained network in both, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.image_throughput --out benchmarks/results/image_throughput.json

The network is `UNet2d` with the weights of ``pretrained/digits-ddpm``; diffusers gets it behind the interface of its
own U-Net, which costs a few attribute look-ups a step. Both draw 8x8 images with the same DDIM on the same 50 of 1,000
steps from the same noise and return numpy arrays; the runs alternate, and what is compared are neighbours in time.
With ``--compiled`` also the whole loop as one CUDA graph or compiled function (`diffusion_core.capture`), and their
pipeline with its network compiled. On a GPU: ``--device cuda --compiled``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from diffusion_core import grid, results
from diffusion_core.capture import capture
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.sample import sample
from diffusion_core.solvers import ddim
from images.model import find, restore
from images.systems.diffusion import Diffusion

STEPS, N_TRAIN = 50, 1000
BATCHES = (1, 4, 16, 64, 256)


class Behind(nn.Module):
    """A network behind the interface of diffusers' UNet2DModel."""

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.config = SimpleNamespace(in_channels=shape[0], sample_size=shape[1])
        self.dtype = torch.float32
        self.device = next(network.parameters()).device

    def forward(self, x: Tensor, step: Tensor) -> SimpleNamespace:
        t = (step.to(x.device, torch.float32) + 1.0) / N_TRAIN
        return SimpleNamespace(sample=self.network(x, t.expand(x.shape[0]), None))


def theirs(network: nn.Module, shape: tuple[int, int, int], device: torch.device) -> Callable[[int, int], np.ndarray]:
    """``run(batch, seed) -> images`` by diffusers' pipeline."""
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=N_TRAIN, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    pipeline = diffusers.DDIMPipeline(Behind(network, shape), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def run(batch: int, seed: int) -> np.ndarray:
        generator = torch.Generator(device).manual_seed(seed)
        return pipeline(batch, generator, num_inference_steps=STEPS, output_type="np").images

    return run


def ours(
    denoiser: NetworkDenoiser, shape: tuple[int, int, int], device: torch.device, how: str | None = None
) -> Callable[[int, int], np.ndarray]:
    """``run(batch, seed) -> images`` by the loop, or by its recording."""
    table = ddim(denoiser.schedule, grid.trailing(N_TRAIN, STEPS))
    recorded: dict[int, Any] = {}

    @torch.no_grad()
    def run(batch: int, seed: int) -> np.ndarray:
        x = torch.randn((batch, *shape), generator=torch.Generator(device).manual_seed(seed), device=device)
        if how is None:
            x0 = sample(denoiser, table, x)
        else:
            if batch not in recorded:
                recorded[batch] = capture(denoiser, table, x, how=how)  # type: ignore[arg-type]
            x0 = recorded[batch](x)
        return (x0 / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()

    return run


def measure(device: torch.device, batches: tuple[int, ...], repeats: int, compiled: bool) -> list[dict[str, Any]]:
    """Rows of images per second, ratio and largest difference, for each batch size."""
    system, _ = restore(find("pretrained/digits-ddpm"))
    assert isinstance(system, Diffusion)
    network = system.denoiser.network.to(device)
    # without the bound: the two clip differently
    denoiser = NetworkDenoiser(network, system.denoiser.schedule, system.denoiser.prediction)
    ways = {"ours": ours(denoiser, system.shape, device), "diffusers": theirs(network, system.shape, device)}
    if compiled:
        how = "cuda_graph" if device.type == "cuda" else "compile"
        ways[f"ours, {how}"] = ours(denoiser, system.shape, device, how)
        ways["diffusers, network compiled"] = theirs(torch.compile(network), system.shape, device)
    rows = []
    for batch in batches:
        images = {name: run(batch, 1) for name, run in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats):
            # in turn, and every other time in the other order, so that a slow moment hits all alike
            for name in list(ways)[:: 1 if repeat % 2 else -1]:
                begin = time.perf_counter()
                ways[name](batch, repeat)
                seconds[name].append(time.perf_counter() - begin)
        # the ratio of neighbours in time, not of medians
        pairs = zip(seconds["diffusers"], seconds["ours"], strict=True)
        rows.append(
            {
                "batch": batch,
                "images_per_second": {name: batch / statistics.median(s) for name, s in seconds.items()},
                "ratio": results.mean([theirs_s / ours_s for theirs_s, ours_s in pairs]),
                "largest_difference": {
                    name: float(np.abs(found - images["diffusers"]).max()) for name, found in images.items()
                },
            }
        )
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compiled", action="store_true", help="also the compiled loops; minutes to compile on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rows = measure(device, tuple(options.batches), options.repeats, options.compiled)
    results.write_json(
        options.out,
        {
            "what": f"{STEPS} DDIM steps of the network of pretrained/digits-ddpm, 8x8 images",
            "command": f"python -m benchmarks.image_throughput --out {options.out} --device {options.device}",
            "rows": rows,
            "repeats": options.repeats,
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
            "commit": results.commit(),
            "hardware": results.hardware(),
        },
    )


if __name__ == "__main__":
    main()
