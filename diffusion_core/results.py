"""Numbers that can be trusted: estimates with intervals, and files that say where they come from."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.durable import write_text


@dataclass(frozen=True)
class Estimate:
    """A measured quantity.

    Args:
        value: the estimate.
        stderr: its standard error; 0 where n is 1.
        low, high: 95 % confidence interval.
        n: how many independent samples it rests on.
        unit: physical unit, or "1" for a ratio.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    unit: str = "1"

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        if self.n < 2:
            return "none" if self.n == 0 else f"{self.value:.3g}{unit}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]{unit}"


def mean(values: Sequence[float], unit: str = "1", resamples: int = 10_000) -> Estimate:
    """Mean with a percentile bootstrap interval.

    Source: Efron & Tibshirani 1993, section 13.3. The resampling is seeded: the same values give the same
    interval.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, unit)
    picks = np.random.default_rng(0).integers(len(x), size=(resamples, len(x)))
    # one sample says nothing of its spread
    low, high = np.percentile(x[picks].mean(1), [2.5, 97.5]) if len(x) > 1 else (math.nan, math.nan)
    stderr = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0
    return Estimate(float(x.mean()), stderr, float(low), float(high), len(x), unit)


def rate(successes: int, n: int) -> Estimate:
    """A success rate with Wilson's score interval. Source: Wilson 1927 (doi 10.2307/2276774)."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, math.sqrt(p * (1 - p) / n), max(centre - half, 0.0), min(centre + half, 1.0), n)


def quantile(values: Sequence[float], q: float, unit: str) -> Estimate:
    """The q-quantile with a distribution-free interval from order statistics (binomial, normal approximation)."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, unit)
    half = 1.96 * math.sqrt(n * q * (1 - q))
    low = x[max(math.floor(n * q - half), 0)]
    high = x[min(math.ceil(n * q + half), n - 1)]
    return Estimate(float(np.quantile(x, q)), float((high - low) / 3.92), float(low), float(high), n, unit)


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The project's git commit, with ``+`` where the tree has changes; ``unknown`` outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return "unknown"
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, completely or not at all; `Estimate` becomes a dictionary, NaN and infinity null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
