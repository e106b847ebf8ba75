"""The front door: what a task holds, in a few lines, and mistakes in one."""

import subprocess
import sys

from PIL import Image

from images.config import TaskConfig
from images.data.__main__ import describe


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "images.data", *words], capture_output=True, text=True, timeout=120)


def test_describe_digits():
    lines = describe(TaskConfig("digits", "digits", 8, 1), "test").splitlines()
    assert lines[0].startswith("digits: 500 of scikit-learn's 1797 digits, test")
    assert lines[1].startswith("  1 x 8 x 8, 17 levels; mean 0.30") and lines[2].startswith(
        "  classes: 0 50, 1 51, 2 49"
    )


def test_front_door(tmp_path):
    done = run("task=digits", f"out={tmp_path}/grid.png")
    assert done.returncode == 0, done.stderr
    assert "1297 of" in done.stdout and "500 of" in done.stdout
    assert Image.open(tmp_path / "grid.png").size == (8 * 9 - 1, 8 * 9 - 1)
    done = run("task=folder", f"task.path={tmp_path}/absent")
    assert done.returncode == 2 and done.stderr.startswith("error: task.path: got nothing at")
    assert len(done.stderr.splitlines()) == 1
    done = run("train.steps=3")
    assert done.returncode == 2 and "got train.steps=3; expected task=NAME" in done.stderr
