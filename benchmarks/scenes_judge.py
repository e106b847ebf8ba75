"""How well, and how fast, the judge of the captioned world reads renders whose scenes are known.

    python -m benchmarks.scenes_judge --out benchmarks/results/scenes_judge.json

Clean renders, renders with noise of standard deviation 0.1, and renders blurred by a Gaussian of 0.7 pixels, of every
tier at every size. Tiers 2 and 3 have two shapes more than tier 1. A shuffled list of statements shows what chance
scores. Speeds are of the process's CPU on one thread, the making of the templates not counted.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from diffusion_core import results
from images.scenes.judge import agreement, classes, read
from images.scenes.render import pictures
from images.scenes.scene import draw

TIERS, SIZES = (1, 2, 3), (16, 32, 64)
NOISE, BLUR = 0.1, 0.7


def damaged(images: Tensor, how: str, seed: int) -> Tensor:
    if how == "noise":
        return images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    if how == "blur":
        reach = torch.arange(-3.0, 4.0)
        kernel = torch.softmax(-reach.square() / (2 * BLUR**2), 0)
        kernel = (kernel[:, None] * kernel).expand(3, 1, 7, 7)
        return conv2d(pad(images, (3,) * 4, mode="replicate"), kernel, groups=3)
    return images


def measure(n: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for tier in TIERS:
        scenes = draw(n, torch.Generator().manual_seed(seed + tier), tier)
        spec = scenes.spec()
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        for size in SIZES:
            start = time.process_time()
            clean = pictures(scenes, size)
            rendered = n / (time.process_time() - start)
            for how in ("clean", "noise", "blur"):
                images = damaged(clean, how, seed)
                read(images[:64], tier)
                start = time.process_time()
                reading = read(images, tier)
                speed = n / (time.process_time() - start)
                found = agreement(reading, spec)
                right = int(found["all"].sum())
                row: dict[str, Any] = {"tier": tier, "size": size, "pictures": how, "n": n}
                row["all"] = asdict(results.rate(right, n))
                row["attributes"] = {name: round(float(x.float().mean()), 5) for name, x in found.items()}
                shuffled = agreement(reading, spec.take(order))
                row["shuffled"] = {name: round(float(x.float().mean()), 5) for name, x in shuffled.items()}
                if tier == 1:
                    row["classes_right"] = float((classes(reading) == scenes.labels()).float().mean())
                row |= {"read_per_s": round(speed), "rendered_per_s": round(rendered)}
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scenes_judge.json"))
    parser.add_argument("--n", type=int, default=5000, help="scenes of each tier")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.n, arguments.seed)
    report = {
        "what": "share of renders that the judge reads right, by attribute, and pictures a second on one thread",
        "command": f"python -m benchmarks.scenes_judge --n {arguments.n} --seed {arguments.seed} --out {arguments.out}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "seed": arguments.seed,
        "noise": NOISE,
        "blur_px": BLUR,
        "rows": rows,
    }
    results.write_json(arguments.out, report)
    for row in rows:
        shares = "  ".join(f"{name} {share:.4f}" for name, share in row["attributes"].items())
        print(f"tier {row['tier']} {row['size']:3} px {row['pictures']:6} {shares}  {row['read_per_s']}/s")


if __name__ == "__main__":
    main()
