"""FID proper: the Fréchet distance in Inception's features, and in no others.

The network of 2015 is not ours and does not ship with the project. Without its very weights there is no FID: nothing
is put in its place, and a distance in other features has another name, `images.metrics.measure`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from images.data.pictures import to_bytes
from images.metrics.distance import frechet_distance

NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
VARIABLE = "WORKBENCH_INCEPTION"


def fid(
    a: Float[Tensor, "n channels height width"],
    b: Float[Tensor, "m channels height width"],
    weights: Path | None = None,
    resamples: int = 5,
    batch: int = 50,
) -> Estimate:
    """Estimate the Fréchet Inception distance between two sets of images.

    Their 2,048 features are torch-fidelity's, which reproduces the original network and its way to resize; the
    distance and its error are `frechet_distance`. Published values use 50,000 samples: fewer bias it upwards, and
    below 2,048 the covariances are singular.

    Args:
        a, b: images in [-1, 1], grey or colour; values beyond are clipped and all rounded to bytes, as files are.
        weights: file of the network; default: what the environment variable WORKBENCH_INCEPTION names.
        resamples: bootstrap draws; each takes seconds with so many features.
        batch: images at once; changes speed only.

    Raises:
        WorkbenchError: the weights or torch-fidelity are not there, or the file is not the published one.

    Source: Heusel et al. 2017 (arXiv 1706.08500); Obukhov et al. 2020 (torch-fidelity, doi 10.5281/zenodo.4957738).
    """
    path = verified(weights)
    network = extractor(path)
    clouds = [inception_features(network, images, batch) for images in (a, b)]
    return frechet_distance(clouds[0], clouds[1], resamples)


def verified(weights: Path | None = None) -> Path:
    """The file of Inception's weights, its hash checked.

    Raises:
        WorkbenchError: there is none, or it is another file.
    """
    named = weights or os.environ.get(VARIABLE)
    how = f"download {URL} and name the file with {VARIABLE}=PATH"
    if not named:
        raise WorkbenchError(f"FID: got no weights of Inception; expected {NAME}, which does not ship: {how}.")
    path = Path(named)
    if not path.is_file():
        raise WorkbenchError(f"FID: got {path}, which is no file; expected {NAME}: {how}.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    # the library unpickles the file: only the published one may get that far
    if found != SHA256:
        raise WorkbenchError(f"FID: got {path} of sha256 {found}; expected {NAME} of sha256 {SHA256}: {how}.")
    return path


def extractor(path: Path) -> Any:
    """torch-fidelity's Inception with the weights in ``path``, which must be `verified`.

    Raises:
        WorkbenchError: torch-fidelity cannot be imported.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    # torchvision, which it imports, raises RuntimeError when it was built for another torch
    except (ImportError, RuntimeError) as error:
        raise WorkbenchError(
            f"FID: torch-fidelity cannot be imported ({' '.join(str(error).split())}); expected it and a torchvision "
            "built for this torch: pip install diffusion-workbench[fid]."
        ) from error
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))


@torch.no_grad()
def inception_features(
    network: Any, images: Float[Tensor, "n channels height width"], batch: int
) -> Float32[Tensor, "n features"]:
    """The last pooled layer of Inception for images in [-1, 1]; grey ones are shown as colour.

    Raises:
        WorkbenchError: neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise WorkbenchError(f"FID: got {images.shape[1]} channels; expected 1 or 3: decode latents first.")
    pixels = to_bytes(images).expand(-1, 3, -1, -1)
    return torch.cat([network(part)[0] for part in pixels.split(batch)])
