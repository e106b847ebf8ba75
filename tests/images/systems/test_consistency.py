"""Consistency models: their jump, who teaches them, and what is refused."""

from __future__ import annotations

import pytest
import torch

from diffusion_core import experts
from diffusion_core.distill.consistency import (
    consistency_distillation,
    consistency_function,
    consistency_training,
    ddim_step,
    discretisation,
    inverse_gap,
    lognormal_neighbours,
    pseudo_huber,
)
from diffusion_core.errors import WorkbenchError
from images.systems.autoencoder import Autoencoder
from images.systems.consistency import START, T_MIN, Consistency
from images.systems.diffusion import Diffusion
from tests.images.systems.students import LABELS, PARTS, batch, built, draws, noise, shaken, teacher, ways


def model(parent: Diffusion | None, how: str = "distillation", levels: int = 8) -> Consistency:
    found = built(Consistency, parent, how=how, levels=levels)
    assert isinstance(found, Consistency)
    found.begin()
    return found


def test_before_training_it_jumps_where_the_teacher_jumps():
    parent = teacher()
    source = noise()
    z = source.normal((4, 1, 8, 8), torch.float32, torch.device("cpu"))
    x = experts.start(parent.denoiser, z, START)
    with torch.no_grad():
        expected = parent.denoiser.bind(torch.tensor([START]).double(), {"label": LABELS})(x, 0)
    torch.testing.assert_close(model(parent).sample(LABELS, noise(), ways(1)), expected, atol=1e-6, rtol=0.0)


def test_two_steps_noise_the_first_answer_half_way_and_answer_again():
    student = model(teacher())
    source = noise()
    denoiser, cond = student.student.denoiser, {"label": LABELS}
    times = torch.tensor([START, 0.5 * START], dtype=torch.float64)
    x = experts.start(denoiser, source.normal((4, 1, 8, 8), torch.float32, torch.device("cpu")), START)
    evaluate = denoiser.bind(times, cond)
    with torch.no_grad():
        first = evaluate(x, 0)
        z = source.normal((4, 1, 8, 8), torch.float32, torch.device("cpu"))
        alpha, sigma = (float(f(times[1:])) for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
        expected = evaluate(alpha * first + sigma * z, 1)
    torch.testing.assert_close(student.sample(LABELS, noise(), ways(2)), expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("how", ["distillation", "training"])
def test_its_loss_is_the_core_s(how):
    parent, data = teacher(), batch()
    student = model(parent, how)
    shaken(student.student, seed=4)
    ours, cond = student.student.denoiser, {"label": data["label"]}
    times = discretisation(ours.schedule, 8, START, T_MIN)
    if how == "training":
        expected = consistency_training(ours, data["image"], cond, draws(), times)
    else:
        step = ddim_step(parent.denoiser)
        expected = consistency_distillation(
            ours, step, data["image"], cond, draws(), times, None, lognormal_neighbours, pseudo_huber, inverse_gap
        )
    torch.testing.assert_close(student(data, draws()), expected, atol=0.0, rtol=0.0)


def test_where_sampling_begins_neighbours_have_weight():
    schedule = model(teacher()).student.denoiser.schedule
    times = discretisation(schedule, 8, START, T_MIN)
    assert float(times[0]) == pytest.approx(START) and float(times[-1]) == pytest.approx(T_MIN)
    assert (inverse_gap(schedule, times[:-1], times[1:]) > 0.0).all()


def test_training_asks_no_teacher():
    data = batch()
    with_parent, alone = model(teacher(), "training"), model(None, "training")
    assert alone.parent is None
    alone.student.load_state_dict(with_parent.student.state_dict())
    losses = alone(data, draws())
    shaken(with_parent.parent, seed=9)  # type: ignore[arg-type]
    torch.testing.assert_close(with_parent(data, draws()), losses, atol=0.0, rtol=0.0)
    # and distillation does
    distilled = model(teacher())
    before = distilled(data, draws())
    shaken(distilled.parent, seed=9)  # type: ignore[arg-type]
    assert (distilled(data, draws()) - before).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["distillation", "training"])
def test_only_the_student_learns(how):
    student = model(teacher(), how)
    student(batch(), draws()).sum().backward()
    assert student.parent is not None and all(p.grad is None for p in student.parent.parameters())
    assert sum(float(p.grad.abs().sum()) for p in student.student.parameters() if p.grad is not None) > 0.0


def test_of_one_image_the_loss_falls():
    student, image = model(None, "training", levels=4), batch()["image"][:1]
    data = {"image": image.expand(16, -1, -1, -1), "label": torch.zeros(16, dtype=torch.int64)}
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    found = []
    for step in range(60):
        optimizer.zero_grad()
        loss = student(data, draws(step % 10)).mean()
        loss.backward()
        found.append(float(loss.detach()))
        optimizer.step()
    assert sum(found[-10:]) < 0.5 * sum(found[:10])


def test_what_is_at_the_end_of_the_flow_stays():
    student = model(teacher())
    shaken(student.student, seed=6)
    x = batch()["image"]
    at = torch.full((8,), T_MIN, dtype=torch.float64)
    stays = consistency_function(student.student.denoiser, x, at, {"label": batch()["label"]}, T_MIN)
    torch.testing.assert_close(stays, x, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"how": "guessing"}, "how: got 'guessing'"),
        ({"levels": 1}, "levels: got 1"),
    ],
)
def test_impossible_values_are_refused(own, message):
    with pytest.raises(WorkbenchError, match=message):
        built(Consistency, teacher(), **own)


def test_wrong_parents_are_refused():
    with pytest.raises(WorkbenchError, match="parent: got none"):
        model(None)
    autoencoder = Autoencoder(PARTS, widths=(8, 16))
    for how in ("distillation", "training"):
        with pytest.raises(WorkbenchError, match="parent: got Autoencoder"):
            built(Consistency, autoencoder, how=how)
