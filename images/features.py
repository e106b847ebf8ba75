"""Feature networks: small classifiers, trained once and pinned by hash, through which samples are compared with data.

A Fréchet distance is one of features, so it means nothing without the network's name: ``FD[digits-features-v1]``.
Train one with ``python -m images.features task=digits``.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run, launch, options
from diffusion_core.train import TrainConfig, fit
from images.config import TaskConfig
from images.data import sources

logger = logging.getLogger("workbench.images")

PRETRAINED = Path(__file__).parent / "pretrained"
TASKS = Path(__file__).parent / "conf" / "task"
VERSION = "v1"
FEATURES = 64
SHA256 = {
    "digits": "5f1c01af52a5f3c16cd8c3109e8662e22427f069dd403d7ef3c5a9cd1a29852c",
    "mnist": "6cd87b748dfd8989ee1469e5df131c3d3acd8ae9b5fc20a9d7f051976951360a",
    "scenes": "0601f8527cc3aa1ed8cbf09c347407a5aace39b44a8ddb8a171bb26cba08d2c5",
}
"""Of the shipped ``model.safetensors``, by task. Another network is another version, not another hash."""

RECIPES = {
    "digits": {"width": 32, "shift": 1.0, "steps": 600},
    "mnist": {"width": 16, "shift": 1.5, "steps": 2500},
    "scenes": {"width": 16, "shift": 1.0, "steps": 1200},
}
"""Width of the network, largest shift of a training image in pixels, optimizer steps."""


class FeatureNetwork(nn.Module):
    """A classifier of images and, one layer before its end, a map to features.

        features(x) = mean over pixels of the last convolution,    logits(x) = W features(x) + b

    Two convolutions per resolution, from the image's down to 4..7 pixels; group norm, so that an image's features do
    not depend on its batch.

    Args:
        channels, size: of the images.
        n_classes: of the labels.
        width: channels at full resolution; they double with every halving up to `FEATURES`.
        shift: training images are moved by up to this many pixels.
    """

    def __init__(self, channels: int, size: int, n_classes: int, width: int = 32, shift: float = 1.0) -> None:
        super().__init__()
        if size < 4 or width % 8 or n_classes < 2:
            raise WorkbenchError(
                f"feature network: got size={size}, width={width}, n_classes={n_classes}; expected at least 4 pixels, "
                "a width divisible by 8 and two classes."
            )
        self.size, self.n_classes, self.shift = size, n_classes, shift
        halvings = int(math.log2(size / 4))
        widths = [min(width * 2**level, FEATURES) for level in range(halvings + 1)]
        layers: list[nn.Module] = []
        inlet = channels
        for level, outlet in enumerate(widths):
            last = FEATURES if level == halvings else outlet
            layers += [*_convolution(inlet, outlet, 1 if level == 0 else 2), *_convolution(outlet, last, 1)]
            inlet = last
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, n_classes)

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The cross-entropy of each image, moved at random; the training loss."""
        x = _shifted(batch["image"], self.shift * (2.0 * draws.uniform((len(batch["image"]), 2), torch.float32) - 1.0))
        return functional.cross_entropy(self.logits(x), batch["label"], reduction="none")

    def features(self, x: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch 64"]:
        """What images are compared by."""
        return self.body(x).mean((2, 3))

    def logits(self, x: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch classes"]:
        """Unnormalised log-probabilities of the classes."""
        return self.head(self.features(x))


def _convolution(inlet: int, outlet: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inlet, outlet, 3, stride, padding=1), nn.GroupNorm(8, outlet), nn.SiLU()]


def _shifted(x: Float[Tensor, "batch c h w"], pixels: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch c h w"]:
    """Every image moved by its own (horizontal, vertical) number of pixels; what comes in repeats the edge."""
    identity = torch.eye(2, device=x.device).expand(len(x), 2, 2)
    # the grid's unit is half an image
    move = pixels * 2.0 / torch.tensor([x.shape[3], x.shape[2]], device=x.device)
    grid = functional.affine_grid(torch.cat([identity, move[:, :, None]], 2), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, eq=False)
class Extractor:
    """A trained feature network and what is known of it.

    Args:
        id: name that every metric carries, ``<task>-features-v1``.
        network: frozen, in evaluation mode.
        accuracy: on the task's test pictures; printed beside every distance.
        sha256: of its weights.
    """

    id: str
    network: FeatureNetwork
    accuracy: float
    sha256: str

    def features(self, images: Float[Tensor, "n c h w"], batch: int = 500) -> Float[Tensor, "n 64"]:
        """The features alone."""
        return self(images, batch)[0]

    def probabilities(self, images: Float[Tensor, "n c h w"], batch: int = 500) -> Float[Tensor, "n classes"]:
        """The class probabilities alone."""
        return self(images, batch)[1]

    def to(self, device: torch.device | str) -> Extractor:
        """Itself, its network moved to ``device``."""
        self.network.to(device)
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that it judges."""
        first = self.network.body[0]
        assert isinstance(first, nn.Conv2d)
        return first.in_channels, self.network.size, self.network.size

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "n c h w"], batch: int = 500
    ) -> tuple[Float[Tensor, "n 64"], Float[Tensor, "n classes"]]:
        """Features and class probabilities of images in [-1, 1]; values beyond are clipped, as a picture's would be.

        Raises:
            WorkbenchError: images of another shape than the network's, or values that are not finite.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise WorkbenchError(f"{self.id}: got images of {tuple(images.shape[1:])}; expected {self.shape}.")
        if not torch.isfinite(images).all():
            raise WorkbenchError(f"{self.id}: got values that are not finite; expected finite ones: sampling diverged.")
        parts = [self.network.features(part.float().clamp(-1.0, 1.0)) for part in images.split(batch)]
        features = torch.cat(parts)
        return features, self.network.head(features).softmax(1)


def load(task: str, folder: Path | None = None) -> Extractor:
    """The shipped extractor of a task, its weights verified.

    Args:
        task: its name; the checkpoint is ``<folder>/<task>-features``.
        folder: of shipped checkpoints.

    Raises:
        WorkbenchError: none ships for the task, or the file is not the one that was pinned.
    """
    path = (folder or PRETRAINED) / f"{task}-features"
    if task not in SHA256:
        raise WorkbenchError(
            f"features: got task {task}; expected one of {', '.join(SHA256)}, whose feature networks ship: train one "
            f"with python -m images.features task={task}."
        )
    saved = checkpoint.load(path).require("images", task)
    found = digest(path)
    if found != SHA256[task]:
        raise WorkbenchError(
            f"features: {path} has weights of sha256 {found}; expected {SHA256[task]}: metrics would not compare with "
            "others: restore the shipped file."
        )
    return restore(saved)


def restore(saved: Checkpoint) -> Extractor:
    """The extractor in a checkpoint that `train` wrote, whatever its hash."""
    network = FeatureNetwork(**saved.config["network"])
    checkpoint.fill(network, saved.tensors("model"), saved.path)
    network.requires_grad_(False).eval()
    accuracy, name = float(saved.meta["accuracy"]), str(saved.meta["extractor"])
    return Extractor(name, network, accuracy, digest(saved.path))


def digest(path: Path) -> str:
    """The sha256 of a checkpoint's weights."""
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def accuracy(network: FeatureNetwork, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> float:
    """Share of images whose class the network names."""
    with torch.no_grad():
        found = torch.cat([network.logits(part).argmax(1) for part in images.split(500)])
    return float((found == labels).double().mean())


def train(task: TaskConfig, run: Run, config: TrainConfig | None = None, seed: int = 0) -> Path:
    """Train the feature network of ``task`` and write its checkpoint to ``run``'s folder, accuracy in its meta.

    Returns:
        The checkpoint's folder, ``<run>/<task>-features``.

    Raises:
        WorkbenchError: the task has no classes.
    """
    recipe = RECIPES.get(task.name, {"width": 16, "shift": 1.0, "steps": 800})
    training, test = sources.load(task, "train"), sources.load(task, "test")
    if training.n_classes < 2:
        raise WorkbenchError(f"features: task {task.name} has {training.n_classes} classes; expected at least two.")
    config = config or TrainConfig(
        steps=int(recipe["steps"]),
        batch_size=128,
        learning_rate=3e-3,
        betas=[0.9, 0.99],
        weight_decay=0.05,
        warmup_steps=50,
        checkpoint_every=0,
        seed=seed,
        threads=1,
    )
    keywords = {
        "channels": task.channels,
        "size": task.size,
        "n_classes": training.n_classes,
        "width": int(recipe["width"]),
        "shift": float(recipe["shift"]),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = FeatureNetwork(**keywords)  # type: ignore[arg-type]
    about: dict[str, Any] = {
        "domain": "images",
        "task": task.name,
        "data": training.provenance,
        "commit": results.commit(),
    }
    saved = {"network": keywords, "task": OmegaConf.to_container(OmegaConf.structured(task))}
    average = fit(network, training, config, run, saved_config=saved, meta=about, device="cpu")
    assert isinstance(average, FeatureNetwork)
    found = accuracy(average, test.images(), test.labels)
    about |= {
        "extractor": f"{task.name}-features-{VERSION}",
        "accuracy": found,
        "n_test": len(test),
        "seed": config.seed,
    }
    written = checkpoint.save(run.path, config.steps, {"model": average.state_dict()}, saved, about)
    final = written.rename(run.path / f"{task.name}-features")
    logger.info("%s: test accuracy %.4f, sha256 %s", final, found, digest(final))
    return final


def main() -> None:
    """``python -m images.features task=digits [runs=FOLDER]``: train, and say where the checkpoint is."""
    words = options("features", {"task": "", "runs": "runs", "seed": "0"})
    there = sorted(p.stem for p in TASKS.glob("*.yaml"))
    if words["task"] not in there:
        raise WorkbenchError(f"features: got task={words['task']}; expected task=NAME of {', '.join(there)}.")
    if not words["seed"].isdecimal():
        raise WorkbenchError(f"seed: got {words['seed']}; expected a number, at least 0.")
    values = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(TASKS / f"{words['task']}.yaml"))
    task = OmegaConf.to_object(values)
    assert isinstance(task, TaskConfig)
    train(task, Run.create(Path(words["runs"]), f"features-{task.name}"), seed=int(words["seed"]))


if __name__ == "__main__":
    launch(main)
