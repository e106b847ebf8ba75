"""Small replay stores for the tests, and ways to harm them."""

import zipfile
from pathlib import Path

import numpy as np

from policy.data.replay import ReplayBuffer

LENGTHS = [7, 12, 3, 20, 9]
N_STEPS = sum(LENGTHS)


def small_buffer(images: bool = False, seed: int = 0) -> ReplayBuffer:
    """Five episodes, 51 steps, with arrays as Push-T has them."""
    rng = np.random.default_rng(seed)
    arrays = {
        "action": rng.uniform(0, 512, (N_STEPS, 2)).astype(np.float32),
        "state": rng.uniform(0, 512, (N_STEPS, 5)).astype(np.float32),
        "keypoint": rng.uniform(0, 512, (N_STEPS, 9, 2)).astype(np.float32),
        "n_contacts": rng.integers(0, 3, (N_STEPS, 1)).astype(np.float32),
    }
    if images:
        arrays["img"] = rng.integers(0, 256, (N_STEPS, 96, 96, 3)).astype(np.uint8)
    return ReplayBuffer(arrays, np.cumsum(LENGTHS), attributes={"made": "for a test", "seeds": [1, 2]})


def zip_folder(folder: Path, target: Path, inside: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    """Zip a store directory, its root at `inside` (empty, or ending in a slash)."""
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, inside + path.relative_to(folder).as_posix())
    return target
