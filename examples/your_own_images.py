"""Train on a folder of your own images and draw new ones: ``python examples/your_own_images.py FOLDER OUT``.

Sub-folders name the classes (``task.labels=none``: there are none). Further words are those of
``python -m images.train``, such as ``task.size=64 preset=gpu``.
"""

import sys

from diffusion_core.run import launch
from images import sample, train
from images.config import SampleConfig, configuration


def main(folder: str = "", out: str = "runs/your-own-images", *words: str) -> None:
    run = train.run(configuration(["task=folder", f"task.path={folder}", "system=conditional", *words]))
    sample.run(SampleConfig(checkpoint=str(run), n=16, out=out))


if __name__ == "__main__":
    launch(lambda: main(*sys.argv[1:]))
