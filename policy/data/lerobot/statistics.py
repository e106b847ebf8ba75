"""Statistics that LeRobot keeps of every feature: min, max, mean, std, count and quantiles."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped, UInt8

from policy.data.lerobot.layout import is_image

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def statistics(values: Shaped[np.ndarray, "steps ..."]) -> dict[str, np.ndarray]:
    """Describe the steps of an array, exactly where LeRobot estimates from histograms or from some of the images.

    Returns:
        Of an image array, statistics (3, 1, 1) of each colour in [0, 1] over all pixels and steps; of others, those
        over the steps in the shape of one step, at least (1,). `count` (1,) is the number of steps.
    """
    found = _of_images(values) if is_image(values) else _of_steps(values)
    return found | {"count": np.array([len(values)], np.int64)}


def _of_steps(values: np.ndarray) -> dict[str, np.ndarray]:
    wide = values.reshape(len(values), *(values.shape[1:] or (1,))).astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    found = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    return found | dict(zip(QUANTILES, quantiles, strict=True))


def _of_images(values: UInt8[np.ndarray, "steps height width 3"]) -> dict[str, np.ndarray]:
    counts = np.stack([sum(np.bincount(image[..., c].ravel(), minlength=256) for image in values) for c in range(3)])
    level = np.arange(256) / 255.0
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ level
    below = np.cumsum(share, axis=1)
    found = {
        "min": level[(counts > 0).argmax(1)],
        "max": level[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((share * (level - mean[:, None]) ** 2).sum(1)),
    }
    # 1e-12: the sum of shares may miss a quantile by rounding
    found |= {name: level[(below >= q - 1e-12).argmax(1)] for name, q in QUANTILES.items()}
    return {name: of.reshape(3, 1, 1) for name, of in found.items()}
