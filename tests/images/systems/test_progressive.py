"""Progressive distillation: begins as its teacher, learns its two steps, and stands alone in its checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core import checkpoint, grid
from diffusion_core.distill.progressive import progressive_loss
from diffusion_core.errors import WorkbenchError
from images import train
from images.config import configuration
from images.model import find, restore
from images.systems import System
from images.systems.autoencoder import Autoencoder
from images.systems.progressive import Progressive
from tests.images.conftest import SMOKE
from tests.images.systems.students import LABELS, PARTS, batch, built, draws, fall, noise, shaken, teacher, ways


def student(parent: System, steps: int) -> Progressive:
    found = built(Progressive, parent, steps=steps)
    assert isinstance(found, Progressive)
    return found


def test_it_begins_as_its_teacher_in_half_of_the_steps():
    parent = teacher()
    begun = student(parent, 4)
    shaken(parent, seed=2)  # weights arrive after construction
    begun.begin()
    expected = parent.sample(LABELS, noise(), ways(4))
    # whatever is asked for: a student has its own steps, and no guidance
    drawn = begun.sample(LABELS, noise(), replace(ways(9), guidance_scale=3.0))
    torch.testing.assert_close(drawn, expected, atol=0.0, rtol=0.0)


def test_the_student_of_a_student_learns_from_it_and_not_from_the_first_teacher():
    first = student(teacher(), 4)
    shaken(first.student, seed=5)
    second = student(first, 2)
    second.begin()
    assert second.teacher is first.student
    expected = first.student.sample(LABELS, noise(), ways(2))
    torch.testing.assert_close(second.sample(LABELS, noise(), ways(1)), expected, atol=0.0, rtol=0.0)


def test_its_loss_is_the_core_s_of_the_steps_of_the_teacher_s_grid():
    parent, data = teacher(), batch()
    begun = student(parent, 4)
    shaken(begun.student, seed=7)
    label = {"label": data["label"]}
    pair = (begun.student.denoiser, parent.denoiser)
    expected = progressive_loss(*pair, data["image"], label, draws(), grid.uniform(8))
    torch.testing.assert_close(begun(data, draws()), expected, atol=0.0, rtol=0.0)


def test_only_the_student_learns_and_its_loss_falls():
    begun = student(teacher(), 1)
    begun.begin()
    before, after = fall(begun, 40, 3e-3)
    assert after < 0.5 * before
    assert all(p.grad is None for p in begun.parent.parameters())
    assert all(p.grad is not None for p in begun.student.denoiser.network.parameters())


def test_what_the_teacher_predicts_the_student_predicts():
    # the student's own configuration says v
    begun = student(teacher("x0"), 4)
    assert begun.student.denoiser.prediction == "x0"


def check_refused(message: str, parent: System | Autoencoder | None, steps: int) -> None:
    with pytest.raises(WorkbenchError, match=message):
        built(Progressive, parent, steps=steps)


def test_wrong_parents_and_steps_are_refused():
    check_refused("steps: got 0", teacher(), 0)
    check_refused("parent: got none", None, 4)
    check_refused("parent: got Autoencoder", Autoencoder(PARTS, widths=(8, 16)), 4)
    check_refused("got 3 after a student of 4; expected half", student(teacher(), 4), 3)


def test_trained_through_the_program_it_needs_no_teacher_any_more(trained, tmp_path):
    taken = tmp_path / "teacher"
    shutil.copytree(trained, taken)
    words = [*SMOKE, "system=progressive", "system.steps=2", "train.steps=2", f"runs={tmp_path}", f"parent={taken}"]
    config = configuration([*words, "evaluation.n=12", "evaluation.batch=12"])
    here = train.run(config)
    begun, _ = restore(find(str(here)))
    original, _ = restore(find(str(taken)))
    shutil.rmtree(taken)
    again, _ = restore(checkpoint.find(here))
    assert isinstance(begun, Progressive) and isinstance(again, Progressive)

    def weights(module: torch.nn.Module) -> Tensor:
        return torch.cat([p.flatten() for p in module.parameters()])

    assert torch.equal(weights(again.parent), weights(original))
    # two steps away from the teacher, not from a new network
    moved = (weights(again.student) - weights(original)).abs().max()
    assert 0.0 < moved < 0.01
    torch.testing.assert_close(again.sample(LABELS, noise(), ways(1)), begun.sample(LABELS, noise(), ways(1)))
