"""Sources: the demonstrations a run can name, where they are, and the proof that they are what they say.

`expert` ships with the project; `human` are the 206 published demonstrations; anything else is a path. One is never
put in the place of another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.download import cache, content_sha256, file_sha256, put_aside, retrieve
from diffusion_core.errors import WorkbenchError
from policy.data import forms
from policy.data.replay import ReplayBuffer

log = logging.getLogger(__name__)

SHAPES = {"action": (2,), "state": (5,), "keypoint": (9, 2), "n_contacts": (1,), "img": (96, 96, 3)}
"""Of the published Push-T demonstrations."""

EXPERT = Path(__file__).with_name("pusht_expert.zarr.zip")
HUMAN_URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
HUMAN_ARCHIVE = "pusht.zip"
# Of the two files as this project's measurements used them (WORKBENCH_DATA), smallest first.
HUMAN_SHA256 = {
    "pusht_cchi_v7_replay_lowdim.zarr.zip": "dad2dfde9cb7f9f96393a227d013e09e9f62138260517d83979130bf62b57fac",
    "pusht_cchi_v7_replay.zarr.zip": "53c2414fb1d864248dfe0f05ddf70a211b96b6d3f10c4810ad077e12443ca40a",
}
# `content_sha256` of the decoded arrays of those files, images as bytes.
HUMAN_LOW_DIM = "e29335ff7e8b954146ae3da46b8c5d416f7c6b0528cba667282d0ab1e4ee994c"
HUMAN_IMAGES = "ebc19118eb1ea62caafca6b32eab1e85cfae5e06597f6a11208e4f0dfd630377"

ABOUT = {
    "expert": (
        "demonstrations of this project's scripted Push-T expert, shipped with it; made by "
        "`python -m policy.data generate`, low-dimensional only"
    ),
    "human": (
        "206 human Push-T demonstrations at 10 Hz of Chi et al. 2023, Diffusion Policy (arXiv 2303.04137), MIT "
        "licence, (c) 2023 Columbia Artificial Intelligence and Robotics Lab; they stop near a coverage of 0.90, "
        "below the 0.95 that counts as success"
    ),
}


@dataclass(frozen=True)
class Located:
    """A file on this machine, its sha256, and whether its images have still to be compared with the known ones."""

    path: Path
    sha256: str
    check_images: bool = False


def load(
    source: str,
    reads: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    download: bool = True,
    filter_key: str = "",
) -> tuple[ReplayBuffer, str]:
    """Load what a policy needs of a store, and `action`, validated; `img` is kept as bytes.

    Args:
        source: "expert", "human" or the path of a store.
        reads: the arrays that observations are made of.
        shapes: what one step of an array must look like.
        download: fetch the human demonstrations when this machine has none.
        filter_key: robomimic's, of the demonstrations to use; empty: all.

    Returns:
        The buffer, and one line for the config, log and report: source, episodes, steps, file name, sha256.

    Raises:
        WorkbenchError: the source is not there, fails its checksum, is damaged, or lacks the arrays.
    """
    keys = ("action", *(key for key in reads if key != "action"))
    images = "img" in keys
    located = locate(source, images, download)
    held = set(forms.describe(located.path)[1])
    if missing := [k for k in keys if k not in held]:
        remedy = "make one of this task with policy.data generate task=..."
        if "img" in missing:
            remedy = "use source human (or generate with images=true)"
        raise WorkbenchError(
            f"{source} ({located.path}): got a store without {', '.join(missing)}; expected {', '.join(keys)}, which "
            f"this task's observations are made of: {remedy}, or another task."
        )
    buffer = ReplayBuffer.load(located.path, keys, shapes, ("img",) if images else (), filter_key=filter_key or None)
    if located.check_images and images:
        _check_images(buffer, located.path)
    digest = located.sha256 or "of content " + content_sha256(buffer.arrays | {"episode_ends": buffer.episode_ends})
    # the file's name and not its path: this line travels in checkpoints and reports to other machines
    name = source if source in ABOUT else "file"
    name += f", {filter_key}" if filter_key else ""
    line = f"{name}: {buffer.n_episodes} episodes, {buffer.n_steps} steps, {located.path.name}, sha256 {digest}"
    log.info("read %s", located.path)
    return ReplayBuffer(buffer.arrays, buffer.episode_ends, source, buffer.attributes), line


def locate(source: str, images: bool, download: bool = True) -> Located:
    """Find the file of a source.

    Args:
        source: "expert", "human" or a path.
        images, download: for "human", see `fetch_human`.

    Raises:
        WorkbenchError: nothing is there.
    """
    if source == "human":
        return fetch_human(images, download)
    path = EXPERT if source == "expert" else Path(source).expanduser()
    if not path.exists():
        remedy = (
            f"make it with python -m policy.data generate out={path}, or reinstall the project"
            if source == "expert"
            else "name expert, human or the path of a store"
        )
        raise WorkbenchError(f"demonstrations {source!r}: got nothing at {path}; expected a replay store: {remedy}.")
    return Located(path, "" if path.is_dir() else file_sha256(path))


def fetch_human(images: bool, download: bool = True, progress: bool = False) -> Located:
    """Find the human demonstrations, or download and verify them.

    Looked for in `$WORKBENCH_DATA/policy/` (either file; the one without images only when none are asked), where files
    must have their known sha256, and then in the user's cache. The public archive is downloaded from its authors; the
    sha256 of that zip is not known to us, so its *content* is compared instead: the decoded arrays must have the
    digests of the arrays we know, which also makes a re-zipped copy acceptable and a changed number not; `load`
    compares the images when they are used. A file in the cache that fails is renamed to `<name>.bad-<sha256 begins>`,
    neither used nor deleted; one in `$WORKBENCH_DATA` is left where it is.

    Args:
        images: whether images are needed.
        download: whether to go to the network when nothing is found.
        progress: draw a progress bar while downloading.

    Raises:
        WorkbenchError: nothing found and nothing downloaded, or a file that is not what it should be.
    """
    staged = [n for n in HUMAN_SHA256 if not images or "lowdim" not in n]
    looked = []
    if root := os.environ.get("WORKBENCH_DATA"):
        looked = [Path(root).expanduser() / "policy" / n for n in staged]
    for path in looked:
        if path.exists():
            got = file_sha256(path)
            if got != HUMAN_SHA256[path.name]:
                raise WorkbenchError(
                    f"{path}: got sha256 {got}; expected {HUMAN_SHA256[path.name]}: the file is left as it is and not "
                    f"used; replace it, or move it away and run python -m policy.data fetch human."
                )
            return Located(path, got)
    cached = cache("policy") / HUMAN_ARCHIVE
    if not cached.exists():
        where = ", ".join(map(str, [*looked, cached])) + ("" if root else " (WORKBENCH_DATA is not set)")
        if not download:
            raise _not_found(where, "not asked to download")
        try:
            retrieve(HUMAN_URL, cached, "the human demonstrations", progress)
        except Exception as error:  # requests, urllib3 and the disk have each their own
            raise _not_found(where, f"the download failed: {type(error).__name__}") from error
    _check_content(cached)
    return Located(cached, file_sha256(cached), check_images=True)


def _check_content(path: Path) -> None:
    keys = [k for k in SHAPES if k != "img"]
    try:
        buffer = ReplayBuffer.load(path, keys, SHAPES)
    except WorkbenchError as error:
        raise WorkbenchError(f"{error} The file was {put_aside(path)}.") from error
    _compare(path, "arrays", content_sha256(buffer.arrays | {"episode_ends": buffer.episode_ends}), HUMAN_LOW_DIM)


def _check_images(buffer: ReplayBuffer, path: Path) -> None:
    _compare(path, "images", content_sha256({"img": buffer.arrays["img"]}), HUMAN_IMAGES)


def _compare(path: Path, what: str, got: str, expected: str) -> None:
    if got != expected:
        raise WorkbenchError(
            f"{path}: got {what} of content sha256 {got}; expected {expected}: these are not the published "
            f"demonstrations; the file was {put_aside(path)}; run python -m policy.data fetch human again."
        )


def _not_found(looked: str, why: str) -> WorkbenchError:
    return WorkbenchError(
        f"human demonstrations: got none at {looked}, and {why}; expected them there or at {HUMAN_URL}: run "
        "python -m policy.data fetch human where there is a network, or set WORKBENCH_DATA."
    )
